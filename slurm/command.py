"""What reproduce.py does with its arguments: plan, run, draw, explain."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path

from tabulate import tabulate

from harness.errors import UserError
from harness.record import load_records
from harness.scale import Scale, find_scale
from results import render
from results.catalog import find_cell, find_tables
from results.cells import CellResult, Findings, cell_results
from results.resolve import Resolved, resolve
from results.table import Table
from results.why import trace
from slurm import ledger
from slurm.arguments import Arguments
from slurm.clusters import choose
from slurm.local import slots
from slurm.plan import Plan, describe_plan, make_plan
from slurm.state import Now, describe_cells
from slurm.submit import Places, dispatch, pin_threads


@dataclass(frozen=True, kw_only=True)
class Request:
    """The tables asked for, resolved."""

    args: Arguments
    scale: Scale
    tables: list[tuple[Table, Resolved]]

    def findings(self) -> Findings:
        """Records and failures as they are now."""
        args = self.args
        return Findings(records=load_records(args.records), failures=ledger.failures(args.runs))

    def results(self, findings: Findings) -> list[tuple[Table, Resolved, list[CellResult]]]:
        """Every table with the state of its cells."""
        return [
            (table, resolved, cell_results(table, self.scale, resolved, findings))
            for table, resolved in self.tables
        ]


def run(args: Arguments) -> int:
    """Do what the arguments ask for; returns the exit status."""
    request = make_request(args)
    if args.why:
        show_origin(request, *args.why)
        return 0
    if args.status:
        show_status(request)
        return 0
    if args.render:
        show_tables(request)
        return 0
    failed = run_missing(request)
    if args.plan:
        return 0
    show_tables(request)
    return 1 if failed else 0


def make_request(args: Arguments) -> Request:
    """Check the arguments and resolve the tables.

    Raises:
        UserError: An unknown table or scale, or options that exclude each other.
    """
    modes = [name for name in ("plan", "status", "render", "why") if getattr(args, name)]
    if len(modes) > 1:
        raise UserError(f"--{' and --'.join(modes)} exclude each other; give one of them.")
    for name in ("seeds", "jobs"):
        value = getattr(args, name)
        if value is not None and value < 1:
            raise UserError(f"--{name} {value} must be at least 1.")
    tables = find_tables(args.tables)
    if not tables:
        raise UserError("name a table, for example: python reproduce.py table1")
    scale = find_scale(args.scale or default_scale())
    pin_threads()
    cache = args.runs / ".plans"
    found = [
        (table, resolve(table, scale, seeds=args.seeds, fill=args.fill, cache=cache))
        for table in tables
    ]
    return Request(args=args, scale=scale, tables=found)


def default_scale() -> str:
    """The papers' scale where ImageNet is, else the demo, saying so."""
    # Only whether the folder is there: harness/data.py, which reads it, imports torch.
    root = os.environ.get("DATA_ROOT")
    if root and (Path(root) / "imagenet").is_dir():
        return "paper"
    print(
        "no ImageNet under DATA_ROOT: running at the demo scale, whose numbers can't be compared "
        "with the papers' (--scale chooses another)",
        file=sys.stderr,
    )
    return "demo"


def run_missing(request: Request) -> dict[str, str]:
    """Plan, and unless only the plan is asked for, run; returns the reasons of failed jobs."""
    args = request.args
    records = load_records(args.records)
    plan = make_plan([resolved for _, resolved in request.tables], records.keys(), args.runs)
    cluster = choose(args.cluster)
    if args.plan:
        print("\n".join(describe_plan(plan, records, jobs_at_once(plan, cluster, args.jobs))))
        return {}
    if not plan.jobs:
        print("nothing to run: every cell has its record", file=sys.stderr)
        return {}
    lines = describe_plan(plan, records, jobs_at_once(plan, cluster, args.jobs))
    print(lines[0], lines[-1], sep="\n", file=sys.stderr)
    places = Places(runs=args.runs, records=args.records)
    return dispatch(plan, places, cluster, args.jobs)


def jobs_at_once(plan: Plan, cluster: str, limit: int | None) -> int | None:
    """How many jobs run side by side; None where a cluster decides."""
    if cluster == "debug":
        return 1
    return min(plan.jobs or 1, len(slots(limit))) if cluster == "local" else None


def show_tables(request: Request) -> None:
    """Print every table in Markdown and write it, with its details, as Markdown and CSV."""
    args = request.args
    for table, resolved, results in request.results(request.findings()):
        drawing = render.Drawing(
            table=table,
            scale=request.scale,
            resolved=resolved,
            results=results,
            records=args.records.resolve(),
            folder=args.out.resolve(),
        )
        print(render.render_markdown(drawing, details=False))
        for path in render.save(drawing):
            print(path, file=sys.stderr)


def show_status(request: Request) -> None:
    """Print a line per cell and seed: recorded, running, queued, failed or missing."""
    args = request.args
    findings = request.findings()
    now = Now(runs=args.runs, findings=findings, queue=ledger.queued(args.runs))
    for table, resolved, results in request.results(findings):
        lines = describe_cells(table, resolved, results, now)
        print(f"{table.name} at scale {request.scale.name}")
        print(tabulate(lines, ["Row", "Column", "Seed", "State"], disable_numparse=True), "\n")


def show_origin(request: Request, row: str, column: str) -> None:
    """Print the chain behind one cell."""
    table, cell = find_cell([table for table, _ in request.tables], row, column)
    for drawn, _, results in request.results(request.findings()):
        if drawn is table:
            result = next(result for result in results if result.cell == cell)
            print(trace(table, result, request.args.records))
