"""W-MSE: whitening for self-supervised representation learning (Ermolov et al., ICML 2021).

Released code @d9662c8. The paper has small data sets and ImageNet-100, no full ImageNet.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor
from torch.nn import functional as F

from harness import dist
from harness.backbone import Backbone
from harness.cholesky import cholesky
from harness.errors import UserError
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
from harness.views import Pixels, View


@dataclass(frozen=True, kw_only=True)
class WMSEConfig(MethodConfig):
    """Hyper-parameters of W-MSE (paper, section 4; CIFAR's)."""

    hidden: int = 1024
    width: int = 64  # of the projections
    group: int = 128  # images whitened together; at least twice the width
    iterations: int = 1  # random partitions into groups whose losses are averaged
    ridge: float = 0.0  # share of the identity in each covariance

    def build(self, backbone: Backbone, training: TrainingSize) -> Method:
        """W-MSE around `backbone`."""
        return WMSE(self, backbone)

    def scaled(self, scale: Scale) -> Self:
        """Narrower layers, and groups that fit the batch.

        Few dimensions, since of a small batch there is one group, whose covariance is noisy: at
        demo scale the loss hardly falls with 32.
        """
        return replace(
            self,
            hidden=min(self.hidden, scale.width),
            width=min(self.width, scale.width // 16),
            group=min(self.group, scale.batch_size),
        )


class WMSE(Method):
    """Trunk and head.

    The code's batch norm sees what one GPU holds, and its published runs are on one. Here as
    everywhere it is synchronised, so that any number of processes repeats the run on one.
    """

    def __init__(self, config: WMSEConfig, backbone: Backbone) -> None:
        super().__init__()
        self.config = config
        self.backbone = backbone
        self.head = mlp((backbone.dim, config.hidden, config.width), last_bias=True)

    def losses(self, batch: Batch, progress: Progress) -> dict[str, Tensor]:
        """Distance of the whitened views; the head takes all of them at once, as in the code.

        Raises:
            UserError: Groups that don't divide the batch.
        """
        views = len(batch.views)
        h = self.head(torch.cat([self.backbone(view) for view in batch.views]))
        z = _global_batch(h.unflatten(0, (views, -1)).transpose(0, 1)).transpose(0, 1)
        config = self.config
        groups = partitions(z.shape[1], config.group, config.iterations, batch.seed)
        return w_mse_terms(z, groups.to(z.device, non_blocking=True), ridge=config.ridge)


def _global_batch(rows: Tensor) -> Tensor:
    """Rows of all processes in the global batch's order, with gradient: see dist.gather_batch."""
    return dist.gather(rows).unflatten(0, (dist.world(), -1)).transpose(0, 1).flatten(0, 1)


def partitions(images: int, group: int, iterations: int, seed: int) -> Tensor:
    """Places in the global batch, cut into random groups; the same on all processes.

    Returns:
        int64 (groups of all iterations, images of a group); a batch smaller than `group` is one.

    Raises:
        UserError: `group` doesn't divide the batch.
    """
    group = min(group, images)
    if images % group:
        raise UserError(
            f"groups of {group} images do not divide a batch of {images}; use a batch size that is"
            f" a multiple of {group}, or another group"
        )
    generator = torch.Generator().manual_seed(seed)
    orders = [torch.randperm(images, generator=generator) for _ in range(iterations)]
    return torch.cat(orders).view(-1, group)


def w_mse_terms(z: Tensor, groups: Tensor, *, ridge: float = 0.0) -> dict[str, Tensor]:
    """Mean squared distance of the whitened unit projections over all pairs of views.

    Args:
        z: (V, N, d), projections of the global batch.
        groups: (G, g), places in the batch that are whitened together, view by view.
        ridge: Share of the identity in each covariance.

    Returns:
        One scalar, 2 - 2 cos averaged over images and pairs; equal on all processes.
    """
    views = len(z)
    w = F.normalize(whiten(z.double()[:, groups], ridge=ridge), dim=-1)
    # The sum over i < j of ||w_i - w_j||² for unit vectors
    distances = views**2 - w.sum(dim=0).square().sum(dim=-1)
    mean = distances.mean() / (views * (views - 1) / 2)
    return {"MSE": mean if z.dtype == torch.float64 else mean.float()}


def whiten(z: Tensor, *, ridge: float = 0.0) -> Tensor:
    """L⁻¹ (z - mean) with L Lᵀ the covariance, (1 - ridge) of it and `ridge` of the identity.

    Args:
        z: (…, g, d): statistics are of the g rows; doubles, since whitening divides by the
            smallest of the standard deviations (and since autocast leaves doubles alone).
        ridge: See above.
    """
    centred = z - z.mean(dim=-2, keepdim=True)
    identity = torch.eye(z.shape[-1], dtype=z.dtype, device=z.device)
    covariance = (1 - ridge) * (centred.mT @ centred) / (z.shape[-2] - 1) + ridge * identity
    return torch.linalg.solve_triangular(cholesky(covariance), centred.mT, upper=False).mT


# The code draws colours before it crops; here every recipe crops first.
_VIEW = View(
    size=32,
    scale=(0.2, 1.0),
    jitter=(0.4, 0.4, 0.4, 0.1),
    gray_p=0.1,
    pixels=Pixels(mean=(0.4914, 0.4822, 0.4465), std=(0.2023, 0.1994, 0.2010)),
)
CIFAR10 = Recipe(
    name="W-MSE 2 ResNet-18, CIFAR-10",
    source="W-MSE, Table 1 and released README",
    method=WMSEConfig(),
    views=(_VIEW,) * 2,
    backbone=BackboneSpec(name="resnet18_cifar"),
    epochs=1000,
    batch_size=512,
    optim=Optim(
        name="adam",
        lr=3e-3 * BASE_BATCH / 512,  # 3e-3 whatever the batch
        weight_decay=1e-6,
        decay_all=True,
        warmup_epochs=500 / 97,  # 500 steps
        first_lr=3e-3 / 500,
        schedule="steps",
        milestones=(950, 975),  # 50 and 25 epochs before the end
        drop=0.2,
    ),
    dataset="cifar10",
)
CIFAR10_FOUR_VIEWS = replace(
    CIFAR10,
    name="W-MSE 4 ResNet-18, CIFAR-10",
    views=(_VIEW,) * 4,
    batch_size=256,
    optim=replace(CIFAR10.optim, lr=3e-3, warmup_epochs=500 / 195),
)
# A folder of that name below DATA_ROOT: ImageNet's 100 classes of CMC's list (imagenet100.txt in
# HobbitLong/CMC), as the code's README says.
IMAGENET100 = replace(
    CIFAR10,
    name="W-MSE 2 ResNet-18, ImageNet-100",
    source="W-MSE, ImageNet-100 experiment and released README",
    method=WMSEConfig(width=128, group=256),
    views=(View(size=224, jitter=(0.8, 0.8, 0.8, 0.2), blur_p=0.5),) * 2,
    backbone=BackboneSpec(name="resnet18"),
    epochs=240,
    optim=replace(
        CIFAR10.optim,
        lr=2e-3 * BASE_BATCH / 512,
        first_lr=2e-3 / 500,
        warmup_epochs=500 / 247,
        milestones=(190, 215),
    ),
    dataset="imagenet100",
)
