"""Barlow Twins (Zbontar, Jing, Misra, LeCun & Deny, ICML 2021); released code @8e8d284."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Self

import torch
from torch import Tensor

from harness import dist, views
from harness.backbone import Backbone
from harness.gram import squared_norm_of_product, standardise
from harness.heads import mlp
from harness.method import Method, TwinMethod
from harness.recipe import BackboneSpec, MethodConfig, Optim, Recipe, TrainingSize
from harness.scale import Scale


@dataclass(frozen=True, kw_only=True)
class BarlowTwinsConfig(MethodConfig):
    """Hyper-parameters of Barlow Twins (paper, section 2.2)."""

    projector: tuple[int, ...] = (8192, 8192, 8192)  # widths after the trunk's, no biases
    redundancy: float = 0.005  # lambda; the code uses 0.0051

    def build(self, backbone: Backbone, training: TrainingSize) -> Method:
        """Barlow Twins around `backbone`."""
        projector = mlp((backbone.dim, *self.projector), hidden_bias=False)
        return TwinMethod(
            backbone, projector, partial(barlow_twins_terms, redundancy=self.redundancy)
        )

    def scaled(self, scale: Scale) -> Self:
        """Narrower layers."""
        return replace(self, projector=tuple(min(w, scale.width) for w in self.projector))


def barlow_twins_terms(z1: Tensor, z2: Tensor, *, redundancy: float = 0.005) -> dict[str, Tensor]:
    """The two terms of Barlow Twins (Eq. 1), on the cross-correlation of the global batch.

    Args:
        z1: Projections (n, d) of this process's images under the first view.
        z2: The same images' projections under the second view.
        redundancy: Weight lambda of the off-diagonal term.

    Returns:
        Scalars by name, equal on all processes.
    """
    with torch.autocast(z1.device.type, enabled=False):
        z1, z2 = (standardise(z.float() if z.itemsize < 4 else z) for z in (z1, z2))
        images = len(z1) * dist.world()
        diagonal = dist.all_reduce_mean((z1 * z2).mean(dim=0))
        everything = squared_norm_of_product(z1, z2) / images**2
        return {
            "invariance": (1 - diagonal).square().sum(),
            "redundancy": redundancy * (everything - diagonal.square().sum()),
        }


RESNET50 = Recipe(
    name="Barlow Twins ResNet-50",
    source="Barlow Twins, section 2.2; IMSVD, Tables I-II",
    method=BarlowTwinsConfig(),
    views=views.ASYMMETRIC,
    backbone=BackboneSpec(name="resnet50", zero_init_residual=True),
    epochs=1000,
    batch_size=2048,
    optim=Optim(
        name="lars",
        lr=0.2,
        final_lr=0.0016,  # .001 of the peak
        # The code's all_reduce has no gradient, so that on its 16 GPUs it follows 1/16 of the
        # true gradient. LARS cancels the factor for matrices, not for biases and norms, whose
        # .0048 is therefore .0048 / 16 of the exact gradient used here.
        bias_lr=0.0048 / 16,
        weight_decay=1.5e-6,  # the code's default is 1e-6
        warmup_epochs=10,
    ),
)
