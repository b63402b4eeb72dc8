"""The learning check: does every system beat the random initialisation of its backbone?

No paper has this table. All rows share backbone, data and epochs, so that they can be compared
with the row of the untrained backbone at any scale, above all at those that fit a small machine.
"""

from __future__ import annotations

from results.table import Column, Row, Table

EPOCHS = 100  # at the papers' scale; the others shorten it

RANDOM = Row(label="Random initialisation", published=("",), recipe="untrained:RESNET50")
COLUMN = Column(label="KNN-20", protocol="knn:dino", metric="knn_20")
METHODS = {
    "SVIB": "svib:RESNET50",
    "IMSVD": "imsvd:RESNET50",
    "DINO": "dino:RESNET50",
    "VICReg": "vicreg:RESNET50",
    "Barlow Twins": "barlow_twins:RESNET50",
    "MoCo v2": "moco_v2:RESNET50",
    "SimCLR v1": "simclr:RESNET50_V1",
    "SimCLR v2": "simclr:RESNET50_V2",
    "BYOL": "byol:RESNET50_100",
    "SwAV": "swav:RESNET50",
    "SimSiam": "simsiam:RESNET50",
    "NPID": "npid:RESNET50",
    "PIRL": "pirl:RESNET50",
    "Local Aggregation": "local_aggregation:RESNET50",
    "PCL v1": "pcl:RESNET50_V1",
    "PCL v2": "pcl:RESNET50_V2",
    "CorInfoMax": "corinfomax:RESNET50",
    "DISSL": "dissl:RESNET50",
    "W-MSE": "w_mse:IMAGENET100",
    "Supervised, all labels": "supervised:RESNET50",
    "Supervised, 10 % of the labels": "supervised:RESNET50V2_10",
    "Pseudo-label, 10 % of the labels": "pseudo_label:RESNET50V2_10",
    "S4L-Rotation, 10 % of the labels": "s4l_rotation:RESNET50V2_10",
}


def row(label: str) -> Row:
    """The row of a system, at the table's epochs."""
    return Row(label=label, published=("",), recipe=METHODS[label], epochs=EPOCHS)


TABLE = Table(
    name="learning",
    title="Learning check: 20-NN of each system against the untrained backbone, top-1 in percent",
    source="this harness",
    columns=(COLUMN,),
    rows=(RANDOM, *map(row, METHODS)),
    seeds=3,
    footnotes=(
        "Where few labels are shown batches are four times smaller, thus steps four times as many.",
    ),
)
