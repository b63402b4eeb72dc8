"""BYOL: bootstrap your own latent (Grill et al., NeurIPS 2020); deepmind-research @f5de0ed, byol/.

The released code is JAX; its numbers are matched, its TensorFlow-like padding ("SAME") is not:
the trunk is everybody else's ResNet-50.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from harness import views
from harness.backbone import Backbone, build_backbone
from harness.heads import mlp
from harness.loader import Batch
from harness.method import Method, TeacherMethod
from harness.recipe import BackboneSpec, MethodConfig, Optim, Progress, Recipe, TrainingSize
from harness.scale import Scale


@dataclass(frozen=True, kw_only=True)
class BYOLConfig(MethodConfig):
    """Hyper-parameters of BYOL (paper, section 3.2)."""

    has_teacher = True

    projector: tuple[int, ...] = (4096, 256)  # widths after the trunk's
    predictor: tuple[int, ...] = (4096, 256)  # widths after the projector's
    teacher_momentum: float = 0.996  # tau_base, to 1 by a cosine

    def build(self, backbone: Backbone, training: TrainingSize) -> Method:
        """BYOL around `backbone` and a target network of the same shape."""
        return BYOL(self, backbone)

    def scaled(self, scale: Scale) -> Self:
        """Narrower heads and a faster target."""

        def narrower(widths: tuple[int, ...]) -> tuple[int, ...]:
            *hidden, last = widths
            return (*(min(w, scale.width) for w in hidden), min(last, scale.width // 4))

        return replace(
            self,
            projector=narrower(self.projector),
            predictor=narrower(self.predictor),
            teacher_momentum=scale.teacher_momentum or self.teacher_momentum,
        )


class BYOL(TeacherMethod):
    """Online network (trunk, projector, predictor) and its target (trunk, projector)."""

    def __init__(self, config: BYOLConfig, backbone: Backbone) -> None:
        def projector() -> nn.Sequential:
            return mlp((backbone.dim, *config.projector))

        super().__init__(backbone, projector(), config.teacher_momentum)
        self.predictor = mlp((config.projector[-1], *config.predictor))
        # Not a copy: the code draws the target's first weights anew ("we did not notice a
        # significant difference").
        other = build_backbone(backbone.spec, backbone.image_size).teacher()
        self.teacher = nn.Sequential(other, projector().requires_grad_(False))

    @property
    def evaluated(self) -> Backbone:
        """The online trunk."""
        return self.backbone

    def losses(self, batch: Batch, progress: Progress) -> dict[str, Tensor]:
        """Each view's prediction against the other's target; BN statistics per view, as in code."""
        with torch.no_grad():
            # In train mode: the target's BN normalises by its own batch and keeps its own averages.
            targets = [self.teacher(view) for view in batch.views]
        predictions = [self.predictor(self.student(view)) for view in batch.views]
        return byol_terms(torch.stack(predictions), torch.stack(targets))


def byol_terms(predictions: Tensor, targets: Tensor) -> dict[str, Tensor]:
    """BYOL's loss (Eq. 2 and its mirror image, summed): squared distances of unit vectors.

    Args:
        predictions: q(z) of the online network (2, n, d), view by view.
        targets: z' of the target network (2, n, d), the same views.

    Returns:
        One scalar in [0, 8]: the mean over images of 4 - 2 (cos_12 + cos_21).
    """
    predictions, targets = (
        F.normalize(x.float() if x.itemsize < 4 else x, dim=-1)
        for x in (predictions, targets.detach().flip(0))
    )
    distances = (predictions - targets).square().sum(dim=-1)
    return {"regression": distances.mean(dim=1).sum()}


# Learning rate, decay and first momentum go with the epochs (configs/byol.py of the code).
RESNET50 = Recipe(
    name="BYOL ResNet-50",
    source="BYOL, section 3.2; IMSVD, Tables I-II",
    method=BYOLConfig(),
    views=views.BYOL,
    # Haiku's BlockV1 starts the last scale of every residual branch at zero.
    backbone=BackboneSpec(name="resnet50", zero_init_residual=True),
    epochs=1000,
    batch_size=4096,
    optim=Optim(name="lars", lr=0.2, weight_decay=1.5e-6, warmup_epochs=10),
)
RESNET50_300 = replace(
    RESNET50,
    name="BYOL ResNet-50, 300 epochs",
    source="BYOL, appendix F; SVIB, Table 1",
    method=BYOLConfig(teacher_momentum=0.99),
    epochs=300,
    optim=replace(RESNET50.optim, lr=0.3, weight_decay=1e-6),
)
RESNET50_100 = replace(
    RESNET50_300,
    name="BYOL ResNet-50, 100 epochs",
    source="BYOL, released code's preset; IMSVD, Table I",
    epochs=100,
    optim=replace(RESNET50_300.optim, lr=0.45),
)
# As DINO's paper ran it (its Table 7; facebookresearch/dino, issue 34): two crops, DINO's AdamW
# with a fixed decay of .05 and no clipping, heads of three layers with BN. Widths are not stated:
# BYOL's own.
VIT_SMALL = Recipe(
    name="BYOL ViT-S/16",
    source="DINO, Table 7; SVIB, Table 1",
    method=BYOLConfig(projector=(4096, 4096, 256)),
    views=views.BYOL,
    backbone=BackboneSpec(name="vit_small_16", drop_path=0.1),
    epochs=300,
    batch_size=1024,
    optim=Optim(name="adamw", lr=5e-4, final_lr=1e-6, weight_decay=0.05, warmup_epochs=10),
)
