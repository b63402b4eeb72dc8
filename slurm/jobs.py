"""What runs on a worker: pretrain and evaluate, and the picklable task around them.

Everything here is importable without torch: a task carries the names of its recipe and protocol,
and builds them where it runs. Workers never do the same work twice at a time: each job holds a
lock on its run folder. When SLURM takes a job's place, the job saves and queues itself again
(slurm/survival.py).
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from harness.errors import UserError
from harness.record import Record
from harness.snapshots import END, evaluated_after, trunk_file
from results.resolve import Evaluation, Pretraining, protocol_of, recipe_of
from slurm.survival import Interruptions, interruptible

if TYPE_CHECKING:
    from submitit.helpers import DelayedSubmission

    from harness.protocol import EvalProtocol
    from harness.recipe import Recipe
    from harness.train import Run

MOST_IDLE = 10  # attempts in a row that end before anything is saved


def pretrain(
    recipe: Recipe, seed: int, runs: Path, interruptions: Interruptions | None = None
) -> Path:
    """Train to the end, from wherever an earlier attempt stopped; returns backbone.pt.

    A run that diverges ends with one that says so: in a table that is an outcome.
    """
    from harness import train
    from harness.recipe import pretrain_key

    def on_step(run: Run) -> None:
        assert interruptions is not None
        if run.step < run.steps:
            interruptions.after_step(lambda: train.save(run))
        else:
            interruptions.finish()

    try:
        return train.pretrain(recipe, seed, runs, on_step=on_step if interruptions else None)
    except train.NonFiniteLossError as error:
        if not train.keep_diverged(error):
            raise
        print(error, file=sys.stderr)
    return runs / pretrain_key(recipe, seed) / trunk_file()


def evaluate(
    recipe: Recipe,
    protocol: EvalProtocol,
    seed: int,
    runs: Path,
    records: Path,
    *,
    after: int = END,
) -> Record | None:
    """Evaluate the backbone of (recipe, seed); its record is written to `records`."""
    from harness.evaluate import evaluate as run
    from harness.recipe import fingerprint, pretrain_key

    folder = runs / pretrain_key(recipe, seed)
    key = fingerprint(recipe, protocol, seed, *evaluated_after(after))
    return run(
        recipe=recipe,
        protocol=protocol,
        seed=seed,
        checkpoint=folder / trunk_file(after),
        workdir=folder / "evaluations" / key,
        records=records,
    )


@dataclass(frozen=True, kw_only=True)
class Task:
    """A job as submitit carries it; after a preemption it is queued again and resumes itself."""

    pretraining: Pretraining
    evaluation: Evaluation | None = None  # None: this is the pretraining itself
    runs: Path
    records: Path
    alive: Path | None = None  # file that the dispatcher locks; the job ends when it is unlocked
    idle: int = 0  # attempts in a row, before this one, that saved nothing

    @property
    def key(self) -> str:
        """Key of the pretraining or of the evaluation."""
        return self.evaluation.key if self.evaluation else self.pretraining.key

    @property
    def output(self) -> Path:
        """The job's result."""
        if self.evaluation is None:
            return self.runs / self.key / trunk_file()
        return self.records / f"{self.key}.json"

    @property
    def is_done(self) -> bool:
        """Whether the result is there, and what else the job leaves."""
        snapshots = () if self.evaluation else self.pretraining.snapshots
        kept = (self.runs / self.key / trunk_file(percent) for percent in snapshots)
        return self.output.exists() and all(path.exists() for path in kept)

    @property
    def folder(self) -> Path:
        """Where the job saves what it goes on from."""
        folder = self.runs / self.pretraining.key
        return folder / "evaluations" / self.key if self.evaluation else folder

    def __call__(self) -> None:
        """Run the job, unless another process finishes it while this one waits."""
        if self.alive is not None:
            end_with_dispatcher(self.alive)
        with interruptible() as interruptions:
            if _ranks() > 1:
                self._run_as_one_of_many(interruptions)
            else:
                with _locked(lock_path(self.runs, self.key)):
                    self._run(interruptions)

    def _run_as_one_of_many(self, interruptions: Interruptions | None) -> None:
        """The first rank holds the lock, and all do what it finds left to do."""
        from harness import dist

        dist.init()
        with dist.naming_hung_ranks():
            lock = _locked(lock_path(self.runs, self.key))
            with lock if dist.is_main() else contextlib.nullcontext():
                if not dist.broadcast_object(self.is_done):
                    self._run(interruptions)
                dist.barrier()

    def _run(self, interruptions: Interruptions | None) -> None:
        recipe = recipe_of(self.pretraining)
        seed = self.pretraining.seed
        self._check_key(recipe, seed)
        if self.evaluation is None:
            pretrain(recipe, seed, self.runs, interruptions)
        elif not self.output.exists():
            protocol = protocol_of(self.evaluation)
            after = self.evaluation.after
            evaluate(recipe, protocol, seed, self.runs, self.records, after=after)

    def _check_key(self, recipe: Recipe, seed: int) -> None:
        from harness.recipe import pretrain_key

        found = pretrain_key(recipe, seed)
        if found != self.pretraining.key:
            raise UserError(
                f"the sources changed after this job was submitted ({self.pretraining.key} is now "
                f"{found}); run the command again."
            )

    def checkpoint(self) -> DelayedSubmission:
        """What submitit queues again after a time limit or a preemption.

        Raises:
            UserError: Too many attempts in a row have saved nothing.
        """
        from submitit.helpers import DelayedSubmission

        idle = 0 if self._has_saved() else self.idle + 1
        if idle > MOST_IDLE:
            raise UserError(
                f"{idle} attempts in a row were interrupted before they saved anything; raise "
                "timeout_min in slurm/clusters.toml"
            )
        return DelayedSubmission(replace(self, idle=idle))

    def _has_saved(self) -> bool:
        """Whether this attempt has written a checkpoint; times are all the file server's."""
        begun = lock_path(self.runs, self.key).stat().st_mtime
        saved = self.folder.glob("step-*.pt") if self.evaluation is None else self.folder.rglob("*")
        return any(path.stat().st_mtime > begun for path in saved if path.is_file())


def lock_path(runs: Path, key: str) -> Path:
    """The lock of a job, a file that stays empty."""
    return runs / ".locks" / key


def is_locked(path: Path) -> bool:
    """Whether some process holds the lock now."""
    if not path.exists():
        return False
    with path.open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def _ranks() -> int:
    """Processes of this job."""
    return int(os.environ.get("SLURM_NTASKS", "1")) if "SLURM_STEP_ID" in os.environ else 1


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold the lock of a job; its file's time is when the holder began."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        path.touch()
        yield


def end_with_dispatcher(alive: Path) -> None:
    """End this process at once when the process that holds the lock on `alive` is gone.

    A killed dispatcher can't stop its workers, and submitit's local controller is made to outlive
    it. The kernel drops the lock however the dispatcher ends, so the wait needs no polling; all
    files are written by rename, so the end may come at any moment.
    """

    def wait() -> None:
        # a removed file means that somebody removed the run folder: there is nothing to work for
        with contextlib.suppress(FileNotFoundError), alive.open() as file:
            fcntl.flock(file, fcntl.LOCK_SH)
        os._exit(1)

    threading.Thread(target=wait, name="end-with-dispatcher", daemon=True).start()
