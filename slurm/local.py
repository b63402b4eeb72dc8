"""Jobs on this machine: a bounded scheduler on top of submitit's local executor, and `debug`."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from slurm.jobs import Task
from slurm.ledger import Submission, forget_failure, note_failure
from slurm.progress import Progress

if TYPE_CHECKING:
    from submitit import LocalExecutor

Job = Any  # submitit's LocalJob, generic in a way that says nothing here

_POLL_SECONDS = 0.1
_FOREVER_MINUTES = 60 * 24 * 365  # submitit ends local jobs after two minutes by default
_STOP_SECONDS = 5.0


def slots(limit: int | None) -> list[int | None]:
    """Where jobs can run side by side: one entry per GPU (its index), else one None per core."""
    found: list[int | None] = [*_gpus()] or [None] * len(os.sched_getaffinity(0))
    if limit is None:
        return found
    return found[:limit] if found[0] is not None else [None] * min(limit, len(found))


def _gpus() -> list[int]:
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None and all(part.strip().isdigit() for part in visible.split(",")):
        return [int(part) for part in visible.split(",")]
    if visible == "" or shutil.which("nvidia-smi") is None:
        return []
    answer = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False)
    return list(range(sum(line.startswith("GPU ") for line in answer.stdout.splitlines())))


def run_debug(tasks: Sequence[Task], progress: Progress, folder: Path) -> dict[str, str]:
    """Run the jobs one after the other in this process; returns the failed ones' reasons."""
    import submitit

    executor = submitit.AutoExecutor(folder=folder, cluster="debug")
    failed: dict[str, str] = {}
    for task in tasks:
        if _parent_failed(task, failed):
            _fail(task, f"pretraining {task.pretraining.key} failed", failed, progress)
            continue
        progress.started(task.key)
        forget_failure(task.runs, task.key)
        error = executor.submit(task).exception()  # result() would open a debugger
        if error is None:
            progress.finished(task.key)
        else:
            traceback.print_exception(error)
            _fail(task, f"{type(error).__name__}: {error}", failed, progress)
    return failed


def run_local(
    tasks: Sequence[Task],
    progress: Progress,
    submission: Submission,
    places: Sequence[int | None],
) -> dict[str, str]:
    """Run the jobs, at most one per place, each evaluation after its pretraining.

    Args:
        tasks: In the order of preference.
        progress: Told of every event.
        submission: Its folder takes submitit's files; its lock keeps the workers alive.
        places: What `slots` found.

    Returns:
        Reasons of the failed jobs by key; one failure stops only what depends on it.
    """
    return _Scheduler(tasks, progress, submission, places).run()


class _Scheduler:
    def __init__(
        self,
        tasks: Sequence[Task],
        progress: Progress,
        submission: Submission,
        places: Sequence[int | None],
    ) -> None:
        import submitit

        self.waiting = list(tasks)
        self.running: list[tuple[Task, Job, int | None]] = []
        self.free = list(places)
        self.failed: dict[str, str] = {}
        self.progress = progress
        self.submission = submission
        self.executor: LocalExecutor = submitit.LocalExecutor(folder=submission.folder)

    def run(self) -> dict[str, str]:
        try:
            while self.waiting or self.running:
                self._drop_orphans()
                self._start()
                self._collect()
                self.progress.tick()
                time.sleep(_POLL_SECONDS)
        except BaseException:
            self._stop()
            raise
        return self.failed

    def _drop_orphans(self) -> None:
        for task in [t for t in self.waiting if _parent_failed(t, self.failed)]:
            self.waiting.remove(task)
            _fail(task, f"pretraining {task.pretraining.key} failed", self.failed, self.progress)

    def _start(self) -> None:
        while self.free and (task := self._next()) is not None:
            self.waiting.remove(task)
            place = self.free.pop(0)
            forget_failure(task.runs, task.key)
            gpus = [] if place is None else [place]
            self.executor.update_parameters(
                timeout_min=_FOREVER_MINUTES, gpus_per_node=len(gpus), visible_gpus=gpus
            )
            self.running.append((task, self.executor.submit(task), place))
            self.progress.started(task.key)

    def _next(self) -> Task | None:
        """The first evaluation that is ready, so that results come early, else a pretraining."""
        unfinished = {t.key for t in self.waiting} | {t.key for t, _, _ in self.running}
        ready = [
            t for t in self.waiting if t.evaluation is None or t.pretraining.key not in unfinished
        ]
        return min(ready, key=lambda task: task.evaluation is None, default=None)

    def _collect(self) -> None:
        for entry in [e for e in self.running if e[1].done()]:
            task, job, place = entry
            self.running.remove(entry)
            self.free.append(place)
            reason = _outcome(job)
            if reason is None:
                self.progress.finished(task.key)
            else:
                _fail(task, reason, self.failed, self.progress)

    def _stop(self) -> None:
        """End the workers: submitit's interrupt first, then the lock that they live by."""
        for _, job, _ in self.running:
            if not job.done():
                job.cancel()
        self.submission.close()
        deadline = time.monotonic() + _STOP_SECONDS
        while time.monotonic() < deadline and not all(job.done() for _, job, _ in self.running):
            time.sleep(_POLL_SECONDS)


def _parent_failed(task: Task, failed: dict[str, str]) -> bool:
    return task.evaluation is not None and task.pretraining.key in failed


def _fail(task: Task, reason: str, failed: dict[str, str], progress: Progress) -> None:
    failed[task.key] = reason
    note_failure(task.runs, task.key, reason)
    progress.failed_with(task.key, reason)


def _outcome(job: Job) -> str | None:
    """Why an ended job has no result; None if it has one."""
    end = f"{last_words(job.paths.stderr)} (log: {job.paths.stderr})"
    if not job.paths.result_pickle.exists():
        return f"the worker died without a result; {end}"
    return None if job.exception() is None else end


def last_words(log: Path) -> str:
    """The last line of a log: of a traceback it is the error itself."""
    try:
        lines = log.read_text(errors="replace").splitlines()
    except OSError:
        return "there is no log"
    found = next((line.strip() for line in reversed(lines) if line.strip()), "the log is empty")
    return found.removeprefix("harness.errors.UserError: ")
