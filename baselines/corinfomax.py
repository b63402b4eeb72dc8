"""CorInfoMax: correlative information maximisation (Ozsoy et al., NeurIPS 2022).

Written from the paper; where the released code (@c0b917e, imagenet1k) differs, a comment says so.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor
from torch.nn import functional as F

from harness import dist, views
from harness.backbone import Backbone
from harness.cholesky import log_determinant
from harness.heads import mlp
from harness.loader import Batch
from harness.method import Method
from harness.recipe import (
    BASE_BATCH,
    BackboneSpec,
    MethodConfig,
    Optim,
    Progress,
    Recipe,
    TrainingSize,
)
from harness.scale import Scale


@dataclass(frozen=True, kw_only=True)
class CorInfoMaxConfig(MethodConfig):
    """Hyper-parameters of CorInfoMax (paper, section 4; ImageNet's of the released README)."""

    projector: tuple[int, ...] = (8192, 8192, 512)  # widths after the trunk's
    invariance: float = 2000.0  # weight of the views' squared distance
    # The paper's forgetting factor: the weight of the OLD statistics, so that nearly all of a
    # covariance is of the present batch.
    memory: float = 0.1
    ridge: float = 1e-8  # added to the diagonal of the covariances

    def build(self, backbone: Backbone, training: TrainingSize) -> Method:
        """CorInfoMax around `backbone`."""
        return CorInfoMax(self, backbone)

    def scaled(self, scale: Scale) -> Self:
        """Narrower layers; the last much narrower than a batch, or its covariance is singular.

        The squared distance is a mean over dimensions, so its weight falls with their number: as
        in the released settings, 2000 of 512, 500 of 128 and, on CIFAR-10, 250 of 64.
        """
        *hidden, last = self.projector
        width = min(last, scale.width // 8)
        return replace(
            self,
            projector=(*(min(w, scale.width) for w in hidden), width),
            invariance=self.invariance * width / last,
        )


class CorInfoMax(Method):
    """Trunk, projector, and moving statistics of the projections of each view.

    The covariances are float64, 8 * 2 * d² bytes (4.2 MB at the paper's d = 512).
    """

    means: Tensor  # (2, d)
    covariances: Tensor  # (2, d, d)

    def __init__(self, config: CorInfoMaxConfig, backbone: Backbone) -> None:
        super().__init__()
        self.config = config
        self.backbone = backbone
        self.projector = mlp((backbone.dim, *config.projector))
        width = config.projector[-1]
        means = torch.zeros(2, width, dtype=torch.float64)
        covariances = torch.eye(width, dtype=torch.float64).repeat(2, 1, 1)
        for name, start in (("means", means), ("covariances", covariances)):
            self.register_buffer(name, start)
            self.register_buffer(f"next_{name}", start.clone(), persistent=False)

    def losses(self, batch: Batch, progress: Progress) -> dict[str, Tensor]:
        """Distance and log-determinants of unit projections, each view through the net alone."""
        z = torch.stack([self._project(view) for view in batch.views])
        means, covariances = moving_statistics(
            z, self.means, self.covariances, memory=self.config.memory
        )
        self.next_means, self.next_covariances = means.detach(), covariances.detach()
        return corinfomax_terms(
            z, covariances, invariance=self.config.invariance, ridge=self.config.ridge
        )

    def _project(self, view: Tensor) -> Tensor:
        z: Tensor = self.projector(self.backbone(view))
        return F.normalize(z.float() if z.itemsize < 4 else z, dim=1)

    @torch.no_grad()
    def after_step(self, progress: Progress) -> None:
        """Keep the statistics that the step was taken with."""
        self.means.copy_(self.next_means)
        self.covariances.copy_(self.next_covariances)


def moving_statistics(
    z: Tensor, means: Tensor, covariances: Tensor, *, memory: float
) -> tuple[Tensor, Tensor]:
    """Recursive estimates of mean and covariance of each view, in float64, with gradient.

    mu_l = memory * mu_(l-1) + (1 - memory) * batch mean, and R_l the same of (z - mu_l)(z - mu_l)ᵀ
    averaged over the global batch.

    Args:
        z: (V, n, d) projections of this process's images.
        means: (V, d), the estimates before this batch.
        covariances: (V, d, d), likewise.
        memory: Weight of the estimates before.

    Returns:
        Means (V, d) and covariances (V, d, d), equal on all processes.
    """
    z = z.double()  # which autocast leaves alone
    means = memory * means + (1 - memory) * dist.all_reduce_mean(z.mean(dim=1))
    centred = z - means[:, None]
    batch = dist.all_reduce_mean(centred.mT @ centred / z.shape[1])
    return means, memory * covariances + (1 - memory) * batch


def corinfomax_terms(
    z: Tensor, covariances: Tensor, *, invariance: float = 2000.0, ridge: float = 1e-8
) -> dict[str, Tensor]:
    """The two weighted terms of CorInfoMax: distance of the views, volume of each.

    Args:
        z: Unit rows (2, n, d): this process's images under the two views.
        covariances: (2, d, d) of the views' projections.
        invariance: Weight of the mean over images and dimensions of the squared distance.
        ridge: Added to the covariances' diagonals.

    Returns:
        Scalars by name; the volume, -log det(R1 + ridge I) - log det(R2 + ridge I), is divided by
        d as in the code.
    """
    d = z.shape[-1]
    identity = torch.eye(d, dtype=covariances.dtype, device=covariances.device)
    volume = log_determinant(covariances + ridge * identity).sum() / d
    return {"invariance": invariance * F.mse_loss(z[0], z[1]), "volume": -volume.to(z.dtype)}


RESNET50 = Recipe(
    name="CorInfoMax ResNet-50",
    source="CorInfoMax, section 4 and released README (ImageNet-1K); IMSVD, Table I",
    method=CorInfoMaxConfig(),
    views=views.ASYMMETRIC,
    backbone=BackboneSpec(name="resnet50", zero_init_residual=True),
    epochs=100,
    batch_size=1536,
    optim=Optim(
        name="sgd",
        lr=0.2 * BASE_BATCH / 1536,  # .2 at batch 1536: the code doesn't scale it
        final_lr=1e-6,
        weight_decay=1e-4,
        decay_all=True,
        # The code's warm-up reaches the peak an epoch earlier, and stays there for two.
        warmup_epochs=10,
        first_lr=3e-3,
        by_epoch=True,
    ),
)
