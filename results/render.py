"""Tables as Markdown and CSV; the only place where numbers are rounded."""

from __future__ import annotations

import csv
import dataclasses
import io
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from tabulate import tabulate

from harness.files import write_atomically
from harness.scale import Scale
from results.cells import CellResult, Status
from results.costs import RowCost
from results.resolve import Resolved
from results.table import DIVERGENCE, EMPTY, Published, Table

SHOWN: dict[Status, str] = {"other scale": "can't be compared (other scale)", "stale": "stale (†)"}
MARKS: dict[Status, str] = {"stale": "†", "different protocol": "‡"}
COST_LEGEND = (
    "Pretraining: mean over runs, all attempts of each. Hours are wall clock; an image counts once "
    "with all its views. On CPU: hours of its processes, memory of one of them."
)


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """A table with its results, ready to be drawn."""

    table: Table
    scale: Scale
    resolved: Resolved
    results: Sequence[CellResult]
    records: Path  # folder of the records
    folder: Path  # where the drawing will lie: links are relative to it

    @property
    def stem(self) -> str:
        """File name without suffix: "svib_table1.demo"."""
        return f"{self.table.name.replace('/', '_')}.{self.scale.name}"

    def record_path(self, key: str) -> str:
        """A record's file, relative to the drawing."""
        return Path(os.path.relpath(self.records / f"{key}.json", self.folder)).as_posix()


class CellTexts(NamedTuple):
    """A cell in words: "70.3 ± 0.3", "69.2 - 69.7", "2 of 3", "70.0†", "+0.3"."""

    ours: str
    interval: str
    runs: str
    paper: str
    delta: str


def save(drawing: Drawing) -> list[Path]:
    """Write `<table>.<scale>.md` and `.csv`; returns their paths."""
    markdown = drawing.folder / f"{drawing.stem}.md"
    values = drawing.folder / f"{drawing.stem}.csv"
    write_atomically(markdown, render_markdown(drawing))
    write_atomically(values, render_csv(drawing))
    return [markdown, values]


def render_markdown(drawing: Drawing, *, details: bool = True) -> str:
    """The heading, the grid of "ours (paper)", and with `details` one line per cell."""
    parts = [f"# {drawing.table.title}", _source(drawing), _scale_line(drawing), _grid(drawing)]
    parts += [_legend(drawing)]
    if details:
        parts += ["## Cell by cell", _details(drawing)]
    return "\n\n".join(part for part in parts if part) + "\n"


