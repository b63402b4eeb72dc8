"""What the rows of a table cost, from their records: time, GPU-hours, speed, memory."""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from dataclasses import dataclass

from harness.record import Cost, Record
from results.cells import Findings
from results.resolve import Pretraining, Resolved


@dataclass(frozen=True, kw_only=True)
class RowCost:
    """One pretraining of a row, mean over its runs (seeds), and what evaluating it took."""

    row: int
    epochs: int
    runs: int
    hardware: str  # "32 × Tesla V100-SXM2-32GB"
    hours_per_100_epochs: float | None  # wall clock
    gpu_hours: float | None  # of all GPUs; 0 on CPU
    process_hours: float | None  # of all processes, on GPUs or not
    images_per_s: float | None  # over all processes
    peak_memory_gb: float | None  # of one GPU, or of one process on CPU
    evaluation_hours: float  # wall clock, of all evaluations together
    evaluation_gpu_hours: float


def row_costs(resolved: Resolved, findings: Findings) -> list[RowCost]:
    """Every row's pretrainings that have a record with a cost, in the table's order."""
    groups: dict[tuple[int, str, int], dict[str, Record]] = {}
    for jobs in resolved.cells:
        for key in jobs.evaluations:
            evaluation = resolved.evaluations[key]
            record = findings.records.get(findings.record_of(evaluation) or "")
            if record is not None and record.cost is not None and not record.diverged:
                p = resolved.pretrainings[evaluation.pretraining]
                place = (jobs.cell.row, p.recipe, p.epochs)
                groups.setdefault(place, {})[key] = record
    return [_row_cost(place[0], found, resolved) for place, found in groups.items()]


def _row_cost(row: int, records: dict[str, Record], resolved: Resolved) -> RowCost:
    runs: dict[str, Cost] = {}
    trained: Pretraining | None = None
    for key, record in records.items():
        trained = resolved.pretrainings[resolved.evaluations[key].pretraining]
        if record.pretrain_cost is not None and trained.epochs:
            runs[trained.key] = record.pretrain_cost
    assert trained is not None
    costs = list(runs.values())
    evaluations = [record.cost for record in records.values() if record.cost is not None]
    hours = _mean(cost.seconds / 3600 for cost in costs)
    return RowCost(
        row=row,
        epochs=trained.epochs,
        runs=len({resolved.evaluations[key].pretraining for key in records}),
        hardware=", ".join(dict.fromkeys(cost.where for cost in costs)),
        hours_per_100_epochs=hours and hours * 100 / trained.epochs,
        gpu_hours=_mean(cost.gpu_hours for cost in costs),
        process_hours=_mean(cost.seconds / 3600 * cost.processes for cost in costs),
        images_per_s=_mean(c.images_per_s for c in costs if c.images_per_s is not None),
        peak_memory_gb=_mean(c.peak_memory_bytes / 1e9 for c in costs if c.peak_memory_bytes),
        evaluation_hours=sum(cost.seconds for cost in evaluations) / 3600,
        evaluation_gpu_hours=sum(cost.gpu_hours for cost in evaluations),
    )


def _mean(values: Iterable[float]) -> float | None:
    found = list(values)
    return statistics.fmean(found) if found else None
