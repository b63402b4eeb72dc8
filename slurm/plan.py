"""From tables to missing jobs: {pretraining: [evaluations]}, each once, and what they cost."""

from __future__ import annotations

import statistics
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.record import Record
from results.resolve import Evaluation, Pretraining, Resolved

SPLIT_SIZES = {  # train images
    "imagenet": 1_281_167,
    "cifar10": 50_000,
    "cifar10@10000": 10_000,
    "mnist5k": 4_000,
}


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is missing."""

    pretrainings: dict[str, Pretraining]  # to be trained (further)
    trained: frozenset[str]  # keys of finished pretrainings that missing evaluations need
    evaluations: dict[str, Evaluation]  # without a record
    described: dict[str, Pretraining]  # every pretraining that an evaluation belongs to
    recorded: int  # evaluations that have a record

    @property
    def by_pretraining(self) -> dict[str, list[Evaluation]]:
        """The missing evaluations of each pretraining, longest pretraining first."""
        order = sorted(self.described.values(), key=lambda p: (-images_processed(p), p.key))
        grouped: dict[str, list[Evaluation]] = {p.key: [] for p in order}
        for evaluation in self.evaluations.values():
            grouped[evaluation.pretraining].append(evaluation)
        return {key: found for key, found in grouped.items() if found}

    @property
    def jobs(self) -> int:
        """How many jobs there are to run."""
        return len(self.pretrainings) + len(self.evaluations)


def make_plan(tables: Iterable[Resolved], records: Collection[str], runs: Path) -> Plan:
    """The jobs that are missing for these tables.

    Args:
        tables: Resolved tables; a job that several need is planned once.
        records: Keys of the existing records.
        runs: Folder of the pretraining runs: a finished one is not planned again.
    """
    described: dict[str, Pretraining] = {}
    evaluations: dict[str, Evaluation] = {}
    for table in tables:
        described |= table.pretrainings
        evaluations |= table.evaluations
    missing = {key: e for key, e in evaluations.items() if key not in records}
    needed = {e.pretraining for e in missing.values()}
    trained = {key for key in needed if (runs / key / "backbone.pt").exists()}
    return Plan(
        pretrainings={key: described[key] for key in described if key in needed - trained},
        trained=frozenset(trained),
        evaluations=missing,
        described={key: described[key] for key in described if key in needed},
        recorded=len(evaluations) - len(missing),
    )


def images_processed(pretraining: Pretraining) -> int:
    """Crops that go through the backbone: epochs × images × views; 0 for an unknown data set."""
    return pretraining.epochs * SPLIT_SIZES.get(pretraining.dataset, 0) * pretraining.views


def describe_plan(plan: Plan, records: Mapping[str, Record], at_once: int | None) -> list[str]:
    """The plan in lines for people: jobs, what is cached, the estimated cost.

    Args:
        plan: What is missing.
        records: Earlier records, from which run times are estimated.
        at_once: Jobs that run side by side; None when a cluster decides.
    """
    lines = [
        f"{plan.jobs} jobs to run: {len(plan.pretrainings)} pretrainings, "
        f"{len(plan.evaluations)} evaluations; {plan.recorded} evaluations are recorded, "
        f"{len(plan.trained)} of the pretrainings needed are finished."
    ]
    for key, evaluations in plan.by_pretraining.items():
        lines += _describe_group(plan.described[key], evaluations, key in plan.trained, records)
    if plan.pretrainings:
        total = sum(images_processed(p) for p in plan.pretrainings.values())
        lines.append(f"{total:,} crops to pretrain on in all.")
    if plan.jobs:
        lines.append(_total_time(plan, records, at_once))
    return lines


def _describe_group(
    pretraining: Pretraining,
    evaluations: list[Evaluation],
    trained: bool,
    records: Mapping[str, Record],
) -> list[str]:
    p = pretraining
    cost = f"{p.epochs} epochs × {SPLIT_SIZES.get(p.dataset, 0):,} images × {p.views} views"
    seconds = pretrain_seconds(p, records)
    time = f", about {duration(seconds)}" if seconds is not None else ""
    state = "finished" if trained else f"{cost} = {images_processed(p):,} crops{time}"
    heading = f"pretrain {p.key}  {p.name}, {p.backbone}, {p.dataset}, seed {p.seed}: {state}"
    return [heading, *[f"  evaluate {e.key}  {e.protocol}" for e in evaluations]]


def _total_time(plan: Plan, records: Mapping[str, Record], at_once: int | None) -> str:
    known = [pretrain_seconds(p, records) for p in plan.pretrainings.values()]
    known += [evaluate_seconds(plan, e, records) for e in plan.evaluations.values()]
    found = [seconds for seconds in known if seconds is not None]
    if len(found) < len(known):
        return (
            f"Time: unknown for {len(known) - len(found)} of {len(known)} jobs "
            "(no record of a similar run to learn from)."
        )
    total = sum(found)
    side_by_side = f", {duration(total / at_once)} with {at_once} at once" if at_once else ""
    return f"Time, from earlier records: {duration(total)} of jobs{side_by_side}."


def pretrain_seconds(pretraining: Pretraining, records: Mapping[str, Record]) -> float | None:
    """Estimated run time, from the crops per second of records with the same trunk and data."""
    if pretraining.epochs == 0:
        return 0.0
    method = pretraining.key.rpartition("-")[0]
    rates: dict[bool, list[float]] = {True: [], False: []}  # same method or not
    for record in records.values():
        crops = _crops(record.recipe)
        if crops and record.pretrain_seconds and _trunk(record.recipe) == _trunk_of(pretraining):
            same = _method(record.recipe) == method
            rates[same].append(crops / record.pretrain_seconds)
    found = rates[True] or rates[False]
    return images_processed(pretraining) / statistics.fmean(found) if found else None


def evaluate_seconds(
    plan: Plan, evaluation: Evaluation, records: Mapping[str, Record]
) -> float | None:
    """Estimated run time, from records of the same protocol class on the same trunk and data."""
    trunk = _trunk_of(plan.described[evaluation.pretraining])
    module = evaluation.protocol.partition("@")[0]
    found = [
        record.seconds
        for record in records.values()
        if record.recipe is not None
        and _trunk(record.recipe) == trunk
        and str(record.protocol.get("class", "")).startswith(f"{module}.")
    ]
    return statistics.fmean(found) if found else None


def _crops(recipe: dict[str, Any] | None) -> int:
    if recipe is None:
        return 0
    return recipe["epochs"] * SPLIT_SIZES.get(recipe["dataset"], 0) * len(recipe["views"])


def _trunk(recipe: dict[str, Any] | None) -> tuple[str, str] | None:
    return (recipe["backbone"]["name"], recipe["dataset"]) if recipe else None


def _trunk_of(pretraining: Pretraining) -> tuple[str, str]:
    return (pretraining.backbone, pretraining.dataset)


def _method(recipe: dict[str, Any] | None) -> str:
    return str(recipe["method"]["class"]).split(".")[-2] if recipe else ""


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
