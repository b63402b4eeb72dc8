"""Supervised training: with all labels (torchvision's ResNet-50), or with few of them (S4L's).

The full recipe is torchvision's reference training (pytorch/vision, references/classification),
which is Goyal et al. 2017 without warm-up at batch size 256: the usual supervised trunk that
self-supervised ones are compared with. The few-label baselines are those of Zhai et al. (S4L, ICCV
2019, section 4.1; google-research/s4l @8f1cf05, config/supervised_imagenet_1p.sh and _10p.sh).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self

from harness.backbone import Backbone
from harness.method import Method
from harness.recipe import BackboneSpec, MethodConfig, Optim, Pool, Recipe, TrainingSize
from harness.scale import Scale
from harness.supervision import SupervisedMethod
from harness.views import CROP_AND_FLIP


@dataclass(frozen=True, kw_only=True)
class SupervisedConfig(MethodConfig):
    """Cross-entropy; nothing to choose."""

    def build(self, backbone: Backbone, training: TrainingSize) -> Method:
        """A linear classifier on `backbone`."""
        return SupervisedMethod(backbone, training.classes)

    def pool(self, epoch: int) -> Pool:
        """Images without a label teach it nothing."""
        return "labelled"

    def scaled(self, scale: Scale) -> Self:
        """The same."""
        return self


RESNET50 = Recipe(
    name="Supervised ResNet-50",
    source="torchvision's reference training; Goyal et al. 2017, section 5",
    method=SupervisedConfig(),
    views=(CROP_AND_FLIP,),
    backbone=BackboneSpec(name="resnet50"),
    epochs=90,
    batch_size=256,
    optim=Optim(
        name="sgd",
        lr=0.1,
        weight_decay=1e-4,
        decay_all=True,
        warmup_epochs=0,
        schedule="steps",
        milestones=(30, 60),
    ),
    labelled=100,
)
# S4L counts epochs in passes over the labelled images, 200 of them or 1,000 (100,000 or 50,000
# steps); here an epoch is as many steps as a pass over all images. Decay is on kernels alone.
RESNET50V2_10 = Recipe(
    name="Supervised ResNet-50v2, 10 % of the labels",
    source="S4L (Zhai et al. 2019), section 4.1, Table 1",
    method=SupervisedConfig(),
    views=(CROP_AND_FLIP,),
    backbone=BackboneSpec(name="resnet50v2"),
    epochs=20,
    batch_size=256,
    optim=Optim(
        name="sgd",
        lr=0.1,
        weight_decay=1e-3,
        warmup_epochs=0.5,
        schedule="steps",
        milestones=(14, 16, 18),
    ),
    labelled=10,
)
# The code also changes colours in HSV, h by 0.1 and s and v by a random power, factor and offset;
# the jitter of the other recipes, with the same range of hues, stands in for it.
RESNET50V2_1 = replace(
    RESNET50V2_10,
    name="Supervised ResNet-50v2, 1 % of the labels",
    views=(replace(CROP_AND_FLIP, jitter=(0.4, 0.4, 0.4, 0.1), jitter_p=1.0),),
    epochs=10,
    optim=replace(
        RESNET50V2_10.optim,
        lr=0.01,
        weight_decay=1e-2,
        warmup_epochs=0.05,
        milestones=(7, 8, 9),
    ),
    labelled=1,
)
