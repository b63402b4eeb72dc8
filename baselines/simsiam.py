"""SimSiam: exploring simple Siamese representation learning (Chen & He, CVPR 2021).

Released code @a7bc177.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self

from torch import Tensor, nn
from torch.nn import functional as F

from harness import views
from harness.backbone import Backbone
from harness.heads import mlp
from harness.loader import Batch
from harness.method import Method
from harness.recipe import BackboneSpec, MethodConfig, Optim, Progress, Recipe, TrainingSize
from harness.scale import Scale


@dataclass(frozen=True, kw_only=True)
class SimSiamConfig(MethodConfig):
    """Hyper-parameters of SimSiam (paper, section 3)."""

    projector: tuple[int, ...] = (2048, 2048, 2048)  # widths after the trunk's
    predictor: int = 512  # its hidden width, a bottleneck

    def build(self, backbone: Backbone, training: TrainingSize) -> Method:
        """SimSiam around `backbone`."""
        return SimSiam(self, backbone)

    def scaled(self, scale: Scale) -> Self:
        """Narrower layers, the predictor's a quarter of the projector's as in the paper."""
        return replace(
            self,
            projector=tuple(min(width, scale.width) for width in self.projector),
            predictor=min(self.predictor, scale.width // 4),
        )


class SimSiam(Method):
    """Trunk and projector with shared weights, and a predictor on either side in turn."""

    # Section 4.2: a predictor whose rate decays converges before the representation has.
    constant_rate = ("predictor",)

    def __init__(self, config: SimSiamConfig, backbone: Backbone) -> None:
        super().__init__()
        self.backbone = backbone
        self.projector = mlp(
            (backbone.dim, *config.projector), hidden_bias=False, last_bias=True, last_norm="plain"
        )
        # The batch norm behind it cancels this bias: in the code, too, it stays what it is.
        last = self.projector[-2]
        assert isinstance(last, nn.Linear)
        last.bias.requires_grad_(False)
        width = config.projector[-1]
        self.predictor = mlp((width, config.predictor, width), hidden_bias=False, last_bias=True)

    def losses(self, batch: Batch, progress: Progress) -> dict[str, Tensor]:
        """Each view's prediction against the other's projection (BN statistics per view)."""
        z1, z2 = (self.projector(self.backbone(view)) for view in batch.views)
        return simsiam_terms(self.predictor(z1), self.predictor(z2), z1, z2)


def simsiam_terms(p1: Tensor, p2: Tensor, z1: Tensor, z2: Tensor) -> dict[str, Tensor]:
    """SimSiam's one term (Eq. 4): minus the mean cosine, in [-1, 1].

    Args:
        p1: Predictions (n, d) from the first view.
        p2: The same images' predictions from the second view.
        z1: Projections (n, d) of the first view: targets, which pass no gradient on.
        z2: Projections of the second view.
    """
    return {"cosine": (negative_cosine(p1, z2) + negative_cosine(p2, z1)) / 2}


def negative_cosine(p: Tensor, z: Tensor) -> Tensor:
    """Minus the mean cosine of predictions and stopped targets (Eq. 1 and 3).

    Args:
        p: (n, d) predictions.
        z: (n, d) targets.
    """
    p, z = (x.float() if x.itemsize < 4 else x for x in (p, z.detach()))
    return -F.cosine_similarity(p, z, dim=1).mean()


RESNET50 = Recipe(
    name="SimSiam ResNet-50",
    source="SimSiam, section 3; IMSVD, Tables I-II",
    method=SimSiamConfig(),
    views=views.MOCO_V2,
    backbone=BackboneSpec(name="resnet50", zero_init_residual=True),
    epochs=100,
    batch_size=512,
    optim=Optim(
        name="sgd", lr=0.05, weight_decay=1e-4, warmup_epochs=0, by_epoch=True, decay_all=True
    ),
)
