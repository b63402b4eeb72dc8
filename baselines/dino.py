"""DINO: self-distillation with no labels (Caron et al., ICCV 2021); released code @7c446df."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor, nn

from harness import dist, views
from harness.backbone import Backbone
from harness.crop_entropy import CropEntropy, crop_entropy
from harness.heads import DINOProjector, Prototypes
from harness.loader import Batch
from harness.method import Method, TeacherMethod
from harness.multicrop import cross_crop_entropy, forward_crops
from harness.recipe import BackboneSpec, MethodConfig, Optim, Progress, Recipe, TrainingSize
from harness.scale import Scale


@dataclass(frozen=True, kw_only=True)
class DINOConfig(MethodConfig):
    """Hyper-parameters of DINO (paper, section 3; defaults of the released code)."""

    version = 2
    has_teacher = True

    prototypes: int = 65536  # K
    hidden: int = 2048
    bottleneck: int = 256
    head_batch_norm: bool = False
    fixed_gain: bool = True  # norm_last_layer of the code
    student_temperature: float = 0.1
    teacher_temperature: float = 0.04
    first_teacher_temperature: float = 0.04  # warmed up linearly, epoch by epoch
    temperature_epochs: int = 0  # length of that warm-up
    centre_momentum: float = 0.9
    teacher_momentum: float = 0.996  # to 1 by a cosine
    frozen_epochs: int = 1  # epochs in which the last layer gets no gradient

    def build(self, backbone: Backbone, training: TrainingSize) -> Method:
        """DINO around `backbone` and a frozen copy of it."""
        return DINO(self, backbone)

    def scaled(self, scale: Scale) -> Self:
        """Fewer prototypes, a narrower head, and warm-ups shortened like the run."""
        return replace(
            self,
            prototypes=min(self.prototypes, scale.prototypes),
            hidden=min(self.hidden, scale.width),
            bottleneck=min(self.bottleneck, scale.width // 4),
            teacher_momentum=scale.teacher_momentum or self.teacher_momentum,
            temperature_epochs=math.ceil(self.temperature_epochs * scale.epoch_factor),
            frozen_epochs=round(self.frozen_epochs * scale.epoch_factor),
        )

    def teacher_temperature_at(self, epoch: int) -> float:
        """Teacher temperature in epoch `epoch`, counted from 0."""
        if epoch >= self.temperature_epochs - 1:
            return self.teacher_temperature
        share = epoch / (self.temperature_epochs - 1)
        return self.first_teacher_temperature + share * (
            self.teacher_temperature - self.first_teacher_temperature
        )


class DINO(TeacherMethod):
    """Student and EMA teacher, each trunk, projector and prototypes; the teacher's centre."""

    centre: Tensor

    def __init__(self, config: DINOConfig, backbone: Backbone) -> None:
        head = nn.Sequential(
            DINOProjector(
                backbone.dim, config.hidden, config.bottleneck, batch_norm=config.head_batch_norm
            ),
            Prototypes(config.bottleneck, config.prototypes, fixed_gain=config.fixed_gain),
        )
        super().__init__(backbone, head, config.teacher_momentum)
        self.config = config
        self.register_buffer("centre", torch.zeros(config.prototypes))
        self.register_buffer("batch_centre", torch.zeros(config.prototypes), persistent=False)

    def losses(self, batch: Batch, progress: Progress) -> dict[str, Tensor]:
        """Cross-entropy of the teacher's two global crops with the student's others."""
        projector, prototypes = _parts(self.head)
        with torch.no_grad():
            targets = self._targets(batch.views[:2], int(progress.epoch))
        student = forward_crops(self.backbone, projector, batch.views)
        how = CropEntropy(student_temperature=self.config.student_temperature)
        entropy, _ = crop_entropy(student, targets, prototypes.weight, prototypes.gain, how)
        return {"CE": entropy}

    def _targets(self, views: list[Tensor], epoch: int) -> Tensor:
        """The teacher's distributions (2, n, K) of the global crops; notes the batch's centre."""
        projector, prototypes = _parts(self.teacher[1])
        rows = forward_crops(self.teacher[0], projector, views)
        with torch.autocast(rows.device.type, enabled=False):
            logits = prototypes(rows.float() if rows.itemsize < 4 else rows)
            self.batch_centre = dist.all_reduce_mean(logits.mean(dim=(0, 1)))
            return teacher_targets(
                logits, self.centre, temperature=self.config.teacher_temperature_at(epoch)
            )

    def after_backward(self, progress: Progress) -> None:
        """Hold the last layer still in the first epochs."""
        if progress.epoch < self.config.frozen_epochs:
            for parameter in self.head.get_submodule("1").parameters():
                parameter.grad = None

    @torch.no_grad()
    def after_step(self, progress: Progress) -> None:
        """Move the teacher, and the centre towards the batch it was just used on (Eq. 4)."""
        super().after_step(progress)
        self.centre.lerp_(self.batch_centre, 1 - self.config.centre_momentum)


def _parts(head: nn.Module) -> tuple[nn.Module, Prototypes]:
    """Projector and prototypes of a head."""
    prototypes = head.get_submodule("1")
    assert isinstance(prototypes, Prototypes)
    return head.get_submodule("0"), prototypes


def dino_terms(
    student_logits: Tensor,
    teacher_logits: Tensor,
    centre: Tensor,
    *,
    student_temperature: float,
    teacher_temperature: float,
) -> dict[str, Tensor]:
    """DINO's loss (Eq. 3), in nats, as printed.

    The reference of what training computes without holding the logits several times.

    Args:
        student_logits: (V, n, K) over V crops, the teacher's first.
        teacher_logits: (2, n, K) over the global crops.
        centre: (K,), subtracted from the teacher's logits.
        student_temperature: tau_s.
        teacher_temperature: tau_t, smaller: it sharpens.
    """
    targets = teacher_targets(teacher_logits.detach(), centre, temperature=teacher_temperature)
    return {"CE": cross_crop_entropy(student_logits / student_temperature, targets)}


def teacher_targets(logits: Tensor, centre: Tensor, *, temperature: float) -> Tensor:
    """The teacher's centred and sharpened distributions (2, n, K) (Eq. 1 and section 3.1).

    Args:
        logits: (2, n, K).
        centre: (K,).
        temperature: tau_t.
    """
    return (logits - centre).div_(temperature).softmax(dim=-1)


# The released runs (800 epochs); the papers' tables take them at 300.
VIT_SMALL = Recipe(
    name="DINO ViT-S/16",
    source="DINO, released ViT-S/16 run; SVIB, Table 1",
    method=DINOConfig(fixed_gain=False, teacher_temperature=0.07, temperature_epochs=30),
    views=views.DINO_VIT,
    backbone=BackboneSpec(name="vit_small_16", drop_path=0.1),
    epochs=300,
    batch_size=1024,
    optim=Optim(
        name="adamw",
        lr=5e-4,
        final_lr=1e-5,
        weight_decay=0.04,
        final_weight_decay=0.4,
        warmup_epochs=10,
    ),
)
RESNET50 = Recipe(
    name="DINO ResNet-50",
    source="DINO, released ResNet-50 run; SVIB, Table 1",
    method=DINOConfig(
        prototypes=60000, head_batch_norm=True, teacher_temperature=0.07, temperature_epochs=50
    ),
    views=views.DINO_RESNET,
    backbone=BackboneSpec(name="resnet50"),
    epochs=300,
    batch_size=4080,
    optim=Optim(name="lars", lr=0.3, final_lr=0.0048, weight_decay=1e-6, warmup_epochs=10),
)
