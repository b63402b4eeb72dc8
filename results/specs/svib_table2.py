"""SVIB, Table 2: semi-supervised learning on 1 % and 10 % of ImageNet's labels.

The footnote of the DINO row, "f" in the copy that was read, stands at its numbers as "*".
"""

from __future__ import annotations

from results.table import Column, Row, Table

_ONE, _TEN = ("Top-1, 1 %", "Top-5, 1 %"), ("Top-1, 10 %", "Top-5, 10 %")
_COLUMNS = (_ONE[0], _TEN[0], _ONE[1], _TEN[1])
_NETWORK = dict.fromkeys(_COLUMNS, "classifier:center_crop")
_NETWORK_METRICS = {
    **dict.fromkeys((_ONE[0], _TEN[0]), "classifier_top1"),
    **dict.fromkeys((_ONE[1], _TEN[1]), "classifier_top5"),
}
_OWN_LISTS = dict.fromkeys(_COLUMNS, "on S4L's own lists of labelled images; here on SimCLR's")


def _of_few_labels(method: str) -> dict[str, str]:
    """Column → the recipe for its share of labels."""
    return {
        **dict.fromkeys(_ONE, f"{method}:RESNET50V2_1"),
        **dict.fromkeys(_TEN, f"{method}:RESNET50V2_10"),
    }


def _differs(how: str) -> dict[str, str]:
    return dict.fromkeys(_COLUMNS, how)


TABLE = Table(
    name="svib/table2",
    title="SVIB, Table 2: semi-supervised learning on ImageNet, in percent",
    source="Understanding Self-supervised Learning via Information Bottleneck Principle "
    "(under review at ICLR 2022), Table 2",
    fields=("Architecture", "Pretrain epochs"),
    columns=tuple(
        Column(
            label=label,
            protocol="semisup:svib_1" if label in _ONE else "semisup:svib_10",
            metric="semisup_top1" if label.startswith("Top-1") else "semisup_top5",
            repeats="evaluation",
        )
        for label in _COLUMNS
    ),
    rows=(
        Row(
            label="Random (Wu et al., 2018)",
            fields=("ResNet-50", "-"),
            published=("-", "-", "22.0", "59.0"),
            recipe="untrained:RESNET50",
            protocols={
                **dict.fromkeys(_ONE, "semisup:npid_1"),
                **dict.fromkeys(_TEN, "semisup:npid_10"),
            },
            differs=_differs("on NPID's own share of labelled images; here on SimCLR's lists"),
        ),
        Row(
            label="Supervised baseline (Zhai et al., 2019)",
            fields=("ResNet-50", "-"),
            published=("-", "-", "48.4", "80.4"),
            recipe="supervised:RESNET50V2_10",
            recipes=_of_few_labels("supervised"),
            protocols=_NETWORK,
            metrics=_NETWORK_METRICS,
            differs=_OWN_LISTS,
        ),
        Row(
            label="Pseudolabels (Zhai et al., 2019)",
            fields=("ResNet-50v2", "-"),
            published=("-", "-", "51.6", "82.4"),
            recipe="pseudo_label:RESNET50V2_10",
            recipes=_of_few_labels("pseudo_label"),
            protocols=_NETWORK,
            metrics=_NETWORK_METRICS,
            differs=_OWN_LISTS,
        ),
        Row(
            label="S4LRotation (Zhai et al., 2019)",
            fields=("ResNet-50v2", "-"),
            published=("-", "-", "53.4", "83.8"),
            recipe="s4l_rotation:RESNET50V2_10",
            recipes=_of_few_labels("s4l_rotation"),
            protocols=_NETWORK,
            metrics=_NETWORK_METRICS,
            differs=_OWN_LISTS,
        ),
        Row(
            label="PIRL (Misra & van der Maaten, 2020)",
            fields=("ResNet-50", "800"),
            published=("30.7", "60.4", "57.2", "83.8"),
            recipe="pirl:RESNET50",
            differs=_differs("PIRL's own fine-tuning and split (semisup:pirl_1, pirl_10)"),
        ),
        Row(
            label="SimCLR (Chen et al., 2020)",
            fields=("ResNet-50-MLP", "1000"),
            published=("48.3", "65.6", "75.5", "87.8"),
            recipe="simclr:RESNET50_V1",
        ),
        Row(
            label="DINO (Caron et al., 2021)",
            fields=("ResNet-50-MLP", "800"),
            published=("52.9*", "66.6*", "77.5*", "87.6*"),
            recipe="dino:RESNET50",
            epochs=800,
        ),
        Row(
            label="BYOL (Grill et al., 2020)",
            fields=("ResNet-50-MLPbig", "1000"),
            published=("53.2", "68.8", "78.4", "89.0"),
            recipe="byol:RESNET50",
            differs=_differs("BYOL's own grid of rates and epochs (semisup:byol_1, byol_10)"),
        ),
        Row(
            label="MoCov2 (Chen et al., 2020)",
            fields=("ResNet-50-MLP", "800"),
            published=("52.4", "65.3", "78.4", "86.6"),
            recipe="moco_v2:RESNET50",
            epochs=800,
        ),
        Row(
            label="SwAV (Caron et al., 2020)",
            fields=("ResNet-50-MLP", "800"),
            published=("53.9", "70.2", "78.5", "89.9"),
            recipe="swav:RESNET50",
            differs=_differs("SwAV's own fine-tuning (semisup:swav_1, swav_10)"),
        ),
        Row(
            label="SVIB (Ours)",
            fields=("ResNet-50-MLP", "300"),
            published=("55.9", "68.6", "78.6", "88.6"),
            recipe="svib:RESNET50",
        ),
    ),
    seeds=5,
    footnotes=(
        '"The accuracy is the mean of 5 independent runs": five fine-tunings of one pretraining.',
        "* Produced by SVIB's authors with the released pretrained model under the same setting.",
        "Zhai et al.'s supervised baseline is a ResNet-50v2 in their paper, and here. Their three "
        "systems classify by themselves: nothing is fine-tuned, and they run once.",
    ),
)
