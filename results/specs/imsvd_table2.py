"""IMSVD, Table II: k-nearest-neighbour classification on ImageNet (turned: systems are rows)."""

from __future__ import annotations

from results.table import Column, Row, Table

EPOCHS = 1000  # Table II doesn't say; its last rows are the last column of Table I
_MEMORY_BANK = {"200-NN": "the 128-d embedding in the memory bank, not the backbone's features"}

TABLE = Table(
    name="imsvd/table2",
    title="IMSVD, Table II: k-nearest-neighbour classification on ImageNet, top-1 in percent, "
    "ResNet-50",
    source="Information-Maximized Soft Variable Discretization for Self-Supervised Image "
    "Representation Learning, Table II",
    columns=(
        Column(label="20-NN", protocol="knn:imsvd", metric="knn_20", epochs=EPOCHS),
        Column(label="200-NN", protocol="knn:imsvd", metric="knn_200", epochs=EPOCHS),
    ),
    rows=(
        Row(
            label="NPID [31]",
            published=("-", "46.5"),
            recipe="npid:RESNET50",
            epochs=200,
            differs=_MEMORY_BANK,
        ),
        Row(
            label="LA [40]",
            published=("-", "49.4"),
            recipe="local_aggregation:RESNET50",
            epochs=200,
            differs=_MEMORY_BANK,
        ),
        Row(
            label="PCL [61]",
            published=("54.5", "-"),
            recipe="pcl:RESNET50_V1",
            epochs=200,
        ),
        Row(label="BYOL [62]", published=("66.7", "64.9"), recipe="byol:RESNET50"),
        Row(
            label="SwAV [42]",
            published=("65.7", "62.7"),
            recipe="swav:RESNET50",
            epochs=800,
        ),
        Row(label="BT [19]", published=("64.8", "62.9"), recipe="barlow_twins:RESNET50"),
        Row(label="VICReg [10]", published=("64.5", "62.9"), recipe="vicreg:RESNET50"),
        Row(label="IMSVD", published=("67.0", "64.9"), recipe="imsvd:RESNET50"),
    ),
    footnotes=(
        "The paper prints this table with the systems as columns. It doesn't state the epochs of "
        f"pretraining; {EPOCHS} are used here, and for systems that are published at others 200 "
        "(NPID, LA, PCL) or, with multi-crop, 800 (SwAV).",
    ),
)
