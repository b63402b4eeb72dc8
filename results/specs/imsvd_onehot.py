"""IMSVD, section V-C: how nearly one-hot the variables are."""

from __future__ import annotations

from results.table import Column, Row, Table

TABLE = Table(
    name="imsvd/onehot",
    title="IMSVD, section V-C: share of soft variables whose largest probability is above 0.9 and "
    "above 0.99, in percent, ImageNet, ResNet-50",
    source="Information-Maximized Soft Variable Discretization for Self-Supervised Image "
    "Representation Learning, section V-C",
    columns=(
        Column(label="> 0.9", protocol="onehot:imsvd", metric="onehot_90"),
        Column(label="> 0.99", protocol="onehot:imsvd", metric="onehot_99"),
    ),
    rows=(Row(label="IMSVD", published=("91.18", "81.25"), recipe="imsvd:RESNET50"),),
    footnotes=(
        'The paper computed "all the discrete features with the trained model on ImageNet"; here '
        "it is the train images, each cropped at its centre, after 1000 epochs of pretraining.",
    ),
)
