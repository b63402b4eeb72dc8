"""Ours against the papers' numbers, and accuracy against what the pretraining took."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import tyro
from tabulate import tabulate

from figures.drawing import COLOURS, OUT, ROOT, Drawn, NotRunError, canvas, main
from harness.record import Cost, load_records
from harness.scale import Scale, default_scale, find_scale
from results.catalog import find_tables
from results.cells import CellResult, Findings, cell_results
from results.resolve import Resolved, resolve
from results.table import Table

MARKERS = "os^"  # where there are more tables than colours
Looks = Mapping[str, Mapping[str, Any]]  # table → colour and marker
MOST_NAMED = 12  # points of the right panel that fit their names


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """Ours against the papers' numbers, cell by cell, and accuracy against the cost of it."""

    tables: tyro.conf.Positional[tuple[str, ...]] = ("all",)
    """As for reproduce.py: all, table1, svib/table1, …"""
    scale: str | None = None
    """paper, cifar10, cifar10-mini or demo; by default paper where there is an ImageNet under
    DATA_ROOT, else demo."""
    metric: str = "linear_top1"
    """Whose cells stand against their cost."""
    runs: Path = ROOT / "runs"
    """Folder of the runs, where resolved plans are kept."""
    records: Path = ROOT / "results" / "records"
    """Folder of the records."""
    out: Path = OUT
    """Gets agreement.<scale>.png and agreement.<scale>.svg."""


class Measured(NamedTuple):
    """A table with its jobs and the state of its cells."""

    table: Table
    resolved: Resolved
    results: Sequence[CellResult]


class Pair(NamedTuple):
    """One cell that both have a number for, in percent."""

    table: str
    name: str
    paper: float
    ours: float
    low: float  # of ours: mean - sd over seeds, or of one seed the bootstrap interval's end
    high: float
    alike: bool  # measured as the paper did, at its scale


class Bought(NamedTuple):
    """One cell's accuracy and what its pretraining took."""

    table: str
    name: str
    hours: float  # wall clock x processes, mean over seeds
    accuracy: float  # percent
    on_gpus: bool


def make(args: Agreement) -> Drawn:
    """Read the records and draw.

    Raises:
        UserError: An unknown table or scale, or no cell that both have a number for.
    """
    scale = find_scale(args.scale or default_scale())
    findings = Findings(records=load_records(args.records))
    measured = list(_measured(args, scale, findings))
    points = pairs(measured)
    if not points:
        raise NotRunError(
            f"{args.records} has no record at the {scale.name} scale of a cell of"
            f" {', '.join(args.tables)} with a published number; run python reproduce.py"
            f" {' '.join(args.tables)} --scale {scale.name} first"
        )
    return Drawn(
        draw(points, bought(measured, findings, args.metric), args.metric),
        "agreement",
        title="ours against the papers' numbers, and accuracy against cost",
        description=_in_words(points, args.metric),
        scale=scale.name,
        text=describe(points),
    )


def _measured(args: Agreement, scale: Scale, findings: Findings) -> Iterable[Measured]:
    for table in find_tables(args.tables):
        found = resolve(table, scale, seeds=None, fill=False, cache=args.runs / ".plans")
        yield Measured(table, found, cell_results(table, scale, found, findings))


def pairs(measured: Iterable[Measured]) -> list[Pair]:
    """Every cell in percent that both have a number for; costs are no agreement in percent."""
    found = []
    for table, _, results in measured:
        for result in results:
            paper, ours = result.published.value, result.mean
            if paper is None or ours is None or result.unit != "%":
                continue
            low, high = result.interval or (ours, ours)
            if result.sd is not None:
                low, high = ours - result.sd, ours + result.sd
            alike = result.status in ("match", "gap")
            name = table.cell_name(result.cell)
            found.append(Pair(table.name, name, paper, ours, low, high, alike))
    return found


def bought(measured: Iterable[Measured], findings: Findings, metric: str) -> list[Bought]:
    """Every cell that shows this metric and whose records tell what the pretraining took."""
    found = []
    for table, resolved, results in measured:
        for result in results:
            jobs = resolved.jobs_of(result.cell)
            if jobs is None or jobs.metric != metric or result.mean is None:
                continue
            costs = [findings.records[key].pretrain_cost for key in result.records]
            known: list[Cost] = [cost for cost in costs if cost is not None and cost.seconds > 0]
            if known:
                hours = statistics.fmean(cost.seconds / 3600 * cost.processes for cost in known)
                name = table.row_name(result.cell.row)
                on_gpus = all(cost.gpus for cost in known)
                found.append(Bought(table.name, name, hours, result.mean, on_gpus))
    return list({(point.name, point.hours): point for point in found}.values())


