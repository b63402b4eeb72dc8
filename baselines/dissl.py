"""DISSL: distillation to idealised representations (Dubois et al., NeurIPS 2022).

Paper: "Improving Self-Supervised Learning by Characterizing Idealized Representations", its
released code @d4548c4, and for ImageNet the authors' VISSL fork @2464539, whose files
`dissl_e100_d2048_m2.yaml` and its neighbours are the settings of the released weights.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor, nn

from harness import dist, views
from harness.backbone import Backbone
from harness.loader import Batch
from harness.method import Method
from harness.multicrop import cross_crop_entropy, forward_by_size
from harness.recipe import BackboneSpec, MethodConfig, Optim, Progress, Recipe, TrainingSize
from harness.scale import Scale


@dataclass(frozen=True, kw_only=True)
class DISSLConfig(MethodConfig):
    """Hyper-parameters of DISSL (settings of the released ImageNet weights)."""

    classes: int = 16384  # |C|, equivalence classes
    hidden: tuple[int, ...] = (2048,)  # inside the teacher's residual block
    bottleneck: int = 512  # in front of both heads' last layers
    squeeze_first: bool = False  # the teacher's bottleneck before its residual block
    maximality: float = 2.3  # lambda
    invariance: float = 0.6  # beta; the code's default, .8, is for TinyImageNet
    teacher_temperature: float = 0.5
    student_temperature: float = 1.0

    def build(self, backbone: Backbone, training: TrainingSize) -> Method:
        """DISSL around `backbone`."""
        return DISSL(self, backbone)

    def scaled(self, scale: Scale) -> Self:
        """Fewer classes and narrower heads."""
        return replace(
            self,
            classes=min(self.classes, scale.prototypes),
            hidden=tuple(min(width, scale.width) for width in self.hidden),
            bottleneck=min(self.bottleneck, scale.width // 2),
        )


class DISSL(Method):
    """One trunk, a deep head that assigns classes and a linear one that predicts them.

    The linear head has the architecture of the probe that the features are meant for; its
    bottleneck makes it of low rank and cheap, not less linear.
    """

    def __init__(self, config: DISSLConfig, backbone: Backbone) -> None:
        super().__init__()
        self.config = config
        self.backbone = backbone
        width, bottleneck = backbone.dim, config.bottleneck
        squeeze = _Block((width, bottleneck))
        inside = bottleneck if config.squeeze_first else width
        residual = _Residual((inside, *config.hidden, inside))
        self.teacher = nn.Sequential(
            *((squeeze, residual) if config.squeeze_first else (residual, squeeze)),
            nn.Linear(bottleneck, config.classes),
        )
        self.student = nn.Sequential(
            nn.Linear(width, bottleneck, bias=False),
            nn.BatchNorm1d(bottleneck),
            nn.Linear(bottleneck, config.classes),
        )

    def losses(self, batch: Batch, progress: Progress) -> dict[str, Tensor]:
        """Both heads on the first two views, the student on all others as well."""
        features = forward_by_size(self.backbone, batch.views)
        config = self.config
        return dissl_terms(
            self.student(features.flatten(0, 1)).unflatten(0, features.shape[:2]),
            self.teacher(features[:2].flatten(0, 1)).unflatten(0, (2, -1)),
            maximality=config.maximality,
            invariance=config.invariance,
            student_temperature=config.student_temperature,
            teacher_temperature=config.teacher_temperature,
        )


class _Block(nn.Sequential):
    """Linear-BN-ReLU for every pair of widths."""

    def __init__(self, widths: tuple[int, ...]) -> None:
        layers: list[nn.Module] = []
        for width_in, width_out in itertools.pairwise(widths):
            layers += [
                nn.Linear(width_in, width_out, bias=False),
                nn.BatchNorm1d(width_out),
                nn.ReLU(inplace=True),
            ]
        super().__init__(*layers)


class _Residual(_Block):
    """The same, and its input added; first and last width are equal."""

    def forward(self, input: Tensor) -> Tensor:
        return input + super().forward(input)


def dissl_terms(
    student_logits: Tensor,
    teacher_logits: Tensor,
    *,
    maximality: float = 2.3,
    invariance: float = 0.6,
    student_temperature: float = 1.0,
    teacher_temperature: float = 0.5,
) -> dict[str, Tensor]:
    """The three weighted terms of DISSL, in nats.

    Args:
        student_logits: (V, n, K) over V crops of this process's images, the teacher's first.
        teacher_logits: (2, n, K). The assignments are not detached: all terms train them.
        maximality: Weight of the entropy of the assignments' mean over the global batch.
        invariance: Weight of the cross-entropy of one view's assignments with the other's.
        student_temperature: Of the predictions.
        teacher_temperature: Of the assignments.

    Returns:
        Scalars by name.
    """
    student_logits, teacher_logits = (
        x.float() if x.itemsize < 4 else x for x in (student_logits, teacher_logits)
    )
    teacher_logits = teacher_logits / teacher_temperature
    assignments = teacher_logits.softmax(dim=-1)
    return {
        "distillation": cross_crop_entropy(student_logits / student_temperature, assignments),
        "maximality": -maximality * marginal_entropy(assignments),
        "invariance": invariance * cross_crop_entropy(teacher_logits, assignments),
    }


def marginal_entropy(assignments: Tensor) -> Tensor:
    """Entropy of the mean assignment of the global batch, averaged over views, in nats.

    Args:
        assignments: (V, n, K), rows sum to 1.
    """
    marginal = dist.all_reduce_mean(assignments.mean(dim=1))
    # The derivative of -p log p is infinite at 0, where an unused class may get to.
    marginal = marginal.clamp(min=torch.finfo(marginal.dtype).tiny)
    return torch.special.entr(marginal).sum(dim=-1).mean()


_VIEW = replace(views.SWAV_TWO_CROPS[0], pixels=views.IMAGENET_PIXELS)
RESNET50 = Recipe(
    name="DISSL ResNet-50",
    source="DISSL, released dissl_resnet50_dNone_e100_m2; with 400 epochs …_e400_m2",
    method=DISSLConfig(),
    views=(_VIEW,) * 2,
    backbone=BackboneSpec(name="resnet50"),
    epochs=100,
    batch_size=2560,
    optim=Optim(
        name="larc",
        lr=0.3,
        first_lr=1e-3,
        weight_decay=1e-6,
        decay_all=True,
        warmup_epochs=10,
        whole_cosine=True,
    ),
)
# The paper widens the features themselves, from 2048 to 8192; its best numbers are of these.
RESNET50_D8192 = replace(
    RESNET50,
    name="DISSL ResNet-50, 8192 features",
    source="DISSL, released dissl_resnet50_d8192_e100_m2; IMSVD, Table I",
    method=DISSLConfig(hidden=(2048, 2048), squeeze_first=True),
    backbone=BackboneSpec(name="resnet50_d8192"),
)
