"""S4L-Rotation: self-supervised semi-supervised learning (Zhai et al., ICCV 2019).

Written from the paper and google-research/s4l @8f1cf05, semi_supervised/rotation.py.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from harness.backbone import Backbone
from harness.loader import Batch
from harness.method import Method
from harness.recipe import BackboneSpec, MethodConfig, Optim, Progress, Recipe, TrainingSize
from harness.scale import Scale
from harness.supervision import cross_entropy_of_labelled
from harness.views import CROP_AND_FLIP

ROTATIONS = 4  # by 0, 90, 180 and 270 degrees


@dataclass(frozen=True, kw_only=True)
class S4LRotationConfig(MethodConfig):
    """Hyper-parameters of S4L-Rotation (paper, section 3.1 and 4.3; config/s4l_rotation.sh)."""

    rotation: float = 1.0  # w, weight of the rotation loss

    def build(self, backbone: Backbone, training: TrainingSize) -> Method:
        """A classifier of classes and one of rotations on `backbone`."""
        return S4LRotation(backbone, training.classes, self.rotation)

    def scaled(self, scale: Scale) -> Self:
        """The same."""
        return self


class S4LRotation(Method):
    """A trunk that classifies labelled images and tells how every image is turned.

    A step runs four copies of each image.
    """

    def __init__(self, backbone: Backbone, classes: int, weight: float) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = nn.Linear(backbone.dim, classes)
        self.rotation_head = nn.Linear(backbone.dim, ROTATIONS)
        self._weight = weight

    @property
    def classifier(self) -> nn.Linear:
        """The head of classes."""
        return self.head

    def losses(self, batch: Batch, progress: Progress) -> dict[str, Tensor]:
        """Both losses on all four rotations of each image."""
        features = self.backbone(rotated(batch.views[0]))
        return s4l_rotation_terms(
            self.head(features), self.rotation_head(features), batch.labels, weight=self._weight
        )


def rotated(images: Tensor) -> Tensor:
    """Images (n, 3, S, S) and then all of them turned by 90, 180 and 270 degrees: (4n, 3, S, S)."""
    return torch.cat([images.rot90(quarter, (2, 3)) for quarter in range(ROTATIONS)])


def s4l_rotation_terms(
    logits: Tensor, rotation_logits: Tensor, labels: Tensor, *, weight: float = 1.0
) -> dict[str, Tensor]:
    """The two terms of S4L-Rotation (Eq. 1 and 2).

    Args:
        logits: Classes (4n, classes) of `rotated` images.
        rotation_logits: Rotations (4n, 4) of the same.
        labels: (n,) of the images, -1 where there is none.
        weight: Of the rotation loss.

    Returns:
        Scalars by name: cross-entropy over the rotations of labelled images, and of the rotations
        of all images (the code averages those of labelled and of other images, of which a batch
        holds as many).
    """
    if rotation_logits.itemsize < 4:
        rotation_logits = rotation_logits.float()
    quarters = torch.arange(ROTATIONS, device=labels.device).repeat_interleave(len(labels))
    return {
        "cross_entropy": cross_entropy_of_labelled(logits, labels.repeat(ROTATIONS)),
        "rotation": weight * F.cross_entropy(rotation_logits, quarters),
    }


# Half of each batch is labelled. The code counts passes over the labelled images, 200 of them
# with a warm-up of 5 and drops at 140, 160 and 180 (100,000 steps), at an unscaled rate of .03; an
# epoch here is as many steps as a pass over all images. Its lists of labelled images are its own.
RESNET50V2_10 = Recipe(
    name="S4L-Rotation ResNet-50v2, 10 % of the labels",
    source="S4L (Zhai et al. 2019), section 4.3, Table 1",
    method=S4LRotationConfig(),
    views=(CROP_AND_FLIP,),
    backbone=BackboneSpec(name="resnet50v2"),
    epochs=40,
    batch_size=512,
    optim=Optim(
        name="sgd",
        lr=0.015,
        weight_decay=1e-3,
        warmup_epochs=1,
        schedule="steps",
        milestones=(28, 32, 36),
    ),
    labelled=10,
)
# Neither text nor code give the settings for 1 %: those of the supervised baseline on 1 % are
# taken, 1,000 passes (50,000 steps), rate .01, decay .01.
RESNET50V2_1 = replace(
    RESNET50V2_10,
    name="S4L-Rotation ResNet-50v2, 1 % of the labels",
    epochs=20,
    optim=replace(
        RESNET50V2_10.optim,
        lr=0.005,
        weight_decay=1e-2,
        warmup_epochs=0.1,
        milestones=(14, 16, 18),
    ),
    labelled=1,
)
