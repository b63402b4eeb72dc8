"""IMSVD, Table IX: units of each variable (turned: numbers of units are rows)."""

from __future__ import annotations

from results.columns import TOP1, TOP5
from results.table import Row, Table

TABLE = Table(
    name="imsvd/table9",
    title="IMSVD, Table IX: linear classification on ImageNet by units per variable, in percent, "
    "ResNet-50, 100 epochs",
    source="Information-Maximized Soft Variable Discretization for Self-Supervised Image "
    "Representation Learning, Table IX",
    columns=(TOP1, TOP5),
    rows=tuple(
        Row(
            label=f"{units} units",
            published=published,
            recipe="imsvd:RESNET50",
            changes={"method.units": units, "method.projector": (8192, width)},
        )
        for units, width, published in (
            (32, 8160, ("67.8", "88.5")),
            (64, 8192, ("69.1", "89.1")),
            (80, 8160, ("69.4", "89.3")),
            (96, 8160, ("69.2", "89.1")),
            (128, 8192, ("68.4", "88.5")),
        )
    ),
    footnotes=(
        '"The dimension of the whole embedding vector was kept the same": 8,160, or 8,192 where '
        "the units don't divide that (64 and 128).",
        "The paper prints this table with the units as columns.",
    ),
)
