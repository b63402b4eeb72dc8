"""IMSVD, Table VII: dimension of the embedding (turned: dimensions are rows)."""

from __future__ import annotations

from dataclasses import replace

from results.columns import COSTS, HARDWARE, TOP1
from results.table import Row, Table

_WIDTHS = (  # VICReg's, IMSVD's
    ((1024, 960), ("62.4", "64.1", "7.6h", "7.6G")),
    ((2048, 2000), ("65.1", "66.6", "7.7h", "8.0G")),
    ((4096, 4080), ("67.3", "69.2", "8.0h", "8.5G")),
    ((8192, 8160), ("68.6", "69.4", "8.5h", "10.4G")),
    ((16384, 16320), ("68.8", "69.1", "10.9h", "15.9G")),
)

TABLE = Table(
    name="imsvd/table7",
    title="IMSVD, Table VII: linear classification on ImageNet, top-1 in percent, hours per 100 "
    "epochs and peak memory per GPU of pretraining on 32 V100 by dimension of the embedding, "
    "ResNet-50, 100 epochs",
    source="Information-Maximized Soft Variable Discretization for Self-Supervised Image "
    "Representation Learning, Table VII",
    fields=("IMSVD's",),
    columns=(replace(TOP1, label="VICReg"), replace(TOP1, label="IMSVD"), *COSTS),
    rows=tuple(
        Row(
            label=f"{vicreg} (VICReg's)",
            fields=(str(imsvd),),
            published=published,
            recipe="imsvd:RESNET50",
            recipes={"VICReg": "vicreg:RESNET50_100"},
            changes={"method.projector": (8192, imsvd)},
            changes_at={"VICReg": {"method.projector": (vicreg,) * 3}},
        )
        for (vicreg, imsvd), published in _WIDTHS
    ),
    hardware=HARDWARE,
    footnotes=(
        "The paper prints this table with the dimensions as columns, in two rows of headings: the "
        "first for VICReg, the second for IMSVD.",
        "Time and memory are IMSVD's: those of 8,160 are its row of Table IV.",
        "All three layers of VICReg's expander have the stated width, as in the table of VICReg's "
        "appendix that these numbers come from; of IMSVD's projector only the last: the paper "
        "doesn't say what became of the 8,192 units before it.",
    ),
)
