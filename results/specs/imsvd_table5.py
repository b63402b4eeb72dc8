"""IMSVD, Table V: batch size."""

from __future__ import annotations

from results.table import Changes, Column, Row, Table

SIZES = (512, 1024, 2048, 4096)
_LABELS = tuple(map(str, SIZES))


def _vicreg(size: int) -> Changes:
    """VICReg's rate ends at a thousandth of its peak, which grows with the batch."""
    return {"batch_size": size, "optim.final_lr": 0.3 * size / 256 * 1e-3}


TABLE = Table(
    name="imsvd/table5",
    title="IMSVD, Table V: linear classification on ImageNet by batch size of pretraining, top-1 "
    "in percent, ResNet-50, 100 epochs",
    source="Information-Maximized Soft Variable Discretization for Self-Supervised Image "
    "Representation Learning, Table V",
    columns=tuple(
        Column(label=label, protocol="linear:imsvd", metric="linear_top1", epochs=100)
        for label in _LABELS
    ),
    rows=(
        Row(
            label="SimSiam",
            published=("68.1", "68.0", "67.9", "64.0"),
            recipe="simsiam:RESNET50",
            changes_at={str(size): {"batch_size": size} for size in SIZES},
            differs=dict.fromkeys(_LABELS, "SimSiam's own linear evaluation (linear:simsiam)"),
        ),
        Row(
            label="VICReg",
            published=("68.2", "68.3", "68.6", "67.8"),
            recipe="vicreg:RESNET50_100",
            changes_at={str(size): _vicreg(size) for size in SIZES if size != 2048},
        ),
        Row(
            label="IMSVD",
            published=("68.3", "69.3", "69.4", "68.7"),
            recipe="imsvd:RESNET50",
            changes_at={str(size): {"batch_size": size} for size in SIZES},
        ),
    ),
    footnotes=(
        "Learning rates follow the linear rule; the rate that IMSVD ends at, 0.002, stays.",
        "VICReg has 68.6 at 2048 here and in Table VII, 68.7 in Table I.",
    ),
)
