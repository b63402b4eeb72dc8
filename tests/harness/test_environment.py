import platform
import subprocess
import sys

import pytest
import torch

from harness import environment

CODE = "from harness.environment import environment; print(environment()['log'])"


def test_the_log_is_the_file_that_stderr_goes_to(tmp_path):
    with (tmp_path / "job.err").open("w") as log:
        done = subprocess.run([sys.executable, "-c", CODE], stdout=subprocess.PIPE, stderr=log)
    assert done.stdout.decode().strip() == str(tmp_path / "job.err")


def test_without_a_file_there_is_no_log():
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True)
    assert done.stdout.decode().strip() == "None"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_cpu_is_named_by_model_and_architecture_where_linux_tells_the_model(
    tmp_path, monkeypatch
):
    machine = platform.machine()
    monkeypatch.setattr(environment, "_CPU_INFO", tmp_path / "cpuinfo")
    assert environment.hardware() == machine
    (tmp_path / "cpuinfo").write_text(
        "processor\t: 0\nmodel name\t: Fast 9000: two\nflags\t: fpu\n"
    )
    assert environment.hardware() == f"Fast 9000: two {machine}"
