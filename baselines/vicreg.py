"""VICReg: variance-invariance-covariance regularisation (Bardes, Ponce & LeCun, ICLR 2022).

Written from the paper; where the released code (@4e12602) differs, a comment says so.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Self

from torch import Tensor
from torch.nn import functional as F

from harness import dist, views
from harness.backbone import Backbone
from harness.gram import squared_norm_of_product
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
    z1, z2 = z1.float() if z1.itemsize < 4 else z1, z2.float() if z2.itemsize < 4 else z2
    everything1, everything2 = dist.gather(z1), dist.gather(z2)
    return {
        # The code averages over images and dimensions; the paper's Eq. 5 has no 1/d, with which
        # its weight of 25 would not train.
        "invariance": invariance * F.mse_loss(z1, z2),
        # The code halves the sum over the two views, the paper (Eq. 6) does not; the published
        # numbers come from the code.
        "variance": variance * (hinge_variance(everything1) + hinge_variance(everything2)) / 2,
        "covariance": covariance
        * (squared_covariance(everything1) + squared_covariance(everything2)),
    }


def hinge_variance(z: Tensor) -> Tensor:
    """Mean over dimensions of max(0, 1 - S(z_j)), S the standard deviation (Eq. 1-2).

    Args:
        z: (N, d), the global batch.
    """
    return F.relu(1 - (z.var(dim=0) + 1e-4).sqrt()).mean()


def squared_covariance(z: Tensor) -> Tensor:
    """Sum of the squared off-diagonal entries of the covariance, over d (Eq. 3-4).

    Args:
        z: (N, d), the global batch.
    """
    n, d = z.shape
    z = z - z.mean(dim=0)
    diagonal = z.square().sum(dim=0).square().sum()
    return (squared_norm_of_product(z, z) - diagonal) / ((n - 1) ** 2 * d)


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
