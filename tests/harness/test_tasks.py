from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from harness import tasks
from harness.errors import UserError
from harness.tasks import solve_all
from tests.gloo import run_on
from tests.harness.pieces import die, fail_at, imported_torch, power


@pytest.fixture
def one_core(monkeypatch):
    monkeypatch.setattr(tasks, "loader_workers", lambda: 0)


ROOT = Path(__file__).parents[2]
TASKS = [(base, 2.0) for base in (5, 4, 3, 2, 1)]
SQUARES = [[25, -1], [16, -1], [9, -1], [4, -1], [1, -1]]


def solve(folder: Path, log: Path | None = None) -> list[list[float]]:
    return solve_all(partial(power, log), TASKS, (2,), folder=folder, label="powers").tolist()


def test_results_are_in_the_order_of_the_tasks_from_workers_too(tmp_path, monkeypatch):
    monkeypatch.setattr(tasks, "loader_workers", lambda: 2)
    assert solve(tmp_path) == SQUARES
    loaded = solve_all(imported_torch, [(0,), (1,)], (1,), folder=tmp_path / "torch", label="torch")
    assert loaded.tolist() == [[0], [0]]
    assert sorted(path.name for path in tmp_path.glob("*.npy")) == [
        f"{n}-2.0.npy" for n in range(1, 6)
    ]


def test_what_is_solved_is_not_solved_again_after_a_kill(tmp_path, one_core):
    log = tmp_path / "log"
    with pytest.raises(KeyboardInterrupt):
        solve_all(partial(fail_at, 2, log), TASKS, (2,), folder=tmp_path / "kept", label="powers")
    assert log.read_text() == "5 4 3 "
    assert solve(tmp_path / "kept", log) == SQUARES
    assert log.read_text() == "5 4 3 2 1 "


def test_a_damaged_result_is_solved_again(tmp_path, one_core, capsys):
    log = tmp_path / "log"
    solve(tmp_path / "kept")
    content = (tmp_path / "kept" / "3-2.0.npy").read_bytes()
    (tmp_path / "kept" / "3-2.0.npy").write_bytes(content[:-40] + bytes(8) + content[-32:])
    assert solve(tmp_path / "kept", log) == SQUARES
    assert (
        log.read_text() == "3 " and "is damaged and will be made again" in capsys.readouterr().err
    )


def share(folder: Path, log: Path) -> list[list[list[float]]]:
    one = solve_all(partial(power, None), [(7, 2.0)], (2,), folder=folder / "one", label="powers")
    return [solve(folder, log), one.tolist()]


def test_processes_share_the_tasks_even_if_there_are_fewer(tmp_path, monkeypatch, one_core):
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "64")  # no workers
    log = tmp_path / "log"
    assert run_on(2, share, tmp_path, tmp_path / "kept", log) == [[SQUARES, [[49, -1]]]] * 2
    assert sorted(log.read_text().split()) == ["1", "2", "3", "4", "5"]
    assert solve(tmp_path / "kept", log) == SQUARES
    assert len(log.read_text().split()) == 5


def test_a_worker_killed_is_explained(tmp_path, monkeypatch):
    monkeypatch.setattr(tasks, "loader_workers", lambda: 2)
    with pytest.raises(UserError, match=r"a worker was killed, most likely for want of memory"):
        solve_all(die, [(1,), (2,)], (1,), folder=tmp_path, label="deaths")


def test_workers_end_when_their_process_is_killed(tmp_path):
    code = (
        "import sys; from functools import partial; from pathlib import Path\n"
        "from harness import tasks; from tests.harness.pieces import nap\n"
        "tasks.loader_workers = lambda: 2; folder = Path(sys.argv[1])\n"
        "tasks.solve_all(partial(nap, folder), [(1,), (2,)], (1,), folder=folder, label='naps')"
    )
    started = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], cwd=ROOT, stderr=subprocess.DEVNULL
    )
    until(lambda: len(list(tmp_path.glob("*.pid"))) == 2)
    started.kill()
    started.wait()
    workers = [int(path.stem) for path in tmp_path.glob("*.pid")]
    until(lambda: not any(map(alive, workers)))


def until(happened: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120  # of a machine that has much else to do
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def alive(process: int) -> bool:
    """Whether a process runs; one that ended without anybody waiting for it does not."""
    done = subprocess.run(["ps", "-o", "stat=", "-p", str(process)], capture_output=True, text=True)
    return bool(done.stdout.strip()) and not done.stdout.startswith("Z")
