"""Records: one immutable JSON per measured cell, the only input of tables."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from harness.files import write_atomically


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What a job took, all its attempts together."""

    seconds: float  # wall clock
    processes: int = 1  # one per GPU, where there are GPUs
    gpus: int = 0  # 0: it ran on CPU
    gpu_hours: float = 0.0
    hardware: str = ""  # the GPU's name, or the CPU's model and architecture
    images_per_s: float | None = None  # of training, over all processes
    peak_memory_bytes: int = 0  # of the process that took most: allocated on its GPU, or resident
    jobs: tuple[str, ...] = ()  # SLURM's ids

    @property
    def where(self) -> str:
        """Number and kind of what it ran on: "32 × Tesla V100-SXM2-32GB"."""
        return f"{self.processes} × {self.hardware or ('GPU' if self.gpus else 'CPU')}"


@dataclass(frozen=True, kw_only=True)
class Record:
    """One evaluation of one checkpoint, with all that is needed to trace and to repeat it."""

    key: str  # fingerprint(recipe, protocol, seed), and the moment unless it is the end
    slot: str  # the same without versions: finds records that an older version of the code wrote
    recipe: dict[str, Any] | None  # resolved; None for a checkpoint from elsewhere
    protocol: dict[str, Any]  # resolved
    seed: int
    after: int = 100  # percent of the pretraining's steps behind the trunk that was evaluated
    metrics: dict[str, float]  # percent
    diverged: str = ""  # why the pretraining came to nothing, and there are no metrics
    intervals: dict[str, list[float]] = field(default_factory=dict)  # 95 %, bootstrap
    checkpoint: dict[str, Any]  # path, sha256, family
    data: dict[str, Any] = field(default_factory=dict)  # split → checksum, images, classes
    predictions: str | None = None  # file of per-image predictions
    seconds: float = 0.0  # of the evaluation
    pretrain_seconds: float = 0.0  # all attempts together
    peak_memory_bytes: int = 0
    cost: Cost | None = None  # of the evaluation; None in records from before there was one
    pretrain_cost: Cost | None = None  # None: also for a checkpoint from elsewhere
    environment: dict[str, Any] = field(default_factory=dict)  # commit, versions, hardware, job

    def save(self, folder: Path) -> Path:
        """Write `folder/<key>.json` by rename; returns its path."""
        path = folder / f"{self.key}.json"
        write_atomically(path, json.dumps(dataclasses.asdict(self), indent=1) + "\n")
        return path

    @classmethod
    def load(cls, path: Path) -> Record:
        """Read a record.

        Raises:
            ValueError: The file is not a record of this version of the harness.
        """
        try:
            values = json.loads(path.read_text())
            costs = {k: _cost(values.get(k)) for k in ("cost", "pretrain_cost")}
            record = cls(**(values | costs))
            _check_types(record)
            return record
        except (json.JSONDecodeError, AttributeError, TypeError, UnicodeDecodeError) as error:
            raise ValueError(
                f"{path} is not a record ({error}); delete it to run it again"
            ) from error


def _check_types(record: Record) -> None:
    """Refuse what a file may hold and no evaluation writes, before something computes with it.

    Raises:
        TypeError: Named by field.
    """
    for name in ("metrics", "intervals", "protocol", "checkpoint", "data", "environment"):
        if not isinstance(getattr(record, name), dict):
            raise TypeError(f"its {name} are no mapping")
    numbers = (*record.metrics.values(), record.seconds, record.pretrain_seconds)
    if not all(isinstance(number, int | float) for number in numbers):
        raise TypeError("a metric or its seconds are no number")
    if not all(isinstance(name, str) for name in (record.key, record.slot)):
        raise TypeError("its key or slot is no text")


def _cost(values: dict[str, Any] | None) -> Cost | None:
    if values is None:
        return None
    cost = Cost(**values)
    return replace(cost, jobs=tuple(cost.jobs))  # JSON made a list of it


def load_records(folder: Path) -> dict[str, Record]:
    """All readable records of a folder by key; damaged ones are named on stderr and left out."""
    import sys

    records = {}
    for path in sorted(folder.glob("*.json")):
        try:
            record = Record.load(path)
        except ValueError as error:
            print(f"warning: {error}", file=sys.stderr)
        else:
            records[record.key] = record
    return records
