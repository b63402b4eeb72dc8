"""SVIB, Fig. 3, as a table: 20-NN along the training under three schedules of beta.

The figure prints a number at each of its bars, of which the copy of the paper that was read has
those at 20 epochs whole, in the order of the legend; those from 40 to 80 are damaged and left
empty. At 100 epochs the figure shows rows 4, 5 and 6 of Table 4.
"""

from __future__ import annotations

from results.table import Changes, Column, Row, Table

EPOCHS = 100  # of svib:VIT_SMALL_ABLATION
SHOWN = (20, 40, 60, 80, 100)  # epochs, and percents of the steps


def _fixed(beta: float) -> Changes:
    return {"method.reinitialise": True, "method.beta": beta, "method.final_beta": None}


TABLE = Table(
    name="svib/beta",
    title="SVIB, Fig. 3: 20-NN on ImageNet by epochs of one pretraining under three schedules of "
    f"beta, top-1 in percent, ViT-S/16, {EPOCHS} epochs",
    source="Understanding Self-supervised Learning via Information Bottleneck Principle "
    "(under review at ICLR 2022), Fig. 3 and Table 4",
    columns=tuple(
        Column(label=str(epochs), protocol="knn:dino", metric="knn_20", after=epochs)
        for epochs in SHOWN
    ),
    rows=tuple(
        Row(
            label=label,
            published=(first, "", "", "", last),
            recipe="svib:VIT_SMALL_ABLATION",
            changes=changes,
        )
        for label, first, last, changes in (
            ("β = 0.5", "48.5", "64.2", _fixed(0.5)),
            ("β = 0.1", "48.1", "66.8", _fixed(0.1)),
            ("β = 0.5 → 0.01", "48.4", "67.3", {}),
        )
    ),
    footnotes=(
        "A row is one pretraining, whose trunk is evaluated after 20, 40, 60, 80 and 100 % of its "
        "steps; the rows are 4, 5 and 6 of Table 4, with which they share runs and records.",
        "The paper's numbers at 20 epochs are read from the figure's bars, those at 100 from Table "
        "4; from 40 to 80 the copy of the paper that was read is damaged.",
    ),
)
