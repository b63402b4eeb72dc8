"""SimCLR v1 (Chen, Kornblith, Norouzi & Hinton, ICML 2020) and v2 (the same, NeurIPS 2020).

Written from the papers; released code (TensorFlow) @383d414.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from harness import dist, views
from harness.backbone import Backbone
from harness.heads import mlp
from harness.method import Method, TwinMethod
from harness.recipe import BackboneSpec, MethodConfig, Optim, Recipe, TrainingSize
from harness.scale import Scale


@dataclass(frozen=True, kw_only=True)
class SimCLRConfig(MethodConfig):
    """Hyper-parameters of SimCLR (v1: section 2; v2 has a projector of three layers)."""

    projector: tuple[int, ...] = (2048, 128)  # widths after the trunk's
    temperature: float = 0.1  # tau

    def build(self, backbone: Backbone, training: TrainingSize) -> Method:
        """SimCLR around `backbone`."""
        # As in the code: no bias before a batch norm, and none in the last one.
        projector = mlp((backbone.dim, *self.projector), hidden_bias=False, last_norm="affine")
        last = projector[-1]
        assert isinstance(last, nn.BatchNorm1d)
        last.bias.requires_grad_(False)
        return TwinMethod(backbone, projector, partial(nt_xent, temperature=self.temperature))

    def scaled(self, scale: Scale) -> Self:
        """Narrower layers."""
        return replace(self, projector=tuple(min(w, scale.width) for w in self.projector))


def nt_xent(z1: Tensor, z2: Tensor, *, temperature: float) -> dict[str, Tensor]:
    """SimCLR's normalised temperature-scaled cross-entropy (v1, Eq. 1), in nats.

    Every view tells its partner from the 2N - 2 views of the other images of the global batch.
    The paper averages over all 2N views; the code, which the rates were tuned with, adds the means
    over the first and over the second views: twice as much.

    Args:
        z1: Projections (n, d) of this process's images under the first view.
        z2: The same images' projections under the second view.
        temperature: tau.

    Returns:
        The two directions, each the mean over this process's images.
    """
    with torch.autocast(z1.device.type, enabled=False):
        z1, z2 = (F.normalize(z.float() if z.itemsize < 4 else z, dim=1) for z in (z1, z2))
        everything1, everything2 = dist.gather(z1), dist.gather(z2)
        return {
            "view1": _direction(z1, everything2, everything1, temperature),
            "view2": _direction(z2, everything1, everything2, temperature),
        }


def _direction(z: Tensor, others: Tensor, same: Tensor, temperature: float) -> Tensor:
    """Mean cross-entropy of the unit rows z (n, d) with their partners.

    Args:
        z: This process's rows under one view.
        others: (N, d), everybody's under the other view, the partners among them.
        same: (N, d), everybody's under the view of z; a row isn't compared with itself.
        temperature: tau.
    """
    places = torch.arange(len(z), device=z.device) + dist.rank() * len(z)
    among_same = (z @ same.T).scatter(1, places[:, None], -torch.inf)
    logits = torch.cat([z @ others.T, among_same], dim=1) / temperature
    return F.cross_entropy(logits, places)


RESNET50_V1 = Recipe(
    name="SimCLR ResNet-50",
    source="SimCLR, appendix B.6; SVIB, Table 2; IMSVD, Table I",
    method=SimCLRConfig(),
    views=views.SIMCLR_V1,
    backbone=BackboneSpec(name="resnet50", zero_init_residual=True),
    epochs=1000,
    batch_size=4096,
    optim=Optim(name="simclr_lars", lr=0.3, weight_decay=1e-6, warmup_epochs=10),
)
# Without the queue that v2's text adds: the released code has none.
RESNET50_V2 = Recipe(
    name="SimCLR v2 ResNet-50",
    source="SimCLR v2, section 3; SVIB, Table 1",
    method=SimCLRConfig(projector=(2048, 2048, 128)),
    views=views.SIMCLR_V2,
    backbone=BackboneSpec(name="resnet50", zero_init_residual=True),
    epochs=800,
    batch_size=4096,
    optim=Optim(
        name="simclr_lars",
        lr=0.4,  # 6.4 = 0.1 * sqrt(4096) in all
        weight_decay=1e-4,
        warmup_epochs=40,  # 5 % of the epochs
    ),
)
