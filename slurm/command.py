"""What reproduce.py does with its arguments: plan, run, draw, explain."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from harness.errors import UserError
from harness.record import Record, load_records
from harness.scale import Scale, default_scale, find_scale
from results import render
from results.catalog import find_cell, find_tables
from results.cells import CellResult, Findings, cell_results
from results.costs import row_costs
from results.resolve import Resolved, resolve
from results.table import Table
from results.why import trace
from slurm import ledger, monitor
from slurm.arguments import Arguments
from slurm.plan import (
    Plan,
    describe_costs,
    describe_jobs,
    describe_plan,
    describe_published,
    estimate_costs,
    make_plan,
)
from slurm.sites import find_site
from slurm.state import Line, describe_cells, look
from slurm.submit import Places, dispatch, pin_threads

MODES = ("plan", "status", "watch", "cancel", "why", "render", "cost")  # each instead of running


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

    def drawings(self, findings: Findings) -> Iterator[render.Drawing]:
        """Every table, ready to be drawn."""
        for table, resolved, results in self.results(findings):
            yield render.Drawing(
                table=table,
                scale=self.scale,
                resolved=resolved,
                results=results,
                records=self.args.records.resolve(),
                folder=self.args.out.resolve(),
            )

    def lines(self) -> dict[str, list[Line]]:
        """What each cell of every table is doing now."""
        findings = self.findings()
        now = look(self.args.runs, findings)
        return {
            table.name: describe_cells(table, resolved, results, now)
            for table, resolved, results in self.results(findings)
        }

    @property
    def keys(self) -> set[str]:
        """Of every pretraining and evaluation of these tables."""
        return {key for _, r in self.tables for key in (*r.pretrainings, *r.evaluations)}


def run(args: Arguments) -> int:
    """Do what the arguments ask for; returns the exit status."""
    request = make_request(args)
    action = _only(request)
    if action is not None:
        action()
        return 0
    failed = run_missing(request)
    show_tables(request)
    return 1 if failed else 0


def _only(request: Request) -> Callable[[], object] | None:
    """What to do instead of running, if anything."""
    args = request.args
    why, keys = args.why, request.keys
    actions: list[tuple[bool, Callable[[], object]]] = [
        (args.plan, lambda: show_plan(request)),
        (args.status, lambda: monitor.show(request.lines(), request.scale.name)),
        (args.watch, lambda: monitor.watch(request.lines)),
        (args.cancel, lambda: print(monitor.cancel(args.runs, keys))),
        (why is not None, lambda: show_origin(request, *(why or ("", "")))),
        (args.render, lambda: show_tables(request)),
        (args.cost, lambda: show_costs(request)),
    ]
    return next((action for wanted, action in actions if wanted), None)


def make_request(args: Arguments) -> Request:
    """Check the arguments and resolve the tables.

    Raises:
        UserError: An unknown table or scale, or options that exclude each other.
    """
    modes = [name for name in MODES if getattr(args, name)]
    if len(modes) > 1 and modes != ["render", "cost"]:
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


def run_missing(request: Request) -> dict[str, str]:
    """Run every job that is missing; returns the reasons of those that failed."""
    args = request.args
    plan, records = _plan(request)
    site = find_site(args, plan.all_jobs)
    if not plan.jobs:
        print("nothing to run: every cell has its record", file=sys.stderr)
        return {}
    costs = estimate_costs(plan, site, records)
    print(describe_jobs(plan), *describe_costs(costs), sep="\n", file=sys.stderr)
    places = Places(runs=args.runs, records=args.records)
    return dispatch(plan, places, site.cluster or site.name, args.jobs)


def show_plan(request: Request) -> None:
    """Print the missing jobs and what they cost where they would run."""
    plan, records = _plan(request)
    costs = estimate_costs(plan, find_site(request.args, plan.all_jobs), records)
    jobs, *details = describe_plan(costs)
    print("\n".join((jobs, *describe_published(request.tables, records.keys()), *details)))


def _plan(request: Request) -> tuple[Plan, dict[str, Record]]:
    records = load_records(request.args.records)
    tables = [resolved for _, resolved in request.tables]
    return make_plan(tables, records.keys(), request.args.runs), records


def show_tables(request: Request) -> None:
    """Print every table in Markdown and write it, with its details, as Markdown and CSV."""
    for drawing in request.drawings(request.findings()):
        print(render.render_markdown(drawing, details=False))
        for path in render.save(drawing):
            print(path, file=sys.stderr)
    if request.args.cost:
        show_costs(request)


def show_costs(request: Request) -> None:
    """Print what the rows of every table cost and write it as Markdown and CSV."""
    findings = request.findings()
    for drawing in request.drawings(findings):
        costs = row_costs(drawing.resolved, findings)
        print(render.render_costs(drawing, costs))
        for path in render.save_costs(drawing, costs) if costs else ():
            print(path, file=sys.stderr)


def show_origin(request: Request, row: str, column: str) -> None:
    """Print the chain behind one cell."""
    table, cell = find_cell([table for table, _ in request.tables], row, column)
    for drawn, _, results in request.results(request.findings()):
        if drawn is table:
            result = next(result for result in results if result.cell == cell)
            print(trace(table, result, request.args.records))
