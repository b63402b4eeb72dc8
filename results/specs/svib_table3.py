"""SVIB, Table 3: Mask R-CNN with a feature pyramid on COCO, 1x schedule.

The copy of the paper that was read runs the rows of MoCo v2, BYOL and SVIB into one another: six
box numbers of each follow row by row, then six of masks ("-" for BYOL); the last two of MoCo v2's
masks read "38.1^^50.5".
"""

from __future__ import annotations

from results.table import Column, Row, Table

# headings → metrics of the protocol
_STATS = {"AP": "ap", "AP50": "ap50", "AP75": "ap75", "APS": "aps", "APM": "apm", "APL": "apl"}
_KINDS = {"box": "bbox", "mask": "segm"}

TABLE = Table(
    name="svib/table3",
    title="SVIB, Table 3: object detection and instance segmentation on COCO, Mask R-CNN R50-FPN, "
    "1x schedule, AP in percent",
    source="Understanding Self-supervised Learning via Information Bottleneck Principle "
    "(under review at ICLR 2022), Table 3",
    columns=tuple(
        Column(
            label=f"{stat} {kind}",
            protocol="coco_maskrcnn:moco_fpn",
            metric=f"{objects}_{name}",
        )
        for kind, objects in _KINDS.items()
        for stat, name in _STATS.items()
    ),
    rows=(
        Row(
            label="Supervised",
            published=(
                *("38.9", "59.6", "42.0", "23.0", "42.9", "49.9"),
                *("35.4", "56.5", "38.1", "17.5", "38.2", "51.3"),
            ),
            recipe="supervised:RESNET50",
        ),
        Row(
            label="MoCo v2 (Chen et al., 2020)",
            published=(
                *("39.2", "59.9", "42.7", "23.8", "42.7", "50.0"),
                *("35.7", "56.8", "38.1", "17.8", "38.1", "50.5"),
            ),
            recipe="moco_v2:RESNET50",
            epochs=800,
        ),
        Row(
            label="BYOL (Grill et al., 2020)",
            published=("39.9", "60.2", "43.2", "23.3", "43.2", "52.8", *("-",) * 6),
            recipe="byol:RESNET50",
        ),
        Row(
            label="SVIB (Ours)",
            published=(
                *("40.0", "61.7", "43.4", "24.8", "43.9", "50.4"),
                *("36.7", "58.6", "39.1", "18.4", "39.8", "51.8"),
            ),
            recipe="svib:RESNET50",
        ),
    ),
    footnotes=(
        "MoCo v2 is pretrained for 800 epochs, BYOL for 1000, SVIB for 300.",
        "The copy of the paper that was read runs three rows together: MoCo v2's APM and APL of "
        'masks stand there as "38.1^^50.5".',
    ),
)
