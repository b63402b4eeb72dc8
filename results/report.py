"""One self-contained HTML page of tables, their records, costs and environments."""

from __future__ import annotations

import base64
import hashlib
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from string import Template

from harness.files import write_atomically
from harness.scale import Scale
from results.cells import Findings, Status
from results.costs import row_costs
from results.markup import element, grid, text
from results.provenance import (
    Place,
    render_environments,
    render_figures,
    render_record,
)
from results.render import COST_LEGEND, Drawing, cost_rows
from results.report_table import cell_id, scale_in_words, table_id, table_section

TEMPLATE = Path(__file__).with_name("report.html")
MEANINGS: dict[Status, str] = {
    "match": "ours and the paper's differ by no more than noise (below each table)",
    "gap": "they differ by more than noise",
    "different protocol": "‡ the paper's number was measured by another protocol, in a note",
    "stale": "† ours was recorded by an older version of the code; running it again replaces it",
    "measured": "ours alone: the paper has no number here",
    "other scale": "ours was not measured at the paper's scale and can't be compared",
    "not run": "ours has no record yet, or can't be run for the reason in a note",
}


@dataclass(frozen=True, kw_only=True)
class Report:
    """What a page shows."""

    scale: Scale
    drawings: Sequence[Drawing]
    findings: Findings
    figures: Sequence[Path] = ()  # PNGs

    @cached_property
    def places(self) -> dict[str, list[Place]]:
        """The cells that show each record, by its key, in the order of the page."""
        found: dict[str, list[Place]] = {}
        for drawing in self.drawings:
            for result in drawing.results:
                name = f"{drawing.table.title}: {drawing.table.cell_name(result.cell)}"
                for key in result.records:
                    found.setdefault(key, []).append(Place(cell_id(drawing, result), name))
        return found

    @property
    def title(self) -> str:
        """Of the page; it says the scale."""
        return f"Reproduced tables: {scale_in_words(self.scale)}"


def save_report(report: Report, path: Path) -> Path:
    """Write the page; links to records are relative to the drawings' folder."""
    write_atomically(path, render_report(report))
    return path


def render_report(report: Report) -> str:
    """The whole page: nothing is loaded, and what a record holds can't run or load anything."""
    template = TEMPLATE.read_text(encoding="utf-8")
    return Template(template).substitute(
        policy=_policy(template), title=text(report.title), content="\n".join(_content(report))
    )


def _policy(template: str) -> str:
    """What the browser may do: the template's own style and script, and embedded images."""
    rules = ["default-src 'none'", "img-src data:", "base-uri 'none'", "form-action 'none'"]
    for name in ("style", "script"):
        found = re.search(f"<{name}>(.*?)</{name}>", template, re.DOTALL)
        assert found, name
        digest = hashlib.sha256(found[1].encode()).digest()
        rules.append(f"{name}-src 'sha256-{base64.b64encode(digest).decode()}'")
    return "; ".join(rules)


def _content(report: Report) -> Iterator[str]:
    yield element("header", element("h1", "Reproduced tables"), _banner(report.scale))
    sections = {
        "tables": ("Tables", "\n".join(table_section(d) for d in report.drawings)),
        "figures": ("Figures", render_figures(report.figures)),
        "cost": ("Cost", _costs(report)),
        "environment": ("Environment", _environments(report)),
        "records": ("Records", _records(report)),
    }
    shown = {name: part for name, part in sections.items() if part[1]}
    yield _contents(report, {name: heading for name, (heading, _) in shown.items()})
    yield _legend()
    parts = (
        element("section", element("h2", heading), body, id=name, tabindex=-1)
        for name, (heading, body) in shown.items()
    )
    yield element("main", "\n".join(parts))


def _banner(scale: Scale) -> str:
    if scale.is_paper:
        line = f"{element('strong', 'Scale: paper')} ({text(scale.about)})."
        return element("p", line, class_="banner", role="note")
    verdict = element(
        "strong", text(f"Scale: {scale.name.upper()}. These are not the papers' experiments.")
    )
    ours = f"Ours: {scale.about}; data set {scale.dataset}, {scale.image_size} px. "
    theirs = "The papers' numbers were measured on ImageNet at full size: they can't be compared."
    return element("p", verdict, " ", text(ours + theirs), class_="banner other", role="note")


def _contents(report: Report, sections: dict[str, str]) -> str:
    tables = [
        element("li", element("a", text(d.table.title), href=f"#{table_id(d)}"), text(_state(d)))
        for d in report.drawings
    ]
    links = [element("li", element("a", text(h), href=f"#{n}")) for n, h in sections.items()]
    links[0] = links[0].replace("</li>", element("ul", "\n".join(tables)) + "</li>")
    return element("nav", element("ul", "\n".join(links)), aria_label="Contents")


def _state(drawing: Drawing) -> str:
    """How far a table is: ": 3 of 8 cells have ours (2 match, 1 gap)"."""
    wanted = sum(bool(result.wanted) for result in drawing.results)
    found = Counter(r.status for r in drawing.results if r.n)
    kinds = ", ".join(f"{count} {status}" for status, count in found.items())
    return f": {found.total()} of {wanted} cells have ours" + (f" ({kinds})" if kinds else "")


def _legend() -> str:
    entries = "\n".join(
        element("dt", text(status)) + element("dd", text(meaning))
        for status, meaning in MEANINGS.items()
    )
    more = (
        "Δ is ours minus the paper's. Ours is the mean over n seeds ± their sample standard "
        "deviation; n unfolds to every seed's number. Small numbers are a 95 % interval over the "
        "images of one seed, or how many of the runs are done. Marks behind the papers' numbers "
        "are the papers' own. Our numbers lead to their records."
    )
    heading = element("h2", "Legend")
    return element("section", heading, element("dl", entries), element("p", text(more)))


def _costs(report: Report) -> str:
    tables = []
    for drawing in report.drawings:
        if costs := row_costs(drawing.resolved, report.findings):
            caption = f"{drawing.table.title}: cost, {scale_in_words(report.scale)}"
            tables.append(grid(f"{table_id(drawing)}-cost", caption, *cost_rows(drawing, costs)))
    legend = element("p", text(COST_LEGEND if tables else "No record tells yet what it cost."))
    return "\n".join([legend, *tables])


def _environments(report: Report) -> str:
    records = [report.findings.records[key] for key in report.places]
    return render_environments(records) if records else element("p", "There are no records yet.")


def _records(report: Report) -> str:
    if not report.drawings or not report.places:
        return ""
    path_of = report.drawings[0].record_path
    return "\n".join(
        render_record(report.findings.records[key], path_of(key), places)
        for key, places in report.places.items()
    )
