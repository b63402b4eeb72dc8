"""MoCo v2: improved baselines with momentum contrastive learning (Chen, Fan, Girshick & He, 2020).

Equations of MoCo (He et al., CVPR 2020); released code @7397dfe.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self

from torch import Tensor

from harness import views
from harness.backbone import Backbone
from harness.contrast import info_nce
from harness.heads import mlp
from harness.loader import Batch
from harness.memory import Queue
from harness.method import Method
from harness.momentum import MomentumContrast
from harness.recipe import BackboneSpec, MethodConfig, Optim, Progress, Recipe, TrainingSize
from harness.scale import Scale


@dataclass(frozen=True, kw_only=True)
class MoCoV2Config(MethodConfig):
    """Hyper-parameters of MoCo v2 (paper, section 3; the released code's flags)."""

    has_teacher = True

    hidden: tuple[int, ...] = (2048,)  # of the head
    hidden_batch_norm: bool = False  # in the head
    width: int = 128  # of keys and queries
    queue: int = 65536  # K
    temperature: float = 0.2  # tau; .07 in v1
    key_momentum: float = 0.999  # m
    final_key_momentum: float = 0.999  # reached along a cosine
    batch_norm_group: int | None = 32  # images of a GPU in the paper's runs; None: all

    def build(self, backbone: Backbone, training: TrainingSize) -> Method:
        """MoCo v2 around `backbone` and a frozen copy of it."""
        return MoCoV2(self, backbone)

    def scaled(self, scale: Scale) -> Self:
        """A narrower head, a shorter queue and a key encoder that keeps up with a short run."""
        return replace(
            self,
            hidden=tuple(min(width, scale.width) for width in self.hidden),
            width=min(self.width, scale.width),
            queue=min(self.queue, scale.prototypes),
            key_momentum=scale.teacher_momentum or self.key_momentum,
        )


class MoCoV2(MomentumContrast):
    """Query and key encoder, each a trunk and a head, and the queue (33.6 MB a process)."""

    def __init__(self, config: MoCoV2Config, backbone: Backbone) -> None:
        super().__init__(
            backbone,
            mlp(
                (backbone.dim, *config.hidden, config.width),
                hidden_norm=config.hidden_batch_norm,
                last_bias=True,
            ),
            Queue(config.queue, config.width),
            momentum=(config.key_momentum, config.final_key_momentum),
            batch_norm_group=config.batch_norm_group,
        )
        self.config = config

    def losses(self, batch: Batch, progress: Progress) -> dict[str, Tensor]:
        """The first view's queries against the second view's keys and the queue."""
        first, second = batch.views
        self.batch_keys = self.keys(second, batch.seed)
        temperature = self.config.temperature
        return moco_terms(
            self.queries(first), self.batch_keys, self.queue.rows, temperature=temperature
        )


def moco_terms(
    query: Tensor, key: Tensor, queue: Tensor, *, temperature: float
) -> dict[str, Tensor]:
    """MoCo's one term (Eq. 1), in nats.

    Args:
        query: (n, d) unit rows of the first view.
        key: (n, d) unit rows of the second view, without gradient.
        queue: (K, d) keys of earlier batches.
        temperature: tau.
    """
    return {"InfoNCE": info_nce(query, key, queue, temperature=temperature)}


RESNET50 = Recipe(
    name="MoCo v2 ResNet-50",
    source="MoCo v2, section 3; SVIB, Tables 1 and 3",
    method=MoCoV2Config(),
    views=views.MOCO_V2,
    backbone=BackboneSpec(name="resnet50"),
    epochs=200,
    batch_size=256,
    optim=Optim(
        name="sgd", lr=0.03, weight_decay=1e-4, warmup_epochs=0, by_epoch=True, decay_all=True
    ),
)
# As DINO's authors ran it: two crops (DINO, Table 7), the rest from issue 34 of their repository,
# which gives temperature, key momentum, queue, weight decay, "3 layers" of head with batch norm and
# DINO's learning rate. Widths, crops and the head's synchronised batch norm aren't told: DINO's.
VIT_SMALL = Recipe(
    name="MoCo v2 ViT-S/16",
    source="DINO, Tables 7 and 13; SVIB, Table 1",
    method=MoCoV2Config(
        hidden=(2048, 2048),
        hidden_batch_norm=True,
        width=256,
        temperature=0.1,
        key_momentum=0.996,
        final_key_momentum=1.0,
        batch_norm_group=None,
    ),
    views=views.dino(global_scale=(0.14, 1.0), local_scale=(0.05, 0.14), local_crops=0),
    backbone=BackboneSpec(name="vit_small_16", drop_path=0.1),
    epochs=300,
    batch_size=1024,
    optim=Optim(name="adamw", lr=5e-4, final_lr=1e-5, weight_decay=0.05, warmup_epochs=10),
)
