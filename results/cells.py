"""What is known about a cell: our number, the paper's, how they compare."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Literal, NamedTuple

from harness.record import Record
from harness.scale import Scale
from results import measures
from results.resolve import CellJobs, Evaluation, Resolved
from results.table import Cell, Published, Table

Status = Literal[
    "match", "gap", "different protocol", "stale", "measured", "other scale", "not run"
]


class Run(NamedTuple):
    """What one record says of a cell."""

    record: str  # its key
    seed: int  # of the pretraining, or of the evaluation where that is what is repeated
    value: float | None  # in the cell's unit; None where it diverged or tells nothing
    diverged: str = ""  # why it came to nothing


@dataclass(frozen=True, kw_only=True)
class CellResult:
    """One cell of a table, measured or not; numbers are unrounded, in the cell's unit."""

    cell: Cell
    published: Published
    runs: tuple[Run, ...] = ()  # one per seed that has a record
    interval: tuple[float, float] | None = None  # 95 %, over val's images; of a single seed
    wanted: int = 0  # seeds asked for
    status: Status
    reason: str = ""  # why it was not run, or in what the protocol differs
    comparable: bool = True  # measured at the paper's scale
    unit: str = "%"
    higher_is_better: bool = True
    noise: float = 0.5  # less than this is no difference

    @property
    def records(self) -> tuple[str, ...]:
        """Keys of the runs' records."""
        return tuple(run.record for run in self.runs)

    @property
    def values(self) -> tuple[float, ...]:
        """The numbers of the runs that have one."""
        return tuple(run.value for run in self.runs if run.value is not None)

    @property
    def diverged(self) -> int:
        """How many runs came to nothing."""
        return sum(bool(run.diverged) for run in self.runs)

    @property
    def n(self) -> int:
        """How many runs have an outcome: a number, or divergence."""
        return len(self.values) + self.diverged

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

    @property
    def is_divergence(self) -> bool:
        """Whether the outcome is that every run diverged."""
        return bool(self.diverged) and not self.values


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
    failures = [findings.failure_of(e) for e in evaluations if not shown[e.key]]
    found = [(e.seed, findings.records[key]) for e in evaluations if (key := shown[e.key])]
    records = [record for _, record in found]
    runs = tuple(_run(table, jobs, seed, record) for seed, record in found)
    single = len(runs) == 1 and not runs[0].diverged
    result = CellResult(
        cell=jobs.cell,
        published=table.published(jobs.cell),
        runs=runs,
        interval=_interval(records[0], jobs.metric) if single else None,
        wanted=len(evaluations),
        status="not run",
        reason=next((reason for reason in failures if reason), "no record yet"),
        comparable=scale.is_paper,
        unit=jobs.unit,
        higher_is_better=jobs.higher_is_better,
        noise=jobs.noise,
    )
    if not runs:
        return result
    if not result.n:
        missing = f"the records have no {jobs.metric}"
        if measures.is_cost(jobs.metric):
            missing = "the records don't tell what the pretraining took"
        return replace(result, reason=missing)
    if any(own != key for own, key in shown.items() if key):
        return replace(result, status="stale", reason="recorded by an older version of the code")
    end = next((run.diverged for run in runs if run.diverged), "")
    return _compared(table, scale, replace(result, reason=end), records)


def _run(table: Table, jobs: CellJobs, seed: int, record: Record) -> Run:
    end = _divergence(table, jobs, record)
    value = None if end else measures.value_of(record, jobs.metric)
    return Run(record=record.key, seed=seed, value=value, diverged=end)


def _compared(
    table: Table, scale: Scale, result: CellResult, records: Sequence[Record]
) -> CellResult:
    """The status of a cell that has an outcome of ours; its reason says why runs diverged."""
    column = table.columns[result.cell.column]
    if not result.published.states_something:
        return replace(result, status="measured")
    if not scale.is_paper:
        reason = result.reason or f"{scale.name} isn't the paper's scale"
        return replace(result, status="other scale", reason=reason)
    differs = table.rows[result.cell.row].differs.get(column.label, "")
    if measures.is_cost(table.work(result.cell).metric):
        costs = [record.pretrain_cost for record in records]
        others = [measures.other_hardware(cost, table.hardware) for cost in costs]
        differs = differs or next(filter(None, others), "")
    if differs:
        return replace(result, status="different protocol", reason=f"the paper's number: {differs}")
    return replace(result, status="match" if _matches(result) else "gap")


def _divergence(table: Table, jobs: CellJobs, record: Record) -> str:
    """Why a run came to nothing; "" if it didn't."""
    looked_for = table.may_diverge(jobs.cell.column)
    return record.diverged or (measures.collapse(record, jobs.metric) if looked_for else "")


def _interval(record: Record, metric: str) -> tuple[float, float] | None:
    found = record.intervals.get(metric)
    return (found[0], found[1]) if found else None


def _matches(result: CellResult) -> bool:
    """Divergence meets divergence alone; numbers meet within noise or the seeds' spread."""
    if result.published.diverged or result.diverged:
        return result.published.diverged and result.is_divergence
    assert result.delta is not None
    return abs(result.delta) <= max(result.noise, 2 * (result.sd or 0.0))
