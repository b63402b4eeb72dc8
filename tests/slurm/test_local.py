import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from slurm.ledger import failures, open_submission, queued
from slurm.local import run_debug, run_local
from slurm.progress import Progress
from tests.slurm.fake_jobs import FakeTask

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(autouse=True)
def _workers_find_fake_jobs(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))


def run(tasks, runs, places=2):
    submission = open_submission(runs)
    try:
        with Progress(len(tasks), {t.key: t.key for t in tasks}, runs) as progress:
            return run_local(tasks, progress, submission, [None] * places)
    finally:
        submission.close()


def span(runs, key):
    start, end, _ = (runs / f"{key}.done").read_text().split()
    return float(start), float(end)


def test_an_evaluation_starts_after_its_pretraining_and_no_more_run_than_there_are_places(tmp_path):
    tasks = [FakeTask(f"p{i}", tmp_path) for i in range(3)]
    tasks += [FakeTask(f"e{i}", tmp_path, parent=f"p{i}") for i in range(3)]
    assert run(tasks, tmp_path) == {}
    spans = {t.key: span(tmp_path, t.key) for t in tasks}
    for i in range(3):
        assert spans[f"p{i}"][1] <= spans[f"e{i}"][0]
    starts = [start for start, _ in spans.values()]
    assert max(sum(s <= t < e for s, e in spans.values()) for t in starts) <= 2


def test_a_failing_job_is_reported_with_its_log_and_the_others_run(tmp_path, capfd):
    tasks = [FakeTask("bad", tmp_path, fails=True), FakeTask("good", tmp_path)]
    tasks += [
        FakeTask("e-bad", tmp_path, parent="bad"),
        FakeTask("e-good", tmp_path, parent="good"),
    ]
    failed = run(tasks, tmp_path)
    assert set(failed) == {"bad", "e-bad"}
    assert failed["bad"].startswith("ValueError: the loss isn't finite (log: ")
    assert Path(failed["bad"].split("log: ")[1].rstrip(")")).exists()
    assert failed["e-bad"] == "pretraining bad failed"
    assert failures(tmp_path) == failed
    assert (tmp_path / "e-good.done").exists()
    assert "FAILED    bad" in capfd.readouterr().err


def test_a_failure_is_forgotten_when_the_job_succeeds_later(tmp_path):
    run([FakeTask("job", tmp_path, fails=True, seconds=0)], tmp_path)
    assert set(failures(tmp_path)) == {"job"}
    run([FakeTask("job", tmp_path, seconds=0)], tmp_path)
    assert failures(tmp_path) == {}


def test_debug_runs_in_this_process_and_goes_on_after_a_failure(tmp_path, capfd):
    tasks = [
        FakeTask("bad", tmp_path, fails=True, seconds=0),
        FakeTask("good", tmp_path, seconds=0),
    ]
    tasks += [FakeTask("e-bad", tmp_path, parent="bad", seconds=0)]
    with Progress(3, {t.key: t.key for t in tasks}, tmp_path) as progress:
        failed = run_debug(tasks, progress, tmp_path / "logs")
    assert failed["bad"] == "ValueError: the loss isn't finite"
    assert failed["e-bad"] == "pretraining bad failed"
    assert (tmp_path / "good.pid").read_text() == str(os.getpid())


DISPATCHER = """
import signal
import sys
from pathlib import Path
from slurm.ledger import open_submission
from slurm.local import run_local
from slurm.progress import Progress
from tests.slurm.fake_jobs import FakeTask
# A shell starts what it puts into the background with interrupts ignored; tests may run there.
signal.signal(signal.SIGINT, signal.default_int_handler)
runs = Path(sys.argv[1])
submission = open_submission(runs)
submission.write_queue({"long": ""})
task = FakeTask("long", runs, seconds=600, alive=submission.alive)
with Progress(1, {"long": "long"}, runs) as progress:
    run_local([task], progress, submission, [None])
"""


def until(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)


def runs_still(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_no_worker_outlives_its_dispatcher(tmp_path, how):
    dispatcher = subprocess.Popen(
        [sys.executable, "-c", DISPATCHER, str(tmp_path)], stderr=subprocess.DEVNULL
    )
    pid_file = tmp_path / "long.pid"
    until(lambda: pid_file.exists() and pid_file.read_text())
    worker = int(pid_file.read_text())
    assert queued(tmp_path) == {"long": ""}
    dispatcher.send_signal(how)
    dispatcher.wait(timeout=60)
    until(lambda: not runs_still(worker))
    assert queued(tmp_path) == {}
