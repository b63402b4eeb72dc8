"""IMSVD, Table I: linear classification on ImageNet after 100 to 1000 epochs of pretraining."""

from __future__ import annotations

from results.table import Column, Row, Table

EPOCHS = (100, 200, 400, 800, 1000)
# Chen & He 2021, Table 4: their reproductions, without multi-crop, and their linear evaluation.
_SIMSIAM = dict.fromkeys(map(str, EPOCHS[:4]), "SimSiam's reproduction and linear evaluation")

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
        Row(
            label="SimCLR [7]",
            published=("66.5", "68.3", "69.8", "70.4", "-"),
            recipe="simclr:RESNET50_V1",
            differs=_SIMSIAM,
        ),
        Row(
            label="MoCoV2 [9]",
            published=("67.4", "69.9", "71.0", "72.2", "-"),
            recipe="moco_v2:RESNET50",
            differs=_SIMSIAM,
        ),
        Row(
            label="BYOL [43]",
            published=("66.5", "70.6", "73.2", "74.3", "74.3"),
            recipe="byol:RESNET50",
            recipes={
                "100": "byol:RESNET50_100",
                "200": "byol:RESNET50_300",
                "400": "byol:RESNET50_300",
            },
            differs=_SIMSIAM | {"1000": "BYOL's own evaluation (linear:byol)"},
        ),
        Row(
            label="SwAV [42]",
            published=("66.5", "69.1", "70.7", "71.8", "-"),
            recipe="swav:RESNET50_TWO_CROPS",
            differs=_SIMSIAM,
        ),
        Row(
            label="SimSiam [44]",
            published=("68.1", "70.0", "70.8", "71.3", "-"),
            recipe="simsiam:RESNET50",
            differs=_SIMSIAM,
        ),
        Row(
            label="DISSL [60]",
            published=("68.9", "-", "-", "-", "-"),
            recipe="dissl:RESNET50_D8192",
            differs={"100": "DISSL's own evaluation, of 8,192 features"},
        ),
        Row(
            label="CorInfoMax [16]",
            published=("69.1", "71.4", "-", "-", "-"),
            recipe="corinfomax:RESNET50",
            differs=dict.fromkeys(("100", "200"), "CorInfoMax's own evaluation: lr 25, steps"),
        ),
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
    footnotes=(
        "* as marked in the paper; the copy that was read doesn't explain it.",
        "SwAV is without multi-crop, which the paper leaves out of this table. BYOL has settings "
        "for 100, 300 and 1000 epochs: those for 300 also serve 200 and 400, those for 1000 also "
        "800.",
    ),
)
