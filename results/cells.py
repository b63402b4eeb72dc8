"""What is known about a cell: our number, the paper's, how they compare."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Literal

from harness.record import Record
from harness.scale import Scale
from results.resolve import CellJobs, Evaluation, Resolved
from results.table import Cell, Published, Table

TOLERANCE = 0.5  # points: the seeds of ImageNet runs spread by 0.1 to 0.3

Status = Literal[
    "match", "gap", "different protocol", "stale", "measured", "other scale", "not run"
]


@dataclass(frozen=True, kw_only=True)
class CellResult:
    """One cell of a table, measured or not; numbers are percent, unrounded."""

    cell: Cell
    published: Published
    values: tuple[float, ...] = ()  # one per seed that has a record
    interval: tuple[float, float] | None = None  # 95 %, over val's images; of a single seed
    wanted: int = 0  # seeds asked for
    status: Status
    reason: str = ""  # why it was not run, or in what the protocol differs
    records: tuple[str, ...] = ()  # keys
    comparable: bool = True  # measured at the paper's scale

    @property
    def mean(self) -> float | None:
        """Mean over seeds."""
        return statistics.fmean(self.values) if self.values else None

    @property
    def sd(self) -> float | None:
        """Sample standard deviation over seeds; None below two."""
        return statistics.stdev(self.values) if len(self.values) > 1 else None

    @property
    def delta(self) -> float | None:
        """Ours minus the paper's; None unless both exist and were measured at one scale."""
        if self.mean is None or self.published.value is None or not self.comparable:
            return None
        return self.mean - self.published.value


@dataclass(frozen=True, kw_only=True)
class Findings:
    """What earlier runs left: records, and the reasons of the jobs that failed."""

    records: Mapping[str, Record]  # by key
    failures: Mapping[str, str] = field(default_factory=dict)  # job's key → reason

    @cached_property
    def _by_slot(self) -> dict[str, str]:
        return {record.slot: key for key, record in sorted(self.records.items())}

    def record_of(self, evaluation: Evaluation) -> str | None:
        """Key of the record that shows an evaluation: its own, or an older version's."""
        if evaluation.key in self.records:
            return evaluation.key
        return self._by_slot.get(evaluation.slot)

    def failure_of(self, evaluation: Evaluation) -> str | None:
        """Why an evaluation or the pretraining before it failed."""
        if evaluation.pretraining in self.failures:
            return f"pretraining failed: {self.failures[evaluation.pretraining]}"
        return self.failures.get(evaluation.key)


def cell_results(
    table: Table, scale: Scale, resolved: Resolved, findings: Findings
) -> list[CellResult]:
    """Every cell of a table, row by row."""
    found = []
    for cell in table.cells():
        jobs = resolved.jobs_of(cell)
        if jobs is None:
            found.append(_not_runnable(table, cell))
        else:
            evaluations = [resolved.evaluations[key] for key in jobs.evaluations]
            found.append(_result(table, scale, jobs, evaluations, findings))
    return found


def _not_runnable(table: Table, cell: Cell) -> CellResult:
    row = table.rows[cell.row]
    return CellResult(
        cell=cell,
        published=table.published(cell),
        status="not run",
        reason=row.reason or "the paper has no number here",
    )


def _result(
    table: Table,
    scale: Scale,
    jobs: CellJobs,
    evaluations: list[Evaluation],
    findings: Findings,
) -> CellResult:
    shown = {e.key: findings.record_of(e) for e in evaluations}
    keys = tuple(key for key in shown.values() if key)
    failures = [findings.failure_of(e) for e in evaluations if not shown[e.key]]
    result = CellResult(
        cell=jobs.cell,
        published=table.published(jobs.cell),
        values=tuple(findings.records[key].metrics[jobs.metric] for key in keys),
        interval=_interval(findings.records[keys[0]], jobs.metric) if len(keys) == 1 else None,
        wanted=len(evaluations),
        status="not run",
        reason=next((reason for reason in failures if reason), "no record yet"),
        records=keys,
        comparable=scale.is_paper,
    )
    if not keys:
        return result
    column = table.columns[jobs.cell.column].label
    differs = table.rows[jobs.cell.row].differs.get(column, "")
    if any(own != key for own, key in shown.items() if key):
        return replace(result, status="stale", reason="recorded by an older version of the code")
    if result.published.value is None:
        return replace(result, status="measured", reason="")
    if not scale.is_paper:
        return replace(result, status="other scale", reason=f"{scale.name} isn't the paper's scale")
    if differs:
        return replace(result, status="different protocol", reason=f"the paper's number: {differs}")
    return replace(result, status="match" if _matches(result) else "gap", reason="")


def _interval(record: Record, metric: str) -> tuple[float, float] | None:
    found = record.intervals.get(metric)
    return (found[0], found[1]) if found else None


def _matches(result: CellResult) -> bool:
    assert result.delta is not None
    return abs(result.delta) <= max(TOLERANCE, 2 * (result.sd or 0.0))
