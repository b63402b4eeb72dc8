"""SVIB Fig. 3: 20-NN along the training under three schedules of beta."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from tabulate import tabulate

from figures.drawing import COLOURS, OUT, ROOT, Drawn, NotRunError, canvas, main
from harness.record import load_records
from harness.scale import Scale, default_scale, find_scale
from results.catalog import find_tables
from results.cells import CellResult, Findings, cell_results
from results.resolve import Resolved, resolve
from results.table import DIVERGENCE, Table

TABLE = "svib/beta"


@dataclass(frozen=True, kw_only=True)
class AlongTraining:
    """20-NN after 20, 40, 60, 80 and 100 % of a training, under three schedules of beta."""

    scale: str | None = None
    """paper, cifar10, cifar10-mini or demo; by default paper where there is an ImageNet under
    DATA_ROOT, else demo."""
    seeds: int | None = None
    """Runs per point; by default the scale's own number."""
    runs: Path = ROOT / "runs"
    """Folder of the runs, where resolved plans are kept."""
    records: Path = ROOT / "results" / "records"
    """Folder of the records."""
    out: Path = OUT
    """Gets along_training.<scale>.png and .svg."""


class Point(NamedTuple):
    """One evaluation of a training on its way, or the mean over seeds, in percent."""

    done: int  # percent of the training's steps
    ours: float | None  # None: not run, or diverged
    low: float  # of ours: mean - sd over seeds, or of one seed the bootstrap interval's end
    high: float
    paper: float | None  # at the paper's scale alone
    diverged: bool = False


class Line(NamedTuple):
    """A row of the table."""

    label: str
    points: tuple[Point, ...]


def make(args: AlongTraining) -> Drawn:
    """Read the records and draw.

    Raises:
        UserError: An unknown scale, or nothing has been recorded.
    """
    scale = find_scale(args.scale or default_scale())
    (table,) = find_tables((TABLE,))
    resolved = resolve(table, scale, seeds=args.seeds, fill=False, cache=args.runs / ".plans")
    findings = Findings(records=load_records(args.records))
    found = lines(table, scale, cell_results(table, scale, resolved, findings))
    if not any(point.ours is not None or point.diverged for line in found for point in line.points):
        raise NotRunError(
            f"{args.records} has no record of {TABLE} at the {scale.name} scale; run python"
            f" reproduce.py {TABLE} --scale {scale.name} first"
        )
    return Drawn(
        draw(found, epochs_of(resolved)),
        "along_training",
        title="20-NN during SVIB's training by schedule of β",
        description=_in_words(found),
        scale=scale.name,
        text=describe(found),
    )


def epochs_of(resolved: Resolved) -> int:
    """Of the pretrainings, which all have the same number."""
    (epochs,) = {pretraining.epochs for pretraining in resolved.pretrainings.values()}
    return epochs


def lines(table: Table, scale: Scale, results: Iterable[CellResult]) -> list[Line]:
    """Every row of the table as points over its columns."""
    points: dict[int, list[Point]] = {row: [] for row in range(len(table.rows))}
    for result in results:
        ours = result.mean
        low, high = result.interval or (ours or 0.0, ours or 0.0)
        if ours is not None and result.sd is not None:
            low, high = ours - result.sd, ours + result.sd
        points[result.cell.row].append(
            Point(
                done=table.columns[result.cell.column].after,
                ours=ours,
                low=low,
                high=high,
                paper=result.published.value if scale.is_paper else None,
                diverged=result.is_divergence,
            )
        )
    return [Line(table.rows[row].label, tuple(found)) for row, found in points.items()]


def describe(found: Sequence[Line]) -> str:
    """The numbers, a row per schedule."""
    rows = [(line.label, *map(_number, line.points)) for line in found]
    header = ("schedule", *(f"{point.done} %" for point in found[0].points))
    return tabulate(rows, header, disable_numparse=True)


def _number(point: Point) -> str:
    if point.ours is None:
        return DIVERGENCE if point.diverged else "not run"
    return f"{point.ours:.1f}"


def _in_words(found: Sequence[Line]) -> str:
    moments = ", ".join(str(point.done) for point in found[0].points)
    curves = "; ".join(f"{line.label}: {', '.join(map(_number, line.points))}" for line in found)
    return f"A line per schedule, top-1 in percent after {moments} % of the steps. {curves}."


def draw(found: Sequence[Line], epochs: int) -> Any:
    """The figure: a line per schedule; the paper's numbers, where comparable, as crosses.

    Args:
        found: What to draw; points that were not run are left out.
        epochs: Of the whole training, for the axis.
    """
    figure = canvas(5.6, 3.8)
    axes = figure.subplots()
    for order, line in enumerate(found):
        colour = COLOURS[order % len(COLOURS)]
        run = [point for point in line.points if point.ours is not None]
        ours = [point.ours or 0.0 for point in run]
        spread = [
            [max(value - point.low, 0) for value, point in zip(ours, run, strict=True)],
            [max(point.high - value, 0) for value, point in zip(ours, run, strict=True)],
        ]
        lost = [point.done for point in line.points if point.diverged]
        label = line.label + (f" (diverged at {lost[0]} %)" if lost else "")
        axes.errorbar(
            [point.done * epochs / 100 for point in run],
            ours,
            yerr=spread,
            fmt="o-",
            # thinner and thinner: lines that fall on each other are all seen
            markersize=9 - 2.5 * order,
            linewidth=4.5 - 1.5 * order,
            elinewidth=1,
            color=colour,
            label=label,
        )
        printed = [point for point in line.points if point.paper is not None]
        if printed:
            axes.plot(
                [point.done * epochs / 100 for point in printed],
                [point.paper for point in printed],
                "x",
                color=colour,
                label=f"{line.label}, the paper's",
            )
    axes.set_xticks([point.done * epochs / 100 for point in found[0].points])
    axes.set_xlim(left=0)
    axes.set_xlabel("epoch")
    axes.set_ylabel("20-NN, top-1 in %")
    axes.legend(fontsize=8)
    return figure


if __name__ == "__main__":
    main(AlongTraining, make)
