"""The parts of the report about records: what each was measured from, with, and drawn as."""

from __future__ import annotations

import base64
import json
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

from harness.record import Record
from harness.scale import SCALES, Scale
from results.markup import element, grid, identifier, text
from results.why import chain

FOLDED = ("protocol", "recipe")  # long, and the same in many records


class Place(NamedTuple):
    """A cell that shows a record."""

    id: str
    name: str


def record_id(key: str) -> str:
    """The id of a record's details within the page."""
    return identifier("record", key)


def render_record(record: Record, path: str, places: Sequence[Place]) -> str:
    """All that is known about a record.

    Args:
        record: Its texts are untrusted.
        path: Of its file, relative to the page.
        places: The cells that show it.
    """
    name = record_id(record.key)
    facts = chain(record)
    shown_in = "; ".join(element("a", text(place.name), href=f"#{place.id}") for place in places)
    # Quoted and relative, a path that holds a colon can't become a scheme of its own.
    file = element("a", text(Path(path).name), href=quote(path))
    entries = [("shown in", shown_in), ("file", file)]
    entries += [(k, text(v)) for k, v in _entries({k: facts[k] for k in facts if k not in FOLDED})]
    listed = "\n".join(element("dt", text(k)) + element("dd", v) for k, v in entries)
    settings = json.dumps({k: facts[k] for k in FOLDED}, indent=1, ensure_ascii=False)
    folded = element("summary", "Protocol and recipe") + element("pre", text(settings))
    return element(
        "section",
        element("h3", f"Record {text(record.key)}", id=f"{name}-name"),
        element("dl", listed),
        element("details", folded),
        id=name,
        class_="record",
        tabindex=-1,  # so that a link to it takes the keyboard's focus along
        aria_labelledby=f"{name}-name",
    )


def _entries(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Nested values as lines; a mapping of plain ones is a single line."""
    for key, value in values.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict) and any(isinstance(v, dict) for v in value.values()):
            yield from _entries(value, f"{name}: ")
        else:
            yield name, _plain(value)


def _plain(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{k} {_plain(v)}" for k, v in value.items()) or "none"
    if isinstance(value, str):
        return value
    return "none" if value is None else json.dumps(value, ensure_ascii=False)


def render_environments(records: Sequence[Record]) -> str:
    """What the records were measured with: a row per combination, most frequent first."""
    found = Counter(_environment(record) for record in records)
    headings = ["Commit", "Uncommitted changes", "Hardware", "Processes", "Versions", "Records"]
    rows = [[*environment, str(count)] for environment, count in found.most_common()]
    return grid("environments", "What the numbers were measured with", headings, rows)


def _environment(record: Record) -> tuple[str, ...]:
    known = record.environment
    dirty = known.get("dirty")
    changed = "unknown" if dirty is None else "yes" if dirty else "no"
    others = [known.get(name, "unknown") for name in ("hardware", "processes", "versions")]
    return (_plain(known.get("commit") or "unknown"), changed, *map(_plain, others))


def find_figures(folder: Path, scale: Scale) -> list[Path]:
    """The PNGs of a folder, by name, without those of another scale (`fig4.demo.png`)."""
    others = {f".{name}" for name in SCALES if name != scale.name}
    return sorted(path for path in folder.glob("*.png") if Path(path.stem).suffix not in others)


def render_figures(paths: Sequence[Path]) -> str:
    """Images as part of the page, with the title and the description that each carries."""
    return "\n".join(figure for path in paths if (figure := _figure(path)))


def _figure(path: Path) -> str:
    from PIL import Image

    try:
        with Image.open(path, formats=("PNG",)) as image:
            (width, height), known = image.size, image.info
    except OSError as error:
        print(f"warning: {path} is left out of the report ({error})", file=sys.stderr)
        return ""
    title = known.get("Title") or path.stem
    data = base64.b64encode(path.read_bytes()).decode()
    image = element(
        "img",
        src=f"data:image/png;base64,{data}",
        alt=known.get("Description") or title,
        width=width,
        height=height,
        loading="lazy",
    )
    return element("figure", image, element("figcaption", text(title)))
