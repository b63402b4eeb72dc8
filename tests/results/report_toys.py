"""A small report, and what a parser sees of a page."""

import dataclasses
from html.parser import HTMLParser
from pathlib import Path

from harness.record import Cost
from harness.scale import Scale
from results.cells import Findings, cell_results
from results.render import Drawing
from results.report import Report
from tests.results import sample

SCALES = {
    "paper": Scale(name="paper", about="as the papers"),
    "demo": Scale(name="demo", about="a few digits", dataset="mnist5k", image_size=28),
}
ENVIRONMENT = {
    "commit": "0123abcd",
    "dirty": False,
    "versions": {"python": "3.11.7", "torch": "2.15.0"},
    "hardware": "x86_64",
    "processes": 1,
    "command": "reproduce.py table9",
    "log": "/logs/1.err",
}


class Page(HTMLParser):
    """Elements with their attributes, enclosing elements and texts."""

    def __init__(self, html: str):
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.parents: list[tuple[str, ...]] = []
        self.texts: list[str] = []
        self._open: list[tuple[str, int]] = []
        self.feed(html)
        assert self._open == []

    def handle_starttag(self, tag, attrs):
        self.parents.append(tuple(name for name, _ in self._open))
        self.elements.append((tag, dict(attrs)))
        self.texts.append("")
        if tag not in ("meta", "img"):
            self._open.append((tag, len(self.texts) - 1))

    def handle_endtag(self, tag):
        assert self._open.pop()[0] == tag

    def handle_data(self, data):
        for _, place in self._open:
            self.texts[place] += data

    def all(self, *tags: str) -> list[tuple[dict[str, str | None], str]]:
        pairs = zip(self.elements, self.texts, strict=True)
        return [(attributes, text) for (tag, attributes), text in pairs if tag in tags]

    def by_id(self, name: str) -> str:
        return next(
            text
            for (_, attributes), text in zip(self.elements, self.texts, strict=True)
            if attributes.get("id") == name
        )


def report(scale="paper", changes=None, figures=(), folder=Path("/folder")) -> Report:
    cost = Cost(seconds=7200, processes=8, gpus=8, gpu_hours=16.0, hardware="V100")
    known = {"environment": ENVIRONMENT, "cost": cost, "pretrain_cost": cost} | (changes or {})
    records = [dataclasses.replace(record, **known) for record in sample.records()]
    findings = Findings(
        records={r.key: r for r in records}, failures={"lin2": "the loss <i>isn't</i> finite"}
    )
    resolved = sample.resolved()
    drawing = Drawing(
        table=sample.TABLE,
        scale=SCALES[scale],
        resolved=resolved,
        results=cell_results(sample.TABLE, SCALES[scale], resolved, findings),
        records=folder / "records",
        folder=folder / "tables",
    )
    return Report(scale=SCALES[scale], drawings=[drawing], findings=findings, figures=figures)
