import subprocess
import sys
import threading

import pytest

from slurm import jobs
from slurm.jobs import is_locked, lock_path

HOLDER = """
import sys
from pathlib import Path
from slurm.jobs import _locked
with _locked(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_run_that_diverges_ends_with_a_backbone_unless_other_ranks_know_nothing(
    tmp_path, monkeypatch, capsys
):
    from harness import train
    from tests.recipes import RECIPES

    recipe = RECIPES["untrained:RESNET50"]

    def diverge(*_: object, **__: object) -> None:
        raise train.NonFiniteLossError("the loss is nan: training has diverged", "the loss is nan")

    monkeypatch.setattr(train, "pretrain", diverge)
    path = jobs.pretrain(recipe, 0, tmp_path)
    assert path.name == "backbone.pt" and path.parent.name.startswith("untrained-")
    assert "training has diverged" in capsys.readouterr().err
    monkeypatch.setattr(train, "keep_diverged", lambda error: False)
    with pytest.raises(train.NonFiniteLossError):
        jobs.pretrain(recipe, 0, tmp_path)


@pytest.fixture
def holder(tmp_path):
    path = lock_path(tmp_path, "key")
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        assert process.stdout.readline() == "held\n"
        yield path, process


def test_a_second_process_waits_until_the_job_is_free(holder):
    path, process = holder
    order = []

    def second():
        with jobs._locked(path):
            order.append("second")

    assert is_locked(path)
    thread = threading.Thread(target=second)
    thread.start()
    thread.join(0.3)
    assert order == []
    process.stdin.close()
    thread.join(30)
    assert order == ["second"]
    assert not is_locked(path)


def test_a_killed_holder_leaves_no_lock(holder):
    path, process = holder
    process.kill()
    process.wait()
    assert not is_locked(path)
