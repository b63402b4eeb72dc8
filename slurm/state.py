"""What every cell of a table is doing now."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from results.cells import CellResult, Findings
from results.resolve import Evaluation, Resolved
from results.table import Table
from slurm.jobs import is_locked, lock_path
from slurm.ledger import JOBS, RETRIES
from slurm.progress import describe_evaluation, describe_training
from slurm.scheduler import Queued, queue

Kind = Literal["recorded", "running", "queued", "failed", "stale", "missing", "not run"]
ACTIVE: tuple[Kind, ...] = ("running", "queued")


@dataclass(frozen=True, kw_only=True)
class Now:
    """What is known about jobs at this moment."""

    runs: Path
    findings: Findings
    jobs: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # what `submitted` found
    queue: Mapping[str, Queued] = field(default_factory=dict)  # SLURM's id → what it does
    attempts: Mapping[str, int] = field(default_factory=dict)  # of jobs submitted more than once
    silent: bool = False  # whether SLURM was asked and didn't answer

    def queued(self, key: str) -> tuple[str, Queued] | None:
        """SLURM's job for a key, what to call it and its state; None if it doesn't have one."""
        found = [job for job in self.jobs.get(key, ()) if job in self.queue]
        if not found:
            return None
        attempt = f", attempt {self.attempts[key]}" if key in self.attempts else ""
        return f"job {found[-1]}{attempt}", self.queue[found[-1]]


@dataclass(frozen=True, kw_only=True)
class State:
    """What an evaluation is doing, in a word and in a line."""

    kind: Kind
    text: str


@dataclass(frozen=True, kw_only=True)
class Line:
    """The state of one cell and seed."""

    row: str
    column: str
    seed: str
    state: State

    @property
    def cells(self) -> list[str]:
        """Row, column, seed and state, for a grid."""
        return [self.row, self.column, self.seed, self.state.text]


def submitted(runs: Path) -> dict[str, tuple[str, ...]]:
    """Every job that a dispatcher has noted: key → SLURM's ids, "" for one run on this machine.

    A local dispatcher counts while it lives; whether SLURM still has a job, only SLURM knows.
    """
    jobs: dict[str, tuple[str, ...]] = {}
    for path in sorted((runs / JOBS).glob("*/queue.json")):
        alive = is_locked(path.parent / "alive")
        for key, job in json.loads(path.read_text()).items():
            if job or alive:
                jobs[key] = (*jobs.get(key, ()), job)
    return jobs


def look(runs: Path, findings: Findings) -> Now:
    """The state of all jobs: the dispatchers' folders, and one squeue if SLURM has any of them."""
    jobs = submitted(runs)
    found = queue() if any(any(ids) for ids in jobs.values()) else {}
    return Now(
        runs=runs,
        findings=findings,
        jobs=jobs,
        queue=found or {},
        attempts=_attempts(runs),
        silent=found is None,
    )


def _attempts(runs: Path) -> dict[str, int]:
    """How often the jobs that were lost have been submitted; a requeue by SLURM isn't counted."""
    found = (runs / RETRIES).glob("*.json")
    return {path.stem: 1 + len(json.loads(path.read_text())) for path in found}


def describe_cells(
    table: Table, resolved: Resolved, results: Sequence[CellResult], now: Now
) -> list[Line]:
    """One line per cell and seed."""
    lines = []
    for result in results:
        row, column = table.row_name(result.cell.row), table.columns[result.cell.column].label
        jobs = resolved.jobs_of(result.cell)
        if jobs is None:
            state = State(kind="not run", text=f"not run: {result.reason}")
            lines.append(Line(row=row, column=column, seed="", state=state))
            continue
        for key in jobs.evaluations:
            evaluation = resolved.evaluations[key]
            state = describe_job(evaluation, now)
            lines.append(Line(row=row, column=column, seed=str(evaluation.seed), state=state))
    return lines


def summary(lines: Iterable[Line]) -> str:
    """How many cells are in which state: "12 recorded, 3 running, 20 not run"."""
    kinds: tuple[Kind, ...] = ("recorded", "running", "queued", "failed", "stale", "missing")
    counts = {kind: 0 for kind in (*kinds, "not run")}
    for line in lines:
        counts[line.state.kind] += 1
    return ", ".join(f"{count} {kind}" for kind, count in counts.items() if count)


def describe_job(evaluation: Evaluation, now: Now) -> State:
    """What an evaluation, or the pretraining before it, is doing."""
    if evaluation.key in now.findings.records:
        return State(kind="recorded", text="recorded")
    parent = evaluation.pretraining
    own, before = now.queued(evaluation.key), now.queued(parent)
    if _runs(own) or is_locked(lock_path(now.runs, evaluation.key)):
        progress = describe_evaluation(now.runs, parent, evaluation.key)
        return _running(f"evaluation{progress}", own)
    if _runs(before) or is_locked(lock_path(now.runs, parent)):
        return _running(f"pretraining {describe_training(now.runs, parent)}", before)
    if before is not None:
        return State(kind="queued", text=f"queued: pretraining {_waits(before)}")
    if own is not None:
        return State(kind="queued", text=f"queued: {_waits(own)}")
    return _describe_idle(evaluation, now)


def _describe_idle(evaluation: Evaluation, now: Now) -> State:
    """What is known of an evaluation that nothing works on."""
    jobs = now.jobs.get(evaluation.key, ())
    if "" in jobs:
        return State(kind="queued", text="queued: on this machine")
    reason = now.findings.failure_of(evaluation)
    if reason:
        return State(kind="failed", text=f"failed: {reason}")
    if jobs and now.silent:
        return State(kind="queued", text=f"submitted: job {jobs[-1]}; SLURM doesn't answer")
    if now.findings.record_of(evaluation):
        return State(kind="stale", text="stale: recorded by an older version of the code")
    return State(kind="missing", text="missing")


def _runs(job: tuple[str, Queued] | None) -> bool:
    return job is not None and job[1].state in ("RUNNING", "COMPLETING")


def _running(text: str, job: tuple[str, Queued] | None) -> State:
    if job is not None and job[1].state == "COMPLETING":
        text = "ending"
    name = f" ({job[0]})" if job is not None else ""
    return State(kind="running", text=f"running: {text}{name}")


def _waits(job: tuple[str, Queued]) -> str:
    name, found = job
    return f"{name} ({found.reason if found.state == 'PENDING' else found.state})"
