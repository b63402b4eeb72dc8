"""SwAV: swapped assignments between views (Caron et al., NeurIPS 2020); released code @06b1b7c.

The code synchronises batch norm within groups of 8 GPUs (512 images) for speed; here it spans the
global batch, as in the paper.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from harness import dist, views
from harness.backbone import Backbone
from harness.heads import mlp
from harness.loader import Batch
from harness.memory import Queue
from harness.method import Method
from harness.multicrop import cross_crop_entropy, forward_crops
from harness.recipe import BackboneSpec, MethodConfig, Optim, Progress, Recipe, TrainingSize
from harness.scale import Scale
from harness.sinkhorn import sinkhorn

ASSIGNED = 2  # crops that get an assignment: the global ones


@dataclass(frozen=True, kw_only=True)
class SwAVConfig(MethodConfig):
    """Hyper-parameters of SwAV (paper, appendix A; scripts of the released code)."""

    projector: tuple[int, ...] = (2048, 128)  # widths after the trunk's
    prototypes: int = 3000  # K
    temperature: float = 0.1
    epsilon: float = 0.05  # of Sinkhorn-Knopp
    iterations: int = 3
    # 313 iterations of the code, which makes 312 of an epoch at batch 4096.
    frozen_epochs: float = 313 / 312  # in which the prototypes get no gradient
    queue: int = 0  # earlier embeddings of each assigned crop that join the assignment
    queue_epochs: int = 15  # before the queue starts to fill

    def build(self, backbone: Backbone, training: TrainingSize) -> Method:
        """SwAV around `backbone`."""
        return SwAV(self, backbone, training)

    def scaled(self, scale: Scale) -> Self:
        """Fewer prototypes, a narrower head, a shorter queue that starts as early in the run.

        Small batches leave assignments soft, and the network follows them into one point (a loss
        of log K). Against that the code's README has a smaller epsilon and prototypes that are
        frozen at first: for an epoch, however few there are. They are also fewer than the images
        of a few steps, as in the paper.
        """
        *hidden, last = self.projector
        return replace(
            self,
            projector=(*(min(w, scale.width) for w in hidden), min(last, scale.width // 4)),
            prototypes=min(self.prototypes, scale.prototypes // 4),
            epsilon=min(self.epsilon, 0.01),
            queue=min(self.queue, scale.prototypes),
            queue_epochs=math.ceil(self.queue_epochs * scale.epoch_factor),
        )


class SwAV(Method):
    """Trunk, projector, prototypes, and with small batches a queue of earlier embeddings.

    Attributes:
        queue: A row is an image's embeddings under both assigned crops: 8 * length * width bytes
            on each process (3.9 MB for 3840 of width 128). The code puts the newest first; the
            order of rows makes no difference to assignments.
    """

    queue: Queue | None
    batch_embeddings: Tensor  # this process's embeddings of the step, (2, n, d)

    def __init__(self, config: SwAVConfig, backbone: Backbone, training: TrainingSize) -> None:
        super().__init__()
        self.config = config
        self.backbone = backbone
        self.projector = mlp((backbone.dim, *config.projector), last_bias=True)
        width = config.projector[-1]
        self.prototypes = nn.Linear(width, config.prototypes, bias=False)
        self._normalise_prototypes()
        self.queue = Queue(config.queue, ASSIGNED * width) if config.queue else None
        self._images = training.images

    def losses(self, batch: Batch, progress: Progress) -> dict[str, Tensor]:
        """Cross-entropy of each global crop's assignments with all other crops' predictions."""
        z = forward_crops(self.backbone, self.projector, batch.views)
        # Half precision would round cosines by up to .004, .08 in units of epsilon.
        with torch.autocast(z.device.type, enabled=False):
            z = F.normalize(z.float() if z.itemsize < 4 else z, dim=-1)
            scores = self.prototypes(z)
            self.batch_embeddings = z[:ASSIGNED].detach()
            assignments = self._assign(scores[:ASSIGNED].detach(), progress)
            return swav_terms(scores, assignments, temperature=self.config.temperature)

    def after_backward(self, progress: Progress) -> None:
        """Hold the prototypes still in the first iterations."""
        if progress.epoch < self.config.frozen_epochs:
            self.prototypes.weight.grad = None

    def after_step(self, progress: Progress) -> None:
        """Put the prototypes back on the sphere and this step's embeddings into the queue.

        The code does the former before each forward pass, which is the same.
        """
        self._normalise_prototypes()
        if self.queue is not None and progress.epoch >= self.config.queue_epochs:
            self.queue.enqueue(self.batch_embeddings.transpose(0, 1).flatten(1))

    @torch.no_grad()
    def _normalise_prototypes(self) -> None:
        self.prototypes.weight.copy_(F.normalize(self.prototypes.weight, dim=1))

    @torch.no_grad()
    def _assign(self, scores: Tensor, progress: Progress) -> Tensor:
        """Assignments (2, n, K) of this step's rows, made together with a full queue's."""
        mine = scores.shape[1]
        if self.queue is not None and self._queue_is_full(progress, mine * dist.world()):
            share = self.queue.rows[dist.rank() :: dist.world()]
            earlier = share.unflatten(1, (ASSIGNED, -1)).transpose(0, 1)
            scores = torch.cat([self.prototypes(earlier), scores], dim=1)
        assignments = sinkhorn(
            scores, epsilon=self.config.epsilon, iterations=self.config.iterations
        )
        return assignments[:, -mine:]

    def _queue_is_full(self, progress: Progress, batch_size: int) -> bool:
        """Whether every row has been filled, from where the run stands: the GPU isn't asked."""
        epochs = progress.epoch - self.config.queue_epochs
        return round(epochs * (self._images // batch_size)) * batch_size >= self.config.queue


def swav_terms(scores: Tensor, assignments: Tensor, *, temperature: float) -> dict[str, Tensor]:
    """SwAV's swapped prediction (Eq. 1-2 and, with more crops, 6), in nats.

    Args:
        scores: Cosines z.c of V crops with the prototypes (V, n, K), the assigned crops first.
        assignments: q of the first two crops (2, n, K), rows sum to 1.
        temperature: tau.

    Returns:
        Mean over images, the 2 assignments and the V - 1 other crops of each.
    """
    return {"CE": cross_crop_entropy(scores / temperature, assignments)}


RESNET50 = Recipe(
    name="SwAV ResNet-50",
    source="SwAV, released 800-epoch run; SVIB, Tables 1-2",
    method=SwAVConfig(),
    views=views.SWAV,
    backbone=BackboneSpec(name="resnet50"),
    epochs=800,
    batch_size=4096,
    # 4.8 at batch 4096. LARC and weight decay act on 1-D parameters too.
    optim=Optim(
        name="larc",
        lr=0.3,
        final_lr=0.0048,
        weight_decay=1e-6,
        warmup_epochs=10,
        first_lr=0.3,
        decay_all=True,
    ),
)
# What IMSVD lists: SimSiam's reproduction (its Table 4), SwAV without multi-crop.
RESNET50_TWO_CROPS = replace(
    RESNET50,
    name="SwAV ResNet-50, two crops",
    source="SwAV, released 400-epoch run without multi-crop; IMSVD, Table I",
    views=views.SWAV_TWO_CROPS,
    epochs=400,
)
RESNET50_256 = replace(
    RESNET50,
    name="SwAV ResNet-50, batch 256",
    source="SwAV, released 200-epoch run at batch 256",
    # 5005 iterations of the code, which makes 5004 of an epoch.
    method=SwAVConfig(queue=3840, frozen_epochs=5005 / 5004),
    epochs=200,
    batch_size=256,
    optim=replace(RESNET50.optim, lr=0.6, final_lr=0.0006, warmup_epochs=0, first_lr=0.0),
)
# As DINO's paper ran it (its Table 7; facebookresearch/dino, issue 34): DINO's crops and AdamW
# with a fixed decay of .05 and no clipping, a head of three layers with BN. Widths and prototypes
# are not stated: SwAV's own.
VIT_SMALL = Recipe(
    name="SwAV ViT-S/16",
    source="DINO, Table 7; SVIB, Table 1",
    method=SwAVConfig(projector=(2048, 2048, 128)),
    views=views.DINO_VIT,
    backbone=BackboneSpec(name="vit_small_16", drop_path=0.1),
    epochs=300,
    batch_size=1024,
    optim=Optim(name="adamw", lr=5e-4, final_lr=1e-6, weight_decay=0.05, warmup_epochs=10),
)
