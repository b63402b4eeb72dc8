"""NPID: non-parametric instance discrimination (Wu, Xiong, Yu & Lin, CVPR 2018).

Written from the paper; where the released code (lemniscate.pytorch @f7cfe29) differs, a comment
says so.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from harness import views
from harness.backbone import Backbone
from harness.heads import mlp
from harness.loader import Batch
from harness.memory import BankMethod, MemoryBank
from harness.method import Method
from harness.nce import draw_candidates, nce, partition, similarities
from harness.recipe import BackboneSpec, MethodConfig, Optim, Progress, Recipe, TrainingSize
from harness.scale import Scale


@dataclass(frozen=True, kw_only=True)
class NPIDConfig(MethodConfig):
    """Hyper-parameters of NPID (paper, section 4.2)."""

    width: int = 128  # of the embedding
    negatives: int = 4096  # m, drawn from the bank for each image
    temperature: float = 0.07  # tau
    # The paper has a proximal term instead (section 3.3); the code has this alone.
    bank_momentum: float = 0.5
    # Batch norm before the unit sphere, for small scales only: where the bank is renewed every few
    # dozen steps, whole batches flee their old rows along one direction instead of spreading.
    centred: bool = False

    def build(self, backbone: Backbone, training: TrainingSize) -> Method:
        """NPID around `backbone`, with a row of memory per training image."""
        return NPID(self, backbone, training.images)

    def scaled(self, scale: Scale) -> Self:
        """A narrower, centred embedding and fewer negatives."""
        return replace(
            self,
            width=min(self.width, scale.width),
            negatives=min(self.negatives, scale.prototypes),
            centred=True,
        )


class NPID(BankMethod):
    """Trunk, a linear projector, the memory bank and the constant Z of the first batch.

    Memory per process at the paper's setting: the bank's 656 MB, and 2.1 MB per image of a step.
    """

    normaliser: Tensor

    def __init__(self, config: NPIDConfig, backbone: Backbone, images: int) -> None:
        projector = mlp(
            (backbone.dim, config.width),
            last_bias=True,
            last_norm="plain" if config.centred else "none",
        )
        memory = MemoryBank(images, config.width)
        super().__init__(backbone, projector, memory, momentum=config.bank_momentum)
        self.config = config
        self.register_buffer("normaliser", torch.ones(()))

    def losses(self, batch: Batch, progress: Progress) -> dict[str, Tensor]:
        """NCE of each image's embedding with its own row of the bank."""
        z, bank = self.embed(batch), self.memory.rows
        generator = torch.Generator(z.device).manual_seed(batch.seed)
        rows = draw_candidates(generator, batch.indices, self.config.negatives, len(bank))
        logits = similarities(z, bank, rows) / self.config.temperature
        if progress.epoch == 0:  # the run's first batch; Z is a constant from then on (Eq. 8)
            self.normaliser.copy_(partition(logits, len(bank)))
        return {"NCE": nce(logits, self.normaliser, len(bank))}


RESNET50 = Recipe(
    name="NPID ResNet-50",
    source="NPID, section 4.2; IMSVD, Table II",
    method=NPIDConfig(),
    views=views.NPID,
    backbone=BackboneSpec(name="resnet50"),
    epochs=200,
    batch_size=256,
    optim=Optim(
        name="sgd",
        lr=0.03,
        weight_decay=1e-4,
        decay_all=True,
        warmup_epochs=0,
        schedule="steps",
        milestones=(120.0, 160.0),
    ),
)
