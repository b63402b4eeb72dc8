"""How long jobs will take: from earlier records of similar ones, else from what papers state."""

from __future__ import annotations

import functools
import heapq
import statistics
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.record import Cost, Record
from results.resolve import Evaluation, Pretraining

PATH = Path(__file__).with_name("throughput.toml")
SPLIT_SIZES = {  # train images
    "imagenet": 1_281_167,
    "cifar10": 50_000,
    "cifar10@10000": 10_000,
    "mnist5k": 4_000,
}


@dataclass(frozen=True, kw_only=True)
class Resources:
    """What one job gets."""

    gpus: int = 0  # 0: it runs on CPU
    processes: int = 1
    gpu: str = ""  # kind; "" if it isn't known


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """What one job will take."""

    seconds: float
    resources: Resources
    source: str  # "3 records", "IMSVD, Table IV (V100)"

    @property
    def gpu_hours(self) -> float:
        """Of all its GPUs together; of its processes where it runs on CPU."""
        return self.seconds / 3600 * (self.resources.gpus or self.resources.processes)


@dataclass(frozen=True, kw_only=True)
class PublishedRun:
    """What a pretraining on ImageNet took elsewhere: an entry of throughput.toml."""

    method: str
    backbone: str
    views: int
    gpu: str
    gpus: int
    epochs: int
    hours: float
    source: str

    @property
    def images_per_s(self) -> float:
        """Images (each with all its views) per second and GPU."""
        return self.epochs * SPLIT_SIZES["imagenet"] / (self.hours * 3600 * self.gpus)

    def describe(self, method: str, gpu: str) -> str:
        """Where an estimate comes from: "IMSVD, Table IV: V100", "… swav, V100, not a100"."""
        whose = "" if method == self.method else f"{self.method}, "
        other = bool(gpu and self.gpu) and gpu.lower() not in self.gpu.lower()
        kind = f"{self.gpu}, not {gpu}" if other else self.gpu or "GPU not named"
        return f"{self.source}: {whose}{kind}"


@functools.cache
def published_runs(path: Path = PATH) -> tuple[PublishedRun, ...]:
    """The entries of throughput.toml."""
    return tuple(PublishedRun(**run) for run in tomllib.loads(path.read_text())["pretrain"])


def images_processed(pretraining: Pretraining) -> int:
    """Crops that go through the backbone: epochs × images × views; 0 for an unknown data set."""
    return pretraining.epochs * SPLIT_SIZES.get(pretraining.dataset, 0) * pretraining.views


def pretrain_estimate(
    pretraining: Pretraining, resources: Resources, records: Iterable[Record]
) -> Estimate | None:
    """What a pretraining will take; None where nothing similar is known.

    Similar are records of the same trunk on the same data and kind of hardware, of the same method
    if there are any; else a published run of the same trunk and number of views on ImageNet.
    Speed is taken to grow with the number of processes.
    """
    if pretraining.epochs == 0:
        return Estimate(seconds=0.0, resources=resources, source="nothing to train")
    rates: dict[bool, dict[str, float]] = {True: {}, False: {}}  # same method or not; by run
    for record in records:
        cost = record.pretrain_cost or Cost(seconds=record.pretrain_seconds)
        crops = _crops(record.recipe)
        if crops and cost.seconds and _similar(record, pretraining, cost, resources):
            same = _method(record.recipe) == _method_of(pretraining)
            run = str(record.checkpoint.get("sha256", record.key))
            rates[same][run] = crops / cost.seconds / cost.processes
    found = (rates[True] or rates[False]).values()
    if found:
        seconds = images_processed(pretraining) / statistics.fmean(found) / resources.processes
        return Estimate(seconds=seconds, resources=resources, source=_records(len(found)))
    return _from_papers(pretraining, resources)


