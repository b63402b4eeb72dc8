"""IMSVD, Table I: linear classification on ImageNet after 100 to 1000 epochs of pretraining."""

from __future__ import annotations

from results.table import Column, Row, Table

EPOCHS = (100, 200, 400, 800, 1000)
_NO_FILE = "not implemented yet"

TABLE = Table(
    name="imsvd/table1",
    title="IMSVD, Table I: linear classification on ImageNet by epochs of pretraining, "
    "top-1 in percent, ResNet-50",
    source="Information-Maximized Soft Variable Discretization for Self-Supervised Image "
    "Representation Learning, Table I",
    columns=tuple(
        Column(label=str(epochs), protocol="linear:imsvd", metric="linear_top1", epochs=epochs)
        for epochs in EPOCHS
    ),
    rows=(
        Row(label="SimCLR [7]", published=("66.5", "68.3", "69.8", "70.4", "-"), reason=_NO_FILE),
        Row(label="MoCoV2 [9]", published=("67.4", "69.9", "71.0", "72.2", "-"), reason=_NO_FILE),
        Row(label="BYOL [43]", published=("66.5", "70.6", "73.2", "74.3", "74.3"), reason=_NO_FILE),
        Row(label="SwAV [42]", published=("66.5", "69.1", "70.7", "71.8", "-"), reason=_NO_FILE),
        Row(label="SimSiam [44]", published=("68.1", "70.0", "70.8", "71.3", "-"), reason=_NO_FILE),
        Row(label="DISSL [60]", published=("68.9", "-", "-", "-", "-"), reason=_NO_FILE),
        Row(label="CorInfoMax [16]", published=("69.1", "71.4", "-", "-", "-"), reason=_NO_FILE),
        Row(
            label="BT [19]",
            published=("-", "71.4*", "-", "-", "73.2"),
            recipe="barlow_twins:RESNET50",
            differs={"1000": "Barlow Twins' own evaluation: lr 0.3, crops of 0.08-1"},
        ),
        Row(
            label="VICReg [10]",
            published=("68.7", "71.2*", "-", "-", "73.2"),
            recipe="vicreg:RESNET50",
            recipes={"100": "vicreg:RESNET50_100"},
        ),
        Row(
            label="IMSVD",
            published=("69.4", "71.8", "73.2", "73.4", "73.6"),
            recipe="imsvd:RESNET50",
        ),
    ),
    footnotes=("* as marked in the paper; the copy that was read doesn't explain it.",),
)
