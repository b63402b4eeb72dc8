"""Pseudo-labels (Lee 2013) as Zhai et al. (S4L, ICCV 2019, section 4.2) run them on ImageNet.

Written from the paper and google-research/s4l @8f1cf05 (pseudo_labeling/, config/pseudo_labels.sh):
a network is trained on the labelled images alone, it labels all others once, and a second network
is trained from scratch on all images, with no threshold on the confidence.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor, nn

from harness import dist
from harness.backbone import Backbone, build_backbone
from harness.loader import Batch
from harness.method import Method, TrainImages
from harness.recipe import (
    BackboneSpec,
    FirstPhase,
    MethodConfig,
    Optim,
    Pool,
    Progress,
    Recipe,
    TrainingSize,
)
from harness.scale import Scale, at_few_labels
from harness.supervision import UNSEEN, SupervisedMethod
from harness.views import CROP_AND_FLIP

# The supervised baselines of the same paper: 200 passes over 10 % of the images, and 1,000 over
# 1 %, in epochs of as many steps as a pass over all images.
_FIRST_10 = FirstPhase(
    epochs=20,
    optim=Optim(
        name="sgd",
        lr=0.1,
        weight_decay=1e-3,
        warmup_epochs=0.5,
        schedule="steps",
        milestones=(14, 16, 18),
    ),
)
_FIRST_1 = FirstPhase(
    epochs=10,
    optim=replace(
        _FIRST_10.optim, lr=0.01, weight_decay=1e-2, warmup_epochs=0.05, milestones=(7, 8, 9)
    ),
)


@dataclass(frozen=True, kw_only=True)
class PseudoLabelConfig(MethodConfig):
    """Hyper-parameters of pseudo-labels (config/supervised_imagenet_10p.sh, pseudo_labels.sh)."""

    first: FirstPhase = _FIRST_10  # the network that labels

    def build(self, backbone: Backbone, training: TrainingSize) -> Method:
        """A linear classifier on `backbone`, and a label for every image."""
        return PseudoLabel(backbone, training, self.first.epochs)

    def pool(self, epoch: int) -> Pool:
        """First the labelled images, then all."""
        return "labelled" if epoch < self.first.epochs else "all"

    def first_phase(self) -> FirstPhase:
        """The training of the network that labels."""
        return self.first

    def scaled(self, scale: Scale) -> Self:
        """Fewer epochs, at the scale's optimiser."""
        assert scale.convnet_optim is not None, scale.name
        epochs = math.ceil(self.first.epochs * scale.epoch_factor)
        return replace(
            self, first=FirstPhase(epochs=epochs, optim=at_few_labels(scale.convnet_optim))
        )


class PseudoLabel(SupervisedMethod):
    """A network that is trained twice, the second time on its own labels.

    Attributes:
        labels: int64 (images,), the first network's, UNSEEN before there are any (10 MB for
            ImageNet, on each process).
    """

    labels: Tensor

    def __init__(self, backbone: Backbone, training: TrainingSize, first_epochs: int) -> None:
        super().__init__(backbone, training.classes)
        self.register_buffer("labels", torch.full((training.images,), UNSEEN))
        self._first_epochs = first_epochs

    def losses(self, batch: Batch, progress: Progress) -> dict[str, Tensor]:
        """Cross-entropy with true labels where they are shown, else with the first network's."""
        return super().losses(
            batch._replace(labels=completed(batch.labels, self.labels[batch.indices])), progress
        )

    def after_epoch(self, progress: Progress, images: TrainImages) -> list[nn.Parameter]:
        """After the first phase: label every image, then start again from scratch."""
        if progress.epoch != self._first_epochs or progress.epoch == progress.epochs:
            return []
        self._label(images)
        self._restart()
        return list(self.parameters())

    @torch.no_grad()
    def _label(self, images: TrainImages) -> None:
        """Take the likeliest class of the centre of each image, as pseudo_labeling/ does."""
        self.eval()
        indices, labels = [], []
        for batch in images.centres():
            indices.append(batch.indices)
            labels.append(self.head(self.backbone(batch.views[0])).argmax(dim=1))
        self.labels[dist.gather_rows(torch.cat(indices))] = dist.gather_rows(torch.cat(labels))
        self.train()

    @torch.no_grad()
    def _restart(self) -> None:
        """Initialise the network anew, alike on all processes."""
        fresh = build_backbone(self.backbone.spec, self.backbone.image_size)
        self.backbone.trunk.load_state_dict(fresh.trunk.state_dict())
        self.head.reset_parameters()
        for value in self.state_dict().values():
            dist.broadcast(value)


def completed(labels: Tensor, pseudo_labels: Tensor) -> Tensor:
    """Labels (n,), with pseudo-labels (n,) in place of those that are UNSEEN."""
    return torch.where(labels == UNSEEN, pseudo_labels, labels)


RESNET50V2_10 = Recipe(
    name="Pseudo-label ResNet-50v2, 10 % of the labels",
    source="S4L (Zhai et al. 2019), section 4.2, Table 1",
    method=PseudoLabelConfig(),
    views=(CROP_AND_FLIP,),
    backbone=BackboneSpec(name="resnet50v2"),
    epochs=120,  # 20 of the first network, 100 of the second
    batch_size=256,
    optim=Optim(
        name="sgd",
        lr=0.1,
        weight_decay=1e-4,
        warmup_epochs=5,
        schedule="steps",
        milestones=(30, 60, 90),
    ),
    labelled=10,
)
# The first network sees plain crops here; the code changes their colours too (see the supervised
# baseline on 1 %), which one set of views for both networks can't say.
RESNET50V2_1 = replace(
    RESNET50V2_10,
    name="Pseudo-label ResNet-50v2, 1 % of the labels",
    method=PseudoLabelConfig(first=_FIRST_1),
    epochs=110,  # 10 and 100
    labelled=1,
)
