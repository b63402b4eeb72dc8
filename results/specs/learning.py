"""The learning check: does every method beat the random initialisation of its backbone?

No paper has this table. All rows share backbone, data and epochs, so that they can be compared
with the row of the untrained backbone at any scale, above all at those that fit a small machine.
"""

from __future__ import annotations

from results.table import Column, Row, Table

EPOCHS = 100  # at the papers' scale; the others shorten it

METHODS = {
    "SVIB": "svib:RESNET50",
    "IMSVD": "imsvd:RESNET50",
    "DINO": "dino:RESNET50",
    "VICReg": "vicreg:RESNET50",
    "Barlow Twins": "barlow_twins:RESNET50",
}

TABLE = Table(
    name="learning",
    title="Learning check: 20-NN of each method against the untrained backbone, top-1 in percent",
    source="this harness",
    columns=(Column(label="KNN-20", protocol="knn:dino", metric="knn_20"),),
    rows=(
        Row(label="Random initialisation", published=("",), recipe="imsvd:RESNET50", epochs=0),
        *(
            Row(label=label, published=("",), recipe=recipe, epochs=EPOCHS)
            for label, recipe in METHODS.items()
        ),
    ),
    seeds=3,
)
