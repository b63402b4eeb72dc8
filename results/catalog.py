"""Tables by name: every file of results/specs declares one, and is its registration."""

from __future__ import annotations

import difflib
import importlib
import pkgutil
from collections.abc import Sequence

from harness.errors import UserError
from results import specs
from results.table import Cell, Table

PAPERS = ("svib", "imsvd")
ALL = "all"  # every table of the papers


def all_tables() -> dict[str, Table]:
    """Every declared table by its name."""
    modules = sorted(
        (module.name for module in pkgutil.iter_modules(specs.__path__)), key=_by_paper
    )
    tables = [importlib.import_module(f"results.specs.{name}").TABLE for name in modules]
    return {table.name: table for table in tables}


def _by_paper(module: str) -> tuple[int, bool, str]:
    """SVIB before IMSVD, as they appeared, tables first; then what belongs to no paper."""
    paper, _, name = module.partition("_")
    place = PAPERS.index(paper) if paper in PAPERS else len(PAPERS)
    return (place, not name.startswith("table"), module)


def find_tables(names: tuple[str, ...], *, others: Sequence[str] = ()) -> list[Table]:
    """The tables of these names, each once; "table1" means Table 1 of every paper, "all" all.

    Args:
        names: As a user gives them.
        others: What else may have been meant: figures, actions.

    Raises:
        UserError: No table of that name; the closest ones are suggested.
    """
    known = all_tables()
    found: dict[str, Table] = {}
    for name in names:
        matching = {n: t for n, t in known.items() if name in _names(n)}
        if not matching:
            raise UserError(_unknown(name, list(known), others))
        found |= matching
    return list(found.values())


def _names(name: str) -> tuple[str, ...]:
    """What a table is found by: "svib/table1", "table1" and, if a paper has it, "all"."""
    paper, _, short = name.rpartition("/")
    return (name, short, ALL) if paper in PAPERS else (name, short)


def _unknown(name: str, known: list[str], others: Sequence[str]) -> str:
    short = [n.rpartition("/")[2] for n in known]
    choices = [*sorted({ALL, *known, *short}), *others]
    close = difflib.get_close_matches(name.lower(), choices, n=2, cutoff=0.5)
    hint = f"did you mean {' or '.join(close)}?" if close else "there is no similar one."
    what = "table or figure" if others else "table"
    return f"unknown {what} {name!r}: {hint} Known: {', '.join(choices)}."


def find_cell(tables: list[Table], row: str, column: str) -> tuple[Table, Cell]:
    """The one cell whose row and column contain these texts, whatever their case.

    Raises:
        UserError: None or several match; the candidates are listed.
    """
    cells = [(table, cell) for table in tables for cell in table.cells()]
    matching = [
        (table, cell)
        for table, cell in cells
        if row.lower() in table.row_name(cell.row).lower()
        and column.lower() in table.columns[cell.column].label.lower()
    ]
    exact = [
        (table, cell)
        for table, cell in matching
        if column.lower() == table.columns[cell.column].label.lower()
    ]
    matching = exact or matching
    if len(matching) == 1:
        return matching[0]
    named = [f"{table.name}: {table.cell_name(cell)}" for table, cell in matching or cells]
    problem = f"matches {len(matching)} cells" if matching else "matches no cell"
    raise UserError(f"--why {row!r} {column!r} {problem}; choose from:\n  " + "\n  ".join(named))
