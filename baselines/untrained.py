"""The untrained trunk: what a protocol finds in a random initialisation."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self

from torch import Tensor

from harness.backbone import Backbone
from harness.errors import UserError
from harness.loader import Batch
from harness.method import Method
from harness.recipe import BackboneSpec, MethodConfig, Optim, Progress, Recipe, TrainingSize
from harness.scale import Scale
from harness.views import CROP_AND_FLIP


@dataclass(frozen=True, kw_only=True)
class UntrainedConfig(MethodConfig):
    """Nothing to choose."""

    def build(self, backbone: Backbone, training: TrainingSize) -> Method:
        """`backbone` as it is."""
        return Untrained(backbone)

    def scaled(self, scale: Scale) -> Self:
        """The same."""
        return self


class Untrained(Method):
    """A trunk that nothing trains."""

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.backbone = backbone

    def losses(self, batch: Batch, progress: Progress) -> dict[str, Tensor]:
        """There is none.

        Raises:
            UserError: Always: a recipe of 0 epochs never asks.
        """
        raise UserError(
            f"the untrained trunk has no loss and is asked to train for {progress.epochs} epochs; "
            "leave it at 0, or take supervised:RESNET50 or another method"
        )


RESNET50 = Recipe(
    name="Untrained ResNet-50",
    source="torchvision's initialisation (He et al. 2015)",
    method=UntrainedConfig(),
    views=(CROP_AND_FLIP,),  # of which the size and the normalisation count
    backbone=BackboneSpec(name="resnet50"),
    epochs=0,
    batch_size=256,
    optim=Optim(name="sgd", lr=0.1),
)
VIT_SMALL = replace(
    RESNET50,
    name="Untrained ViT-S/16",
    source="timm's initialisation",
    backbone=BackboneSpec(name="vit_small_16"),
)
