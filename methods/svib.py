"""SVIB: self-supervised variational information bottleneck.

Paper: "Understanding Self-supervised Learning via Information Bottleneck Principle" (ICLR 2022
submission); equation numbers are its. No code was released: the text leaves 26 points open, and
the choice made at each that matters stands in a comment with its reason.

In one line: DINO without centring, one shared bank of K unit-norm means instead of its last
layer, plus beta * KL(teacher posterior || uniform), means re-seeded from features every epoch.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from harness import dist, views
from harness.backbone import Backbone
from harness.crop_entropy import CropEntropy, crop_entropy
from harness.heads import DINOProjector
from harness.loader import Batch
from harness.method import Method, TeacherMethod, TrainImages
from harness.multicrop import cross_crop_entropy, forward_crops
from harness.recipe import BackboneSpec, MethodConfig, Optim, Progress, Recipe, TrainingSize
from harness.scale import Scale

Bottleneck = Literal["means", "means_and_targets", "student"]


@dataclass(frozen=True, kw_only=True)
class SVIBConfig(MethodConfig):
    """Hyper-parameters of SVIB (paper, section 4.1) and the switches of its Table 4."""

    version = 2
    has_teacher = True

    means: int = 65536  # K, components of the mixture
    hidden: int = 2048
    bottleneck: int = 256  # width of z
    # The text gives widths only: depth 3 is DINO's, and so is BN in the head for ResNet-50.
    head_batch_norm: bool = False
    sigma_student: float = 0.32  # .32² = .1024: DINO's student temperature .1
    sigma_teacher: float = 0.2  # .2² = .04: DINO's teacher temperature
    information_bottleneck: bool = True  # the KL term ("IB" of Table 4)
    beta: float = 0.5
    final_beta: float | None = 0.01  # reached exponentially; None: beta stays fixed
    reinitialise: bool = True  # means from features after each epoch
    bottleneck_on: Bottleneck = "means"  # where the KL's gradient goes, see svib_terms
    teacher_momentum: float = 0.996  # not stated; DINO's, to 1 by a cosine

    def build(self, backbone: Backbone, training: TrainingSize) -> Method:
        """SVIB around `backbone` and a frozen copy of it."""
        return SVIB(self, backbone)

    def scaled(self, scale: Scale) -> Self:
        """Fewer means and a narrower head."""
        return replace(
            self,
            means=min(self.means, scale.prototypes),
            hidden=min(self.hidden, scale.width),
            bottleneck=min(self.bottleneck, scale.width // 4),
            teacher_momentum=scale.teacher_momentum or self.teacher_momentum,
        )

    def beta_at(self, fraction: float) -> float:
        """Beta after a share `fraction` of all steps: beta * (final_beta / beta)^fraction."""
        if self.final_beta is None:
            return self.beta
        return self.beta * (self.final_beta / self.beta) ** fraction


class SVIB(TeacherMethod):
    """Student, EMA teacher and the means of the mixture that both share."""

    # Means are normalised at use, so that decay and trust ratios would act on a norm that
    # means nothing.
    no_decay = ("means",)

    def __init__(self, config: SVIBConfig, backbone: Backbone) -> None:
        projector = DINOProjector(
            backbone.dim, config.hidden, config.bottleneck, batch_norm=config.head_batch_norm
        )
        super().__init__(backbone, projector, config.teacher_momentum)
        self.config = config
        # Random unit vectors: features of an untrained network are nearly identical. One set
        # for student and teacher: Eq. 20 has the same c_i in both factors.
        self.means = nn.Parameter(F.normalize(torch.randn(config.means, config.bottleneck), dim=1))

    def losses(self, batch: Batch, progress: Progress) -> dict[str, Tensor]:
        """CE and KL; the teacher sees the two global views, the student all ("following DINO")."""
        with torch.no_grad():
            teacher = forward_crops(self.teacher[0], self.teacher[1], batch.views[:2])
        student = forward_crops(self.backbone, self.head, batch.views)
        beta = self.config.beta_at(progress.fraction) if self.config.information_bottleneck else 0.0
        return svib_terms(
            student,
            teacher,
            self.means,
            sigma_student=self.config.sigma_student,
            sigma_teacher=self.config.sigma_teacher,
            beta=beta,
            bottleneck_on=self.config.bottleneck_on,
        )

    @torch.no_grad()
    def after_epoch(self, progress: Progress, images: TrainImages) -> list[nn.Parameter]:
        """Re-initialise the means from teacher features of K random images (section 4.1).

        N = K images without replacement ("the mean of each component with their feature"), one
        global training crop each, through the teacher: what p(c|z2) compares the means with.
        Not after the last epoch, so that the saved means are trained ones.
        """
        if not self.config.reinitialise or progress.epoch >= progress.epochs:
            return []
        features = torch.cat([dist.gather_rows(z) for z in self._teacher_features(images)])
        means = F.normalize(features[: len(self.means)].float(), dim=1)
        self.means.copy_(dist.broadcast(means))
        return [self.means]

    def _teacher_features(self, images: TrainImages) -> Iterator[Tensor]:
        for view in images.sample(len(self.means)):
            yield self.teacher(view)


def svib_terms(  # noqa: PLR0913 (the symbols of Eq. 20)
    student: Tensor,
    teacher: Tensor,
    means: Tensor,
    *,
    sigma_student: float,
    sigma_teacher: float,
    beta: float,
    bottleneck_on: Bottleneck = "means",
) -> dict[str, Tensor]:
    """The negative of the VIB bound (Eq. 16 and 20): CE + beta * KL, in nats.

    Args:
        student: Unit rows z1 (V, n, d), the teacher's crops first.
        teacher: Unit rows z2 (2, n, d), without gradient.
        means: (K, d), normalised here.
        sigma_student: Standard deviation of the mixture's components for z1.
        sigma_teacher: For z2, smaller: the teacher is the more consistent of the two.
        beta: Weight of the KL; 0 leaves the term out.
        bottleneck_on: Where the KL's gradient goes. "means": through the teacher posterior to the
            means alone, targets of the CE detached: the smallest change that makes beta act at
            all (z2 has no gradient). "means_and_targets": the CE's targets undetached as well.
            "student": KL of the student posterior instead.

    Returns:
        "CE" and, unless beta is 0, "KL" already multiplied by beta (absent from Eq. 17 and 20
        but not from Eq. 16 and Table 4). Time and memory: see `harness.crop_entropy`.
    """
    if bottleneck_on == "student":
        # An ablation whose gradient needs the logits themselves once more: as printed.
        plain = {"sigma_student": sigma_student, "sigma_teacher": sigma_teacher, "beta": beta}
        return plain_terms(student, teacher, means, **plain, bottleneck_on=bottleneck_on)
    how = CropEntropy(
        # Eq. 18-19 would give logits 2 z.c / sigma²; Eq. 20 has z.c / sigma², and only with it do
        # the stated sigmas make DINO's temperatures.
        student_temperature=sigma_student**2,
        # Eq. 20 weighs its KL by a posterior with sigma_1 while the log has sigma_2: no divergence
        # then, and possibly negative. sigma_teacher in both.
        teacher_temperature=sigma_teacher**2,
        train_targets=bottleneck_on == "means_and_targets",
    )
    # Signs: Eq. 17 prints + p log p in the first term; only -CE + KL agrees with Eq. 16.
    entropy, kl = crop_entropy(student, teacher, means, None, how)
    return {"CE": entropy, "KL": beta * kl} if beta else {"CE": entropy}


def plain_terms(  # noqa: PLR0913 (the symbols of Eq. 20)
    student: Tensor,
    teacher: Tensor,
    means: Tensor,
    *,
    sigma_student: float,
    sigma_teacher: float,
    beta: float,
    bottleneck_on: Bottleneck = "means",
) -> dict[str, Tensor]:
    """What `svib_terms` computes, by the formulas as printed, with all logits in memory.

    The reference that the fast path is compared with.
    """
    means = F.normalize(means, dim=1)
    student_logits = student @ means.T / sigma_student**2
    posterior = (teacher @ means.T / sigma_teacher**2).softmax(dim=-1)
    targets = posterior if bottleneck_on == "means_and_targets" else posterior.detach()
    terms = {"CE": cross_crop_entropy(student_logits, targets)}
    if beta:
        bounded = student_logits.softmax(dim=-1) if bottleneck_on == "student" else posterior
        terms["KL"] = beta * kl_from_uniform(bounded)
    return terms


def kl_from_uniform(p: Tensor) -> Tensor:
    """Mean of KL(p || uniform) = log K - H(p) over rows, in nats (Eq. 15 with q(c) = 1/K).

    The paper leaves q(c) open; with q = the batch marginal the average is a mutual information
    whose minimum is collapse, but Table 4 shows the term opposing collapse.

    Args:
        p: (…, K) rows that sum to 1.
    """
    return math.log(p.shape[-1]) - torch.special.entr(p).sum(dim=-1).mean()


# Section 4.1: "others follow the same setting with ViT"; batch 512 is stated for ablations only,
# 1024 is DINO's.
VIT_SMALL = Recipe(
    name="SVIB ViT-S/16",
    source="SVIB, section 4.1 and Table 1",
    method=SVIBConfig(),
    views=views.DINO_VIT,
    backbone=BackboneSpec(name="vit_small_16", drop_path=0.1),
    epochs=300,
    batch_size=1024,
    optim=Optim(
        name="adamw",
        lr=5e-4,
        final_lr=1e-6,
        weight_decay=0.04,
        final_weight_decay=0.4,
        warmup_epochs=10,
    ),
)
# Section 4.1, "a more accessible configuration": of the ablations of Table 4 and Figure 3.
VIT_SMALL_ABLATION = replace(
    VIT_SMALL,
    name="SVIB ViT-S/16, ablations",
    source="SVIB, sections 4.1 and 4.4, Table 4",
    method=SVIBConfig(means=8192),
    views=views.dino(global_scale=(0.25, 1.0), local_scale=(0.05, 0.25), local_crops=2),
    epochs=100,
    batch_size=512,
    snapshots=(20, 40, 60, 80),  # epochs of Figure 3
)
RESNET50 = replace(
    VIT_SMALL,
    name="SVIB ResNet-50",
    method=SVIBConfig(head_batch_norm=True),
    views=views.DINO_RESNET,
    backbone=BackboneSpec(name="resnet50"),
    optim=Optim(name="lars", lr=0.3, final_lr=1e-6, weight_decay=1e-6, warmup_epochs=10),
)
