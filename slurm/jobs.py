"""What runs on a worker: pretrain and evaluate, and the picklable task around them.

Everything here is importable without torch: a task carries the names of its recipe and protocol,
and builds them where it runs. Workers never do the same work twice at a time: each job holds a
lock on its run folder.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from harness.record import Record
from results.resolve import Evaluation, Pretraining, protocol_of, recipe_of

if TYPE_CHECKING:
    from submitit.helpers import DelayedSubmission

    from harness.protocol import EvalProtocol
    from harness.recipe import Recipe


def pretrain(recipe: Recipe, seed: int, runs: Path) -> Path:
    """Train to the end, from wherever an earlier attempt stopped; returns backbone.pt."""
    from harness import train

    return train.pretrain(recipe, seed, runs)


def evaluate(
    recipe: Recipe, protocol: EvalProtocol, seed: int, runs: Path, records: Path
) -> Record | None:
    """Evaluate the backbone of (recipe, seed); its record is written to `records`."""
    from harness.evaluate import evaluate as run
    from harness.recipe import fingerprint, pretrain_key

    folder = runs / pretrain_key(recipe, seed)
    return run(
        recipe=recipe,
        protocol=protocol,
        seed=seed,
        checkpoint=folder / "backbone.pt",
        workdir=folder / "evaluations" / fingerprint(recipe, protocol, seed),
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

    @property
    def key(self) -> str:
        """Key of the pretraining or of the evaluation."""
        return self.evaluation.key if self.evaluation else self.pretraining.key

    @property
    def output(self) -> Path:
        """The file that exists once the job is done."""
        if self.evaluation is None:
            return self.runs / self.key / "backbone.pt"
        return self.records / f"{self.key}.json"

    def __call__(self) -> None:
        """Run the job, unless another process finishes it while this one waits."""
        if self.alive is not None:
            end_with_dispatcher(self.alive)
        with _locked(lock_path(self.runs, self.key)):
            self._run()

    def _run(self) -> None:
        recipe = recipe_of(self.pretraining)
        seed = self.pretraining.seed
        self._check_key(recipe, seed)
        if self.evaluation is None:
            pretrain(recipe, seed, self.runs)
        elif not self.output.exists():
            protocol = protocol_of(self.evaluation)
            evaluate(recipe, protocol, seed, self.runs, self.records)

    def _check_key(self, recipe: Recipe, seed: int) -> None:
        from harness.errors import UserError
        from harness.recipe import pretrain_key

        found = pretrain_key(recipe, seed)
        if found != self.pretraining.key:
            raise UserError(
                f"the sources changed after this job was submitted ({self.pretraining.key} is now "
                f"{found}); run the command again."
            )

    def checkpoint(self) -> DelayedSubmission:
        """What submitit queues again after a time limit or a preemption."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


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


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold the lock of a job; of several ranks the first one holds it for all."""
    if os.environ.get("SLURM_PROCID", "0") != "0":
        yield
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
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
