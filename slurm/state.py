"""What every cell of a table is doing now."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from results.cells import CellResult, Findings
from results.resolve import Evaluation, Resolved
from results.table import Table
from slurm.jobs import is_locked, lock_path
from slurm.progress import describe_training


@dataclass(frozen=True, kw_only=True)
class Now:
    """What is known about jobs at this moment."""

    runs: Path
    findings: Findings
    queue: Mapping[str, str]  # what `ledger.queued` found


def describe_cells(
    table: Table, resolved: Resolved, results: list[CellResult], now: Now
) -> list[list[str]]:
    """One line (row, column, seed, state) per cell and seed."""
    lines = []
    for result in results:
        place = [table.row_name(result.cell.row), table.columns[result.cell.column].label]
        jobs = resolved.jobs_of(result.cell)
        if jobs is None:
            lines.append([*place, "", f"not run: {result.reason}"])
            continue
        for key in jobs.evaluations:
            evaluation = resolved.evaluations[key]
            lines.append([*place, str(evaluation.seed), describe_job(evaluation, now)])
    return lines


def describe_job(evaluation: Evaluation, now: Now) -> str:
    """recorded, running with its share done, queued, failed with the reason, or missing."""
    if evaluation.key in now.findings.records:
        return "recorded"
    if is_locked(lock_path(now.runs, evaluation.key)):
        return "running: evaluation"
    if is_locked(lock_path(now.runs, evaluation.pretraining)):
        return f"running: pretraining {describe_training(now.runs, evaluation.pretraining)}"
    if evaluation.key in now.queue:
        return "queued"
    reason = now.findings.failure_of(evaluation)
    if reason:
        return f"failed: {reason}"
    if now.findings.record_of(evaluation):
        return "stale: recorded by an older version of the code"
    return "missing"
