"""A table of the report: ours, the paper's, their difference and its status, cell by cell."""

from __future__ import annotations

from collections.abc import Iterator

from harness.scale import Scale
from results.cells import CellResult
from results.markup import caption, element, items, scrolling, text
from results.provenance import record_id
from results.render import MARKS, Drawing, cell_texts, run_texts, tolerance

_MEASURES = ("Ours", "Paper", "Δ", "Status")
_NO_RECORD = "no record yet"  # what "not run" says already


def scale_in_words(scale: Scale) -> str:
    """The scale, and that another one than the papers' shows other experiments."""
    verdict = "" if scale.is_paper else ", not the papers' experiments"
    return f"scale {scale.name}{verdict}"


def table_section(drawing: Drawing) -> str:
    """A table with its source, the notes of its cells and its footnotes."""
    name = table_id(drawing)
    reasons = _reasons(drawing)
    notes = [
        element("li", text(reason), id=f"{name}-note-{number}", tabindex=-1)
        for reason, number in reasons.items()
    ]
    statuses = {result.status for result in drawing.results}
    lines = [tolerance(drawing)] if statuses & {"match", "gap"} else []
    parts = [
        element("h3", text(drawing.table.title)),
        element("p", text(f"Source: {drawing.table.source}.")),
        scrolling(name, _table(drawing, reasons)),
        element("p", "Notes:") + element("ol", "\n".join(notes)) if notes else "",
        items([*lines, *drawing.table.footnotes]),
    ]
    return element("section", "\n".join(parts))


def _table(drawing: Drawing, reasons: dict[str, int]) -> str:
    table = drawing.table
    line = f"{table.title}: ours beside the paper's, {scale_in_words(drawing.scale)}"
    plain = len(table.fields) + 1
    groups = [element("colgroup", span=plain)]
    groups += [element("colgroup", span=len(_MEASURES)) for _ in table.columns]
    return element(
        "table",
        caption(table_id(drawing), line),
        *groups,
        _head(drawing),
        element("tbody", "\n".join(_rows(drawing, reasons))),
        id=table_id(drawing),
        class_="sortable",
    )


def _head(drawing: Drawing) -> str:
    """Two rows of headings: what is measured, and below it ours, the paper's, Δ and status."""
    fields = ["Method", *drawing.table.fields]
    upper = [
        element("th", text(field), scope="col", rowspan=2, data_column=i, data_name=field)
        for i, field in enumerate(fields)
    ]
    lower = []
    for number, column in enumerate(drawing.table.columns):
        label = column.label + _unit(drawing, number)
        upper.append(
            element("th", text(label), scope="colgroup", colspan=len(_MEASURES), class_="first")
        )
        for i, measure in enumerate(_MEASURES):
            place = len(fields) + number * len(_MEASURES) + i
            named = {"data_column": place, "data_name": f"{column.label}: {measure}"}
            style = None if i else "first"
            lower.append(element("th", text(measure), scope="col", class_=style, **named))
    return element("thead", element("tr", *upper), element("tr", *lower))


def _unit(drawing: Drawing, column: int) -> str:
    """A column's unit and, unless more is better, its direction; "" if cells differ."""
    found = {
        (result.unit, result.higher_is_better)
        for result in drawing.results
        if result.cell.column == column and result.wanted
    }
    if len(found) != 1:
        return ""
    unit, higher = found.pop()
    parts = [unit] if higher else [unit, "less is better"]
    return f" ({', '.join(part for part in parts if part)})"


def _rows(drawing: Drawing, reasons: dict[str, int]) -> Iterator[str]:
    by_row: dict[int, list[CellResult]] = {}
    for result in drawing.results:
        by_row.setdefault(result.cell.row, []).append(result)
    for number, results in by_row.items():
        row = drawing.table.rows[number]
        fields = [element("td", text(field)) for field in row.fields]
        cells = [_cell(drawing, result, reasons) for result in results]
        yield element("tr", element("th", text(row.label), scope="row"), *fields, *cells)


def _cell(drawing: Drawing, result: CellResult, reasons: dict[str, int]) -> str:
    """Ours, the paper's, their difference and the status."""
    shown = cell_texts(result)
    status = element("span", text(result.status), class_=f"status {result.status.split()[0]}")
    if note := reasons.get(_reason(result)):
        link = element("a", f"note {note}", href=f"#{table_id(drawing)}-note-{note}")
        status += f" ({link})"
    return "".join(
        [
            element(
                "td",
                _ours(result),
                id=cell_id(drawing, result),
                class_="number first",
                data_sort=_sorted_as(result.mean),
            ),
            element(
                "td",
                text(shown.paper),
                class_="number",
                data_sort=_sorted_as(result.published.value),
            ),
            element("td", text(shown.delta), class_="number", data_sort=_sorted_as(result.delta)),
            element("td", status),
        ]
    )


def _ours(result: CellResult) -> str:
    """Our number, which leads to its record, and how sure it is."""
    if not result.records:
        return ""
    shown = cell_texts(result)
    number = (shown.ours or "record") + MARKS.get(result.status, "")
    addresses = [f"#{record_id(key)}" for key in result.records]
    done = shown.runs if result.n < result.wanted else ""
    certainty = [shown.interval, f"{done} runs" if done else ""]
    parts = [element("a", text(number), href=addresses[0])]
    parts += [element("small", text(part)) for part in certainty if part]
    if len(addresses) > 1:
        parts.append(_runs(result, addresses))
    return " ".join(parts)


def _runs(result: CellResult, addresses: list[str]) -> str:
    """How many runs a number is the mean of; unfolded, each with its seed and its record."""
    runs = [
        element("li", element("a", text(run), href=address))
        for run, address in zip(run_texts(result), addresses, strict=True)
    ]
    return element("details", element("summary", f"n = {result.n}"), element("ul", *runs))


def _sorted_as(value: float | None) -> str:
    return "" if value is None else repr(value)


def _reasons(drawing: Drawing) -> dict[str, int]:
    """Every reason that a table's cells give, numbered from 1."""
    found = dict.fromkeys(reason for r in drawing.results if (reason := _reason(r)))
    return {reason: number for number, reason in enumerate(found, start=1)}


def _reason(result: CellResult) -> str:
    """A cell's reason where its status doesn't say as much."""
    told = result.status in ("other scale", "stale") and not result.diverged
    return "" if told or result.reason == _NO_RECORD else result.reason


def table_id(drawing: Drawing) -> str:
    """The id of a table within the page."""
    return f"table-{drawing.table.name.replace('/', '_')}"


def cell_id(drawing: Drawing, result: CellResult) -> str:
    """The id of the place that shows our number of a cell."""
    return f"{table_id(drawing)}-{result.cell.row}-{result.cell.column}"
