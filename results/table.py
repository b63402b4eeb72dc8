"""Tables as declarations: rows × columns, the paper's numbers, and what to run for each cell."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

EMPTY = "-"  # how the papers print a cell that they leave empty
DIVERGENCE = "divergence"  # and one whose run came to nothing
_NUMBER = re.compile(r"(?P<number>\d+(?:\.\d+)?)(?P<unit>[hG]?)\s*(?P<marks>\D*)")
Changes = Mapping[str, Any]  # settings of a recipe by their dotted names: {"method.units": 64}


@dataclass(frozen=True)
class Published:
    """One cell as the paper prints it: "71.1†", "8.5h", "-", or "" where there is no paper."""

    text: str

    @property
    def value(self) -> float | None:
        """The number in its column's unit; None for an empty cell."""
        found = _NUMBER.fullmatch(self.text)
        return float(found["number"]) if found else None

    @property
    def marks(self) -> str:
        """The footnote marks behind the number."""
        found = _NUMBER.fullmatch(self.text)
        return found["marks"] if found else ""

    @property
    def diverged(self) -> bool:
        """Whether the paper's run came to nothing."""
        return self.text == DIVERGENCE

    @property
    def states_something(self) -> bool:
        """Whether there is a number, or the word in its place."""
        return self.value is not None or self.diverged


@dataclass(frozen=True, kw_only=True)
class Column:
    """What a column of numbers measures."""

    label: str
    protocol: str  # "knn:dino": a variant, by the names of harness.registry
    metric: str  # one of the protocol's metrics, or of results.measures (what pretraining took)
    epochs: int | None = None  # of pretraining, instead of the recipe's
    after: int = 100  # percent of the steps: at the end, or one of the recipe's snapshots
    # What differs between the runs of a cell, each by its seed: the pretraining, or the evaluation
    # of one pretraining (protocols that draw nothing at random then run once).
    repeats: Literal["pretraining", "evaluation"] = "pretraining"


@dataclass(frozen=True, kw_only=True)
class Row:
    """One system: the paper's entries for it, and its recipe or the reason why there is none."""

    label: str
    fields: tuple[str, ...] = ()  # one per Table.fields (architecture, epochs, …)
    published: tuple[str, ...]  # one per column, as printed
    recipe: str = ""  # "imsvd:RESNET50", by the names of harness.registry
    recipes: Mapping[str, str] = field(default_factory=dict)  # column → its own recipe
    changes: Changes = field(default_factory=dict)  # settings of the recipe that are ablated
    changes_at: Mapping[str, Changes] = field(default_factory=dict)  # column → instead of these
    protocols: Mapping[str, str] = field(default_factory=dict)  # column → its own variant
    metrics: Mapping[str, str] = field(default_factory=dict)  # column → its own protocol's
    epochs: int | None = None  # of pretraining, instead of the column's and the recipe's
    reason: str = ""  # why it can't be run; exactly one of `recipe` and `reason` is given
    differs: Mapping[str, str] = field(default_factory=dict)  # column → how the paper measured


class Work(NamedTuple):
    """What a cell takes, by name."""

    recipe: str
    epochs: int | None
    protocol: str
    metric: str
    changes: Changes


class Hardware(NamedTuple):
    """What the paper measured times and memory on."""

    gpus: int
    kind: str  # "V100"


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table of a paper, or of this harness."""

    name: str  # "svib/table1"; its file is specs/svib_table1.py
    title: str
    source: str
    fields: tuple[str, ...] = ()  # headings of the columns that hold no measurements
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    seeds: int | None = None  # runs per cell; None: the scale's
    hardware: Hardware | None = None  # of the paper's runs, where their costs are shown
    footnotes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Check that every row fits the headings."""
        for row in self.rows:
            assert len(row.published) == len(self.columns), (self.name, row.label)
            assert len(row.fields) == len(self.fields), (self.name, row.label)
            assert bool(row.recipe) != bool(row.reason), (self.name, row.label)
            named = {*row.differs, *row.recipes, *row.protocols, *row.metrics, *row.changes_at}
            assert named <= {column.label for column in self.columns}, row.label

    def published(self, cell: Cell) -> Published:
        """The paper's number."""
        return Published(self.rows[cell.row].published[cell.column])

    def may_diverge(self, column: int) -> bool:
        """Whether the paper reports divergence in a column, and ours is looked for."""
        return any(Published(row.published[column]).diverged for row in self.rows)

    def cells(self) -> Iterator[Cell]:
        """Every cell, row by row."""
        for row in range(len(self.rows)):
            for column in range(len(self.columns)):
                yield Cell(row=row, column=column)

    def wanted(self, *, fill: bool = False) -> Iterator[Cell]:
        """Cells to run: the row has a recipe and the paper a number (or `fill` asks for it)."""
        for cell in self.cells():
            runnable = bool(self.rows[cell.row].recipe)
            if runnable and (fill or self.published(cell).text != EMPTY):
                yield cell

    def row_name(self, row: int) -> str:
        """Label and entries of a row in one line: "SVIB (Ours), ResNet50, 300"."""
        return ", ".join((self.rows[row].label, *self.rows[row].fields))

    def cell_name(self, cell: Cell) -> str:
        """A cell in words, for messages: "SVIB (Ours), ResNet50, 300 | Linear"."""
        return f"{self.row_name(cell.row)} | {self.columns[cell.column].label}"

    def work(self, cell: Cell) -> Work:
        """Recipe, epochs, protocol and metric behind a cell whose row can be run."""
        row, column = self.rows[cell.row], self.columns[cell.column]
        return Work(
            recipe=row.recipes.get(column.label, row.recipe),
            epochs=column.epochs if row.epochs is None else row.epochs,
            protocol=row.protocols.get(column.label, column.protocol),
            metric=row.metrics.get(column.label, column.metric),
            changes=row.changes_at.get(column.label, row.changes),
        )


@dataclass(frozen=True, kw_only=True)
class Cell:
    """A place in a table."""

    row: int
    column: int