def _in_words(points: Sequence[Pair], metric: str) -> str:
    alike = sum(point.alike for point in points)
    tables = ", ".join(dict.fromkeys(point.table for point in points))
    return (
        f"Left: {len(points)} cells of {tables}, ours over the paper's number, beside the line of "
        f"equality; {alike} of them were measured as the paper did. "
        f"Right: {metric} over the hours of pretraining."
    )


def describe(points: Sequence[Pair]) -> str:
    """How far apart each table's numbers are, those alone that were measured alike."""
    rows = []
    for table in dict.fromkeys(point.table for point in points):
        own = [point for point in points if point.table == table]
        gaps = [abs(point.ours - point.paper) for point in own if point.alike]
        numbers = (f"{statistics.fmean(gaps):.2f}", f"{max(gaps):.2f}") if gaps else ("", "")
        rows.append((table, len(own), len(gaps), *numbers))
    header = ("table", "cells", "comparable", "mean |ours - paper|", "largest")
    return tabulate(rows, header, disable_numparse=True)


def draw(points: Sequence[Pair], costs: Sequence[Bought], metric: str) -> Any:
    """The figure: (a) ours against the paper's, (b) accuracy against cost.

    Filled points were measured as the paper did; hollow ones by another protocol or at another
    scale.
    """
    tables = list(dict.fromkeys(point.table for point in (*points, *costs)))
    looks = {
        table: {"color": COLOURS[n % len(COLOURS)], "marker": MARKERS[n // len(COLOURS)]}
        for n, table in enumerate(tables)
    }
    figure = canvas(11, 4.8)
    left, right = figure.subplots(1, 2)
    _draw_pairs(left, points, looks)
    _draw_costs(right, costs, looks, metric)
    return figure


def _draw_pairs(axes: Any, points: Sequence[Pair], looks: Looks) -> None:
    values = [value for point in points for value in (point.paper, point.low, point.high)]
    ends = [min(values) - 1, max(values) + 1]
    axes.plot(ends, ends, color="0.6", linewidth=1, zorder=0, label="equal")
    for table, look in looks.items():
        own = [point for point in points if point.table == table]
        for alike, label in ((True, table), (False, f"{table}, measured otherwise")):
            shown = [point for point in own if point.alike == alike]
            if not shown:
                continue
            axes.errorbar(
                [point.paper for point in shown],
                [point.ours for point in shown],
                yerr=[
                    [max(point.ours - point.low, 0) for point in shown],
                    [max(point.high - point.ours, 0) for point in shown],
                ],
                **look,
                linestyle="none",
                markersize=4.5,
                elinewidth=1,
                markerfacecolor=look["color"] if alike else "none",
                label=label,
            )
    axes.set_xlim(ends)
    axes.set_ylim(ends)
    axes.set_aspect("equal")
    axes.set_xlabel("paper, %")
    axes.set_ylabel("ours, %")
    axes.set_title("(a) ours against the paper's")
    axes.legend(fontsize=7, loc="upper left", bbox_to_anchor=(1.02, 1.0), borderaxespad=0.0)


def _draw_costs(axes: Any, points: Sequence[Bought], looks: Looks, metric: str) -> None:
    axes.set_title(f"(b) {metric} against the cost of pretraining")
    axes.set_ylabel(f"{metric}, %")
    axes.set_xlabel("GPU-hours" if all(point.on_gpus for point in points) else "process-hours")
    if not points:
        axes.text(0.5, 0.5, "no record tells a cost", ha="center", transform=axes.transAxes)
        return
    axes.set_xscale("log")
    for point in points:
        axes.plot(point.hours, point.accuracy, **looks[point.table], markersize=4.5)
        if len(points) <= MOST_NAMED:
            place = {"xytext": (5, 3), "textcoords": "offset points", "fontsize": 7}
            axes.annotate(point.name, (point.hours, point.accuracy), **place)
    axes.margins(x=0.3)


if __name__ == "__main__":
    main(Agreement, make)
