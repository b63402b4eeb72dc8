"""VICReg: variance-invariance-covariance regularisation (Bardes, Ponce & LeCun, ICLR 2022).

Written from the paper; where the released code (@4e12602) differs, a comment says so.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Self

import torch
from torch import Tensor
from torch.nn import functional as F

from harness import dist, views
from harness.backbone import Backbone
from harness.gram import centre, squared_norm_of_product
from harness.heads import mlp
from harness.method import Method, TwinMethod
from harness.recipe import BackboneSpec, MethodConfig, Optim, Recipe, TrainingSize
from harness.scale import Scale


@dataclass(frozen=True, kw_only=True)
class VICRegConfig(MethodConfig):
    """Hyper-parameters of VICReg (paper, section 4.2)."""

    projector: tuple[int, ...] = (8192, 8192, 8192)  # widths after the trunk's
    invariance: float = 25.0  # lambda
    variance: float = 25.0  # mu
    covariance: float = 1.0  # nu

    def build(self, backbone: Backbone, training: TrainingSize) -> Method:
        """VICReg around `backbone`."""
        terms = partial(
            vicreg_terms,
            invariance=self.invariance,
            variance=self.variance,
            covariance=self.covariance,
        )
        return TwinMethod(backbone, mlp((backbone.dim, *self.projector)), terms)

    def scaled(self, scale: Scale) -> Self:
        """Narrower layers, ablated ones in the same proportion."""
        whole = type(self)().projector[-1]
        widest = min(whole, scale.width)
        return replace(self, projector=tuple(widest * w // whole for w in self.projector))


def vicreg_terms(
    z1: Tensor,
    z2: Tensor,
    *,
    invariance: float = 25.0,
    variance: float = 25.0,
    covariance: float = 1.0,
) -> dict[str, Tensor]:
    """The three weighted terms of VICReg (Eq. 6).

    Args:
        z1: Projections (n, d) of this process's images under the first view.
        z2: The same images' projections under the second view.
        invariance: Weight of the views' squared distance.
        variance: Weight of the hinge on each dimension's standard deviation.
        covariance: Weight of the squared off-diagonal covariances.

    Returns:
        Scalars by name; variance and covariance are of the global batch.
    """
    with torch.autocast(z1.device.type, enabled=False):
        z1, z2 = (z.float() if z.itemsize < 4 else z for z in (z1, z2))
        centred = [centre(z) for z in (z1, z2)]
        variances = [unbiased_variance(z) for z in centred]
        spread = [hinge_variance(v) for v in variances]
        covariances = [squared_covariance(z, v) for z, v in zip(centred, variances, strict=True)]
        return {
            # The code averages over images and dimensions; the paper's Eq. 5 has no 1/d, with
            # which its weight of 25 would not train.
            "invariance": invariance * F.mse_loss(z1, z2),
            # The code halves the sum over the two views, the paper (Eq. 6) does not; the
            # published numbers come from the code.
            "variance": variance * (spread[0] + spread[1]) / 2,
            "covariance": covariance * (covariances[0] + covariances[1]),
        }


def unbiased_variance(centred: Tensor) -> Tensor:
    """Variance (d,) of each dimension over the global batch.

    Args:
        centred: This process's rows (n, d), of mean 0 over the global batch.
    """
    images = len(centred) * dist.world()
    return dist.all_reduce_sum(centred.square().sum(dim=0)) / (images - 1)


def hinge_variance(variance: Tensor) -> Tensor:
    """Mean over dimensions of max(0, 1 - S(z_j)), S the standard deviation (Eq. 1-2).

    Args:
        variance: (d,) of the global batch.
    """
    return F.relu(1 - (variance + 1e-4).sqrt()).mean()


def squared_covariance(centred: Tensor, variance: Tensor) -> Tensor:
    """Sum of the squared off-diagonal entries of the covariance, over d (Eq. 3-4).

    Args:
        centred: This process's rows (n, d), of mean 0 over the global batch.
        variance: (d,), the covariance's diagonal.
    """
    images = len(centred) * dist.world()
    everything = squared_norm_of_product(centred, centred) / (images - 1) ** 2
    return (everything - variance.square().sum()) / len(variance)


RESNET50 = Recipe(
    name="VICReg ResNet-50",
    source="VICReg, section 4.2; IMSVD, Tables I-II",
    method=VICRegConfig(),
    # Table 1.0's asymmetric recipe is the code's; the paper's text symmetrises it
    # (views.VICREG_PAPER).
    views=views.ASYMMETRIC,
    backbone=BackboneSpec(name="resnet50", zero_init_residual=True),
    epochs=1000,
    batch_size=2048,
    optim=Optim(
        name="lars",
        lr=0.2,
        final_lr=0.0016,  # .001 of the peak, as the code
        weight_decay=1e-6,
        warmup_epochs=10,
    ),
)
# The 100-epoch setting of the paper's appendix has a higher base rate.
RESNET50_100 = replace(RESNET50, epochs=100, optim=replace(RESNET50.optim, lr=0.3, final_lr=0.0024))
