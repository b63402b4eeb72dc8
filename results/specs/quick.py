"""The learning check of the papers' own methods and of three rivals, in a quarter of its time."""

from __future__ import annotations

from results.specs.learning import COLUMN, RANDOM, row
from results.table import Table

TABLE = Table(
    name="quick",
    title="Quick learning check: 20-NN of five methods against the untrained backbone, top-1 in "
    "percent",
    source="this harness",
    columns=(COLUMN,),
    rows=(RANDOM, *map(row, ("SVIB", "IMSVD", "DINO", "VICReg", "Barlow Twins"))),
    seeds=3,
)