def _from_papers(pretraining: Pretraining, resources: Resources) -> Estimate | None:
    """By the hours of a published run; of the same method, if there is one."""
    if pretraining.scale != "paper" or pretraining.dataset != "imagenet" or not resources.gpus:
        return None
    method = _method_of(pretraining)
    wanted = (pretraining.backbone, pretraining.views)
    found = [run for run in published_runs() if (run.backbone, run.views) == wanted]
    run = min(found, key=lambda run: run.method != method, default=None)
    if run is None:
        return None
    images = pretraining.epochs * SPLIT_SIZES["imagenet"]
    seconds = images / run.images_per_s / resources.gpus
    return Estimate(
        seconds=seconds, resources=resources, source=run.describe(method, resources.gpu)
    )


def evaluate_estimate(
    evaluation: Evaluation,
    pretraining: Pretraining,
    resources: Resources,
    records: Iterable[Record],
) -> Estimate | None:
    """What an evaluation will take, by records of the same protocol on the same trunk and data."""
    module = evaluation.protocol.partition("@")[0]
    found = []
    for record in records:
        cost = record.cost or Cost(seconds=record.seconds)
        same = str(record.protocol.get("class", "")).startswith(f"{module}.")
        if same and _similar(record, pretraining, cost, resources):
            found.append(cost.seconds * cost.processes / resources.processes)
    if not found:
        return None
    return Estimate(
        seconds=statistics.fmean(found), resources=resources, source=_records(len(found))
    )


def _similar(record: Record, pretraining: Pretraining, cost: Cost, resources: Resources) -> bool:
    """Whether a record tells how long something with this trunk, data and hardware takes."""
    return (
        _trunk(record.recipe) == (pretraining.backbone, pretraining.dataset)
        and bool(cost.gpus) == bool(resources.gpus)
        and resources.gpu.lower() in (cost.hardware or resources.gpu).lower()
    )


def wall_seconds(
    groups: Sequence[tuple[float, Sequence[float]]], slots: int, *, shared: bool
) -> float:
    """When the last job ends, if all slots are free now and jobs start as soon as they can.

    Args:
        groups: Of each pretraining its seconds and those of its evaluations, in the order of
            submission.
        slots: Pretrainings that run at once, and evaluations of one pretraining.
        shared: Whether all jobs share the slots, evaluations first, as on one machine.
    """
    if not shared:
        ends = _finish([seconds for seconds, _ in groups], slots)
        return max(
            (
                end + max(_finish(evaluations, slots), default=0.0)
                for end, (_, evaluations) in zip(ends, groups, strict=True)
            ),
            default=0.0,
        )
    waiting = list(groups)
    ready: list[float] = []
    running: list[tuple[float, int, Sequence[float]]] = []  # end, tie-break, what it makes ready
    now, count = 0.0, 0
    while waiting or ready or running:
        while len(running) < slots and (waiting or ready):
            seconds, then = (ready.pop(0), ()) if ready else waiting.pop(0)
            heapq.heappush(running, (now + seconds, count, then))
            count += 1
        now, _, then = heapq.heappop(running)
        ready += then
    return now


def _finish(seconds: Sequence[float], slots: int) -> list[float]:
    """When each job ends, started in order as slots become free."""
    free = [0.0] * slots
    ends = []
    for length in seconds:
        ends.append(heapq.heappop(free) + length)
        heapq.heappush(free, ends[-1])
    return ends


def _records(count: int) -> str:
    return f"{count} record{'s' if count > 1 else ''}"


def _crops(recipe: Mapping[str, Any] | None) -> int:
    if recipe is None:
        return 0
    return recipe["epochs"] * SPLIT_SIZES.get(recipe["dataset"], 0) * len(recipe["views"])


def _trunk(recipe: Mapping[str, Any] | None) -> tuple[str, str] | None:
    return (recipe["backbone"]["name"], recipe["dataset"]) if recipe else None


def _method(recipe: Mapping[str, Any] | None) -> str:
    return str(recipe["method"]["class"]).split(".")[-2] if recipe else ""


def _method_of(pretraining: Pretraining) -> str:
    return pretraining.key.rpartition("-")[0]


def duration(seconds: float) -> str:
    """A time span for people: "45 s", "12 min", "3 h 20 min", "5.1 days"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 90:
        return f"{minutes} min"
    if minutes < 48 * 60:
        return f"{minutes // 60} h {minutes % 60:02d} min"
    return f"{minutes / 60 / 24:.1f} days"
