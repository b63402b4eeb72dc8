"""The main job for real: a small table, its jobs killed in the middle, its records deleted."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def start(folder: Path) -> subprocess.Popen:
    """`reproduce.py quick` at demo scale, working in `folder`."""
    command = [sys.executable, str(ROOT / "reproduce.py"), "quick", "--scale", "demo"]
    command += ["--seeds", "1", "--cluster", "local"]
    for name in ("runs", "records", "out"):
        command += [f"--{name}", str(folder / name)]
    return subprocess.Popen(
        command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def finish(folder: Path) -> tuple[str, str]:
    """Run to the end; returns stdout and stderr."""
    process = start(folder)
    out, err = process.communicate()
    assert process.returncode == 0, err
    return out, err


def metrics(folder: Path) -> dict[str, dict[str, float]]:
    records = [json.loads(path.read_text()) for path in (folder / "records").glob("*.json")]
    return {record["key"]: record["metrics"] for record in records}


def processes_of(folder: Path) -> list[int]:
    """Every process whose command line names the folder."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                line = (entry / "cmdline").read_bytes()
            except OSError:
                continue
            if str(folder).encode() in line:
                found.append(int(entry.name))
    return found


def wait_for(folder: Path, pattern: str, count: int, process: subprocess.Popen) -> None:
    while len(list(folder.glob(pattern))) < count:
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.05)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc").is_dir(), reason="finds the workers to kill in /proc")
def test_a_table_killed_in_the_middle_ends_with_the_metrics_of_an_undisturbed_run(tmp_path):
    undisturbed, killed = tmp_path / "undisturbed", tmp_path / "killed"
    for folder in (undisturbed, killed):
        folder.mkdir()
    out, _ = finish(undisturbed)
    assert "| Random initialisation |" in out and "not run" not in out
    assert len(metrics(undisturbed)) == 6

    for pattern, count in (("runs/*/log.jsonl", 1), ("records/*.json", 2)):
        process = start(killed)
        wait_for(killed, pattern, count, process)
        for pid in processes_of(killed):
            os.kill(pid, signal.SIGKILL)
        process.communicate()
    _, err = finish(killed)
    assert metrics(killed) == metrics(undisturbed)

    gone = sorted((killed / "records").glob("*.json"))[0]
    gone.unlink()
    _, err = finish(killed)
    assert "1 jobs to run: 0 pretrainings, 1 evaluations" in err
    assert metrics(killed) == metrics(undisturbed)

    _, err = finish(killed)
    assert "nothing to run: every cell has its record" in err
