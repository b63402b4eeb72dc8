"""IMSVD, Table VIII: terms of the loss (turned: combinations are rows)."""

from __future__ import annotations

from results.columns import TOP1, TOP5
from results.table import Row, Table

TABLE = Table(
    name="imsvd/table8",
    title="IMSVD, Table VIII: linear classification on ImageNet by terms of the loss, in percent, "
    "ResNet-50, 100 epochs",
    source="Information-Maximized Soft Variable Discretization for Self-Supervised Image "
    "Representation Learning, Table VIII",
    columns=(TOP1, TOP5),
    rows=tuple(
        Row(
            label=label,
            published=published,
            recipe="imsvd:RESNET50",
            changes={"method.terms": terms},
        )
        for label, published, terms in (
            ("DE+OE", ("65.4", "86.9"), ("DE", "OE")),
            ("OE+TI", ("64.1", "86.4"), ("TI", "OE")),
            ("DE+OE+TIC", ("68.3", "88.6"), ("TIC", "DE", "OE")),
            ("DE+OE+TI", ("69.4", "89.3"), ("TI", "DE", "OE")),
        )
    ),
    footnotes=(
        "DE, OE: entropy of the diagonal and of the off-diagonal blocks; TI, TIC: invariance by "
        "inner product and by cross-entropy.",
        "The paper prints this table with the combinations as columns.",
    ),
)
