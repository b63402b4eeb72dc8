"""What dispatchers leave in the run folder: who is at work on what, and what failed and why.

Each run of the command makes one folder `runs/.jobs/<unique>`: submitit's files, `queue.json` (the
jobs and, on a cluster, their ids), and `alive`, a file that is locked while the dispatcher lives.
Looking up what is queued and submitting the rest is one step, under `runs/.jobs/lock`, so that
commands started at the same moment submit each job once.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from harness.files import write_atomically
from slurm import scheduler
from slurm.jobs import is_locked

JOBS = ".jobs"
FAILED = ".failed"
RETRIES = ".retries"


@dataclass(frozen=True, kw_only=True)
class Submission:
    """One dispatcher's folder; closing the lock tells its local workers to end."""

    folder: Path
    lock: IO[str]

    @property
    def alive(self) -> Path:
        """The locked file."""
        return self.folder / "alive"

    def write_queue(self, jobs: dict[str, str]) -> None:
        """State what this dispatcher is at work on: key → id of the cluster's job, or ""."""
        write_atomically(self.folder / "queue.json", json.dumps(jobs, indent=1))

    def close(self) -> None:
        """Let the lock go."""
        self.lock.close()


def open_submission(runs: Path) -> Submission:
    """A new folder, never used before: submitit would take an old job's result for a new one's."""
    (runs / JOBS).mkdir(parents=True, exist_ok=True)
    prefix = time.strftime("%Y%m%d-%H%M%S-")
    folder = Path(tempfile.mkdtemp(prefix=prefix, dir=runs / JOBS)).resolve()
    lock = (folder / "alive").open("w")
    fcntl.flock(lock, fcntl.LOCK_EX)
    return Submission(folder=folder, lock=lock)


def queued(runs: Path) -> dict[str, str]:
    """Jobs that a living dispatcher or a cluster has: key → the cluster's job id, or "".

    A job of a local dispatcher counts while its dispatcher lives, a cluster's job while the
    cluster knows it.
    """
    found: list[tuple[str, str]] = []
    for path in sorted((runs / JOBS).glob("*/queue.json")):
        queue = json.loads(path.read_text())
        local = is_locked(path.parent / "alive")
        found += [(key, job) for key, job in queue.items() if job or local]
    known = living({job for _, job in found if job})
    # a key has several ids after retries: those that the cluster no longer knows don't count
    return {key: job for key, job in found if not job or job in known}


def living(ids: set[str]) -> set[str]:
    """Which of these SLURM jobs are queued or running; all of them while SLURM doesn't answer."""
    if not ids or not scheduler.installed():
        return set()
    queue = scheduler.queue()
    return ids if queue is None else ids & queue.keys()


@contextlib.contextmanager
def dispatching(runs: Path) -> Iterator[None]:
    """Hold the lock under which jobs are looked up and submitted."""
    (runs / JOBS).mkdir(parents=True, exist_ok=True)
    with (runs / JOBS / "lock").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def count_retry(runs: Path, key: str, reason: str) -> int:
    """Note that a lost job is submitted again; returns how often it has been."""
    path = runs / RETRIES / f"{key}.json"
    reasons = [*(json.loads(path.read_text()) if path.exists() else []), reason]
    write_atomically(path, json.dumps(reasons, indent=1))
    return len(reasons)


def forget_retries(runs: Path, key: str) -> None:
    """A job is asked for anew: it may be lost as often as the first time."""
    (runs / RETRIES / f"{key}.json").unlink(missing_ok=True)


def note_failure(runs: Path, key: str, reason: str) -> None:
    """Keep the reason why a job failed, for tables and --status."""
    write_atomically(runs / FAILED / f"{key}.txt", reason + "\n")


def forget_failure(runs: Path, key: str) -> None:
    """A job starts again: what was noted about it is over."""
    (runs / FAILED / f"{key}.txt").unlink(missing_ok=True)


def failures(runs: Path) -> dict[str, str]:
    """Reasons of failed jobs by key."""
    return {path.stem: path.read_text().strip() for path in (runs / FAILED).glob("*.txt")}