def render_csv(drawing: Drawing) -> str:
    """One line per cell, with everything that the Markdown shows."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(
        [
            *("table", "scale", "row", *[f.lower() for f in drawing.table.fields], "column"),
            *("ours", "sd", "n", "low", "high", "paper", "paper_marks", "delta"),
            *("status", "reason", "records", "unit", "better"),
        ]
    )
    for result in drawing.results:
        row = drawing.table.rows[result.cell.row]
        column = drawing.table.columns[result.cell.column]
        paper = result.published
        writer.writerow(
            [
                *(drawing.table.name, drawing.scale.name, row.label, *row.fields, column.label),
                *(_mean(result), _number(result.sd), result.n),
                *(_number(end) for end in result.interval or (None, None)),
                *(_paper(paper), paper.marks, _signed(result.delta)),
                *(result.status, result.reason),
                " ".join(drawing.record_path(key) for key in result.records),
                *(result.unit, "higher" if result.higher_is_better else "lower"),
            ]
        )
    return text.getvalue()


def save_costs(drawing: Drawing, costs: Sequence[RowCost]) -> list[Path]:
    """Write `<table>.<scale>.cost.md` and `.csv`; returns their paths."""
    markdown = drawing.folder / f"{drawing.stem}.cost.md"
    values = drawing.folder / f"{drawing.stem}.cost.csv"
    write_atomically(markdown, render_costs(drawing, costs))
    write_atomically(values, _costs_csv(drawing, costs))
    return [markdown, values]


def render_costs(drawing: Drawing, costs: Sequence[RowCost]) -> str:
    """What each row cost to pretrain and to evaluate, as far as records tell."""
    scale = drawing.scale
    parts = [f"# {drawing.table.title}: cost", f"Scale: {scale.name} ({scale.about})."]
    if not costs:
        return "\n\n".join([*parts, "No record tells yet what it cost."]) + "\n"
    headings, rows = cost_rows(drawing, costs)
    return "\n\n".join([*parts, _table(rows, headings), f"- {COST_LEGEND}"]) + "\n"


def cost_rows(drawing: Drawing, costs: Sequence[RowCost]) -> tuple[list[str], list[list[str]]]:
    """Headings and, for each cost, the row of texts below them."""
    rows = [
        [
            drawing.table.row_name(cost.row),
            str(cost.epochs),
            str(cost.runs),
            cost.hardware,
            _span(cost.hours_per_100_epochs),
            _hours(cost),
            _number(cost.images_per_s, 0),
            _number(cost.peak_memory_gb),
            _span(cost.evaluation_hours),
        ]
        for cost in costs
    ]
    headings = ["Row", "Epochs", "Runs", "Hardware", "Hours per 100 epochs", "GPU-hours"]
    return [*headings, "images/s", "Peak GB per GPU", "Evaluations, hours"], rows


def _hours(cost: RowCost) -> str:
    if cost.gpu_hours is None or cost.gpu_hours:
        return _span(cost.gpu_hours)
    return f"{_span(cost.process_hours)} (CPU)"


def _span(hours: float | None) -> str:
    return f"{hours:.2g}" if hours is not None and hours < 1 else _number(hours)


def _costs_csv(drawing: Drawing, costs: Sequence[RowCost]) -> str:
    text = io.StringIO()
    names = [field.name for field in dataclasses.fields(RowCost) if field.name != "row"]
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["table", "scale", "row", *names])
    for cost in costs:
        values = [getattr(cost, name) for name in names]
        shown = [f"{v:.4g}" if isinstance(v, float) else "" if v is None else v for v in values]
        row = drawing.table.row_name(cost.row)
        writer.writerow([drawing.table.name, drawing.scale.name, row, *shown])
    return text.getvalue()


def _source(drawing: Drawing) -> str:
    return f"Source: {drawing.table.source}."


def _scale_line(drawing: Drawing) -> str:
    scale = drawing.scale
    if scale.is_paper:
        return f"**Scale: {scale.name}** ({scale.about})."
    trunks = sorted({p.backbone for p in drawing.resolved.pretrainings.values()})
    papers = any(drawing.table.published(c).states_something for c in drawing.table.cells())
    verdict = " These are not the paper's experiments." if papers else ""
    lines = [f"> **Scale: {scale.name.upper()}.{verdict}**"]
    lines += [f"> Ours: {scale.about}; data set {scale.dataset}, {scale.image_size} px."]
    if trunks:
        lines += [f"> Backbones: {', '.join(trunks)}."]
    if papers:
        lines += [
            "> The paper's numbers, in brackets, were measured on ImageNet at full size: "
            "the two can't be compared."
        ]
    return "  \n".join(lines)


def _grid(drawing: Drawing) -> str:
    table = drawing.table
    by_row: dict[int, list[CellResult]] = {}
    for result in drawing.results:
        by_row.setdefault(result.cell.row, []).append(result)
    rows = [
        [table.rows[row].label, *table.rows[row].fields]
        + [_grid_cell(result) for result in results]
        + [_note(table, results)]
        for row, results in by_row.items()
    ]
    headings = ["Method", *table.fields, *[column.label for column in table.columns], ""]
    return _table(rows, headings)


def _note(table: Table, results: Sequence[CellResult]) -> str:
    """Why a row has no numbers of ours, in a few words."""
    if reason := table.rows[results[0].cell.row].reason:
        return reason
    missing = [r for r in results if r.wanted and not r.values and not r.diverged]
    names = ", ".join(table.columns[r.cell.column].label for r in missing)
    if missing and not any(r.values for r in results):
        return "not run"
    return f"not run: {names}" if missing else ""


def _grid_cell(result: CellResult) -> str:
    paper = f"({result.published.text})" if result.published.states_something else ""
    if result.mean is None and not result.is_divergence:
        return paper or (EMPTY if result.published.text == EMPTY else "not run")
    return f"{_ours(result)}{MARKS.get(result.status, '')} {paper}".strip()


def _ours(result: CellResult) -> str:
    sd = f" ± {_number(result.sd)}" if result.sd is not None else ""
    lost = f", {result.diverged} diverged" if result.values and result.diverged else ""
    return _mean(result) + sd + lost


def _mean(result: CellResult) -> str:
    return DIVERGENCE if result.is_divergence else _measured(result.mean, result)


def _measured(value: float | None, result: CellResult) -> str:
    return _number(value) if result.unit == "%" else _span(value)


def _paper(published: Published) -> str:
    return DIVERGENCE if published.diverged else _number(published.value)


def _legend(drawing: Drawing) -> str:
    shown = {result.status for result in drawing.results}
    has_paper = any(result.published.states_something for result in drawing.results)
    lines = []
    if has_paper:
        lines.append("Cells: ours (paper). A number in brackets alone: ours has not been run.")
    if any(result.sd is not None for result in drawing.results):
        lines.append("±: standard deviation over seeds.")
    if "match" in shown or "gap" in shown:
        lines.append(tolerance(drawing))
    if "stale" in shown:
        lines.append("Ours with †: recorded by an older version of the code.")
    if "different protocol" in shown:
        lines.append("Ours with ‡: the paper's number was measured by a different protocol.")
    return "\n".join(f"- {line}" for line in [*lines, *drawing.table.footnotes])


def tolerance(drawing: Drawing) -> str:
    """How far apart a match may be, in a sentence."""
    units: dict[tuple[float, str], None] = {}
    for result in drawing.results:
        if result.wanted:
            unit = "points" if result.unit in ("%", "mAP") else result.unit
            units[result.noise, unit] = None
    noise = ", ".join(f"{value:g} {unit}" for value, unit in units)
    return f"A match differs by at most {noise} or two standard deviations."


def _details(drawing: Drawing) -> str:
    table = drawing.table
    rows = [
        [
            table.row_name(result.cell.row),
            table.columns[result.cell.column].label,
            *cell_texts(result),
            _status(result),
            " ".join(f"[{key}]({drawing.record_path(key)})" for key in result.records),
        ]
        for result in drawing.results
    ]
    headings = ["Row", "Column", "Ours", "95 % interval", "n", "Paper", "Δ", "Status", "Record"]
    return _table(rows, headings)


def cell_texts(result: CellResult) -> CellTexts:
    """What is known about a cell, rounded; "" for what isn't."""
    return CellTexts(
        ours=_ours(result) if result.values or result.diverged else "",
        interval=" - ".join(_number(end) for end in result.interval or ()),
        runs=f"{result.n} of {result.wanted}" if result.wanted else "",
        paper=result.published.text,
        delta=_signed(result.delta),
    )


def run_texts(result: CellResult) -> list[str]:
    """Each run's seed and outcome: "seed 0: 70.1", "seed 1: divergence"."""
    outcomes = (
        DIVERGENCE if run.diverged else _measured(run.value, result) or "no number"
        for run in result.runs
    )
    return [f"seed {run.seed}: {o}" for run, o in zip(result.runs, outcomes, strict=True)]


def _status(result: CellResult) -> str:
    shown = SHOWN.get(result.status, result.status)
    if result.status in ("not run", "different protocol") or result.diverged:
        return f"{shown}: {result.reason.replace('|', '/')}"
    return shown


def _table(rows: list[list[str]], headings: list[str]) -> str:
    return tabulate(rows, headings, tablefmt="pipe", disable_numparse=True)


def _number(value: float | None, digits: int = 1) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def _signed(value: float | None) -> str:
    return "" if value is None else f"{value:+.1f}".replace("-0.0", "+0.0")
