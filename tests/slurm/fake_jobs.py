"""Jobs that take no time, importable by workers: they write what happened into a folder."""

import hashlib
import os
import time
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

from harness.files import write_atomically
from slurm.jobs import Task
from tests.results import sample


@dataclass
class FakeTask:
    key: str
    runs: Path
    parent: str = ""
    fails: bool = False
    seconds: float = 0.3
    alive: Path | None = None

    @property
    def evaluation(self):
        return SimpleNamespace(key=self.key, variant="knn:dino") if self.parent else None

    @property
    def pretraining(self):
        return SimpleNamespace(key=self.parent or self.key, recipe="dino:VIT_SMALL")

    def __call__(self):
        if self.alive:
            from slurm.jobs import end_with_dispatcher

            end_with_dispatcher(self.alive)
        start = time.time()
        (self.runs / f"{self.key}.pid").write_text(str(os.getpid()))
        time.sleep(self.seconds)
        if self.fails:
            raise ValueError("the loss isn't finite")
        text = f"{start} {time.time()} {os.environ.get('OMP_NUM_THREADS')}"
        (self.runs / f"{self.key}.done").write_text(text)


@dataclass(frozen=True, kw_only=True)
class StepTask(Task):
    """A Task with real signals and locks around a training that counts.

    Its result is a hash chained over the steps, so that it is right only if every step was done
    once, in order; `steps.log` tells which were done in how many attempts.
    """

    steps: int = 3
    seconds: float = 0.1  # per step
    megabytes: int = 0  # to take before the first step
    words: str = ""  # of the error to end with

    def _run(self, interruptions):
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "pid").write_text(str(os.getpid()))
        hog = bytearray(self.megabytes << 20)
        hog[::4096] = b"x" * len(hog[::4096])
        step, value = self._resume()
        while step < self.steps:
            time.sleep(self.seconds)
            step, value = step + 1, hashlib.sha256(value.encode()).hexdigest()
            with (self.folder / "steps.log").open("a") as log:
                log.write(f"{step} {os.environ['SLURM_JOB_ID']}\n")
            if interruptions:
                interruptions.after_step(lambda state=(step, value): self._save(*state))
        if self.words:
            raise ValueError(self.words)
        write_atomically(self.output, value)

    def _save(self, step, value):
        write_atomically(self.folder / f"step-{step:06d}.pt", value)

    def _resume(self):
        found = max(self.folder.glob("step-*.pt"), default=None)
        return (int(found.stem[5:]), found.read_text()) if found else (0, "")


def result(task: StepTask) -> str:
    """What an undisturbed run of a StepTask writes."""
    value = ""
    for _ in range(task.steps):
        value = hashlib.sha256(value.encode()).hexdigest()
    return value


def steps_done(task: StepTask) -> list[int]:
    """Every step that was done, repeated ones included."""
    path = task.folder / "steps.log"
    return [int(line.split()[0]) for line in path.read_text().splitlines()] if path.exists() else []


def pretraining(folder: Path, key: str, **values) -> StepTask:
    return StepTask(
        pretraining=sample.pretraining(key, 1),
        runs=folder / "runs",
        records=folder / "records",
        **values,
    )


def evaluation(parent: StepTask, key: str, **values) -> StepTask:
    return StepTask(
        pretraining=parent.pretraining,
        evaluation=sample.evaluation(key, parent.key),
        runs=parent.runs,
        records=parent.records,
        **values,
    )


@dataclass(frozen=True, kw_only=True)
class MeetingTask(Task):
    """Ranks that meet and add up their numbers; one of them may stay away."""

    hung: int | None = None

    @property
    def output(self):
        return self.folder / "sum"

    def _run(self, interruptions):
        import torch

        from harness import dist

        if dist.rank() == self.hung:
            time.sleep(600)
        total = dist.all_reduce_sum(torch.tensor([1.0 + dist.rank()]))
        if dist.is_main():
            write_atomically(self.output, str(float(total)))


def meeting(folder: Path, key: str, **values) -> MeetingTask:
    return MeetingTask(
        pretraining=sample.pretraining(key, 1),
        runs=folder / "runs",
        records=folder / "records",
        **values,
    )
