import subprocess
import sys

CODE = "from harness.environment import environment; print(environment()['log'])"


def test_the_log_is_the_file_that_stderr_goes_to(tmp_path):
    with (tmp_path / "job.err").open("w") as log:
        done = subprocess.run([sys.executable, "-c", CODE], stdout=subprocess.PIPE, stderr=log)
    assert done.stdout.decode().strip() == str(tmp_path / "job.err")


def test_without_a_file_there_is_no_log():
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True)
    assert done.stdout.decode().strip() == "None"
