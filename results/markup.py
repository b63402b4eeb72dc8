"""HTML from untrusted text: what is not made here by `element` is escaped."""

from __future__ import annotations

import hashlib
import html
import re
from collections.abc import Iterable, Sequence

VOID = ("img",)


def text(value: object) -> str:
    """A value as escaped text, also safe within an attribute's quotes.

    Half a surrogate pair, which JSON may hold and UTF-8 may not, becomes a question mark.
    """
    return html.escape(str(value).encode(errors="replace").decode())


def element(name: str, *content: str, **attributes: object) -> str:
    """An element around markup; attributes are escaped, and left out where they are None.

    `data_sort` stands for the attribute data-sort, and `class_` for class.
    """
    named = {key.rstrip("_").replace("_", "-"): value for key, value in attributes.items()}
    given = "".join(f' {k}="{text(v)}"' for k, v in named.items() if v is not None)
    return f"<{name}{given}>" + ("" if name in VOID else f"{''.join(content)}</{name}>")


def identifier(prefix: str, name: str) -> str:
    """An element's id that is one word, whatever the name holds; the same name, the same id."""
    plain = re.fullmatch(r"[A-Za-z0-9_.-]+", name)
    return f"{prefix}-{name if plain else hashlib.sha256(text(name).encode()).hexdigest()[:16]}"


def items(lines: Iterable[str]) -> str:
    """A list of texts; "" if there are none."""
    found = "".join(element("li", text(line)) for line in lines)
    return element("ul", found) if found else ""


def caption(name: str, line: str) -> str:
    """A table's caption, which names its container; in view however far the table is scrolled."""
    return element("caption", element("span", text(line)), id=f"{name}-caption")


def scrolling(name: str, table: str) -> str:
    """A table in a container of its own that scrolls, by keyboard too; named by its caption."""
    return element(
        "div", table, class_="scroll", role="region", tabindex=0, aria_labelledby=f"{name}-caption"
    )


def grid(name: str, line: str, headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A sortable table of texts under a caption; the first column heads the rows."""
    heads = [
        element("th", text(heading), scope="col", data_column=i, data_name=heading)
        for i, heading in enumerate(headings)
    ]
    body = [
        element("tr", element("th", text(row[0]), scope="row"), *map(_cell, row[1:]))
        for row in rows
    ]
    table = element(
        "table",
        caption(name, line),
        element("thead", element("tr", *heads)),
        element("tbody", "\n".join(body)),
        class_="sortable",
        id=name,
    )
    return scrolling(name, table)


def _cell(value: str) -> str:
    return element("td", text(value))
