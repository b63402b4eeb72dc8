"""IMSVD, Table VI: depth of the projector (turned: depths are rows)."""

from __future__ import annotations

from results.columns import COSTS, HARDWARE, TOP1, TOP5
from results.table import Row, Table

_HIDDEN, _LAST = 8192, 8160

TABLE = Table(
    name="imsvd/table6",
    title="IMSVD, Table VI: linear classification on ImageNet in percent, hours per 100 epochs "
    "and peak memory per GPU of pretraining on 32 V100 by depth of the projector, ResNet-50, 100 "
    "epochs",
    source="Information-Maximized Soft Variable Discretization for Self-Supervised Image "
    "Representation Learning, Table VI",
    columns=(TOP1, TOP5, *COSTS),
    rows=tuple(
        Row(
            label=f"Depth {depth}",
            published=published,
            recipe="imsvd:RESNET50",
            changes={"method.projector": (_HIDDEN,) * (depth - 1) + (_LAST,)},
        )
        for depth, published in (
            (2, ("69.4", "89.3", "8.5h", "10.4G")),
            (3, ("68.5", "88.3", "9.6h", "11.5G")),
            (4, ("67.9", "87.9", "10.8h", "12.5G")),
        )
    ),
    hardware=HARDWARE,
    footnotes=("The paper prints this table with the depths as columns.",),
)
