"""Local Aggregation of visual embeddings (Zhuang, Zhai & Yamins, ICCV 2019).

Written from the paper; where the released code (LocalAggregation @87ac593, TensorFlow) says more
or differs, a comment says so. The first epochs are NPID's, equations of Wu et al. 2018.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor, nn

from harness import views
from harness.backbone import Backbone
from harness.errors import UserError
from harness.heads import mlp
from harness.kmeans import kmeans, shared_seed
from harness.loader import Batch
from harness.memory import BankMethod, MemoryBank
from harness.method import Method, TrainImages
from harness.nce import draw_candidates, nce, similarities
from harness.recipe import BackboneSpec, MethodConfig, Optim, Progress, Recipe, TrainingSize
from harness.scale import Scale

# Z over the number of images: what NPID found on ImageNet, a constant in the released code.
_NORMALISER = 2876934.2 / 1281167
_FLOOR = 1e-7  # added to the probability, as in the code: no close neighbour may be among the near
_BANK_CHUNK = 131072  # rows of the bank that are searched at a time: 67 MB of products for 128


@dataclass(frozen=True, kw_only=True)
class LocalAggregationConfig(MethodConfig):
    """Hyper-parameters of Local Aggregation (paper, section 4.1; the released code's flags)."""

    width: int = 128  # of the embedding
    temperature: float = 0.07  # tau
    bank_momentum: float = 0.5
    background: int = 4096  # k, nearest neighbours in the bank
    clusters: int = 30000  # m, of each clustering
    clusterings: int = 10  # H
    clustering_iterations: int = 20
    first_epochs: int = 10  # of instance discrimination, at least 1
    negatives: int = 4096  # per image, in those
    centred: bool = False  # batch norm before the unit sphere, for small scales only: see NPID

    def build(self, backbone: Backbone, training: TrainingSize) -> Method:
        """Local Aggregation around `backbone`, with a row of memory per training image.

        Raises:
            UserError: Fewer training images than clusters.
        """
        if training.images < self.clusters:
            raise UserError(
                f"{self.clusters} clusters need as many training images, but there are "
                f"{training.images}; use at most {training.images} clusters"
            )
        return LocalAggregation(self, backbone, training.images)

    def scaled(self, scale: Scale) -> Self:
        """A narrower, centred embedding, fewer and smaller clusters, a smaller background."""
        return replace(
            self,
            width=min(self.width, scale.width),
            background=min(self.background, scale.prototypes),
            clusters=min(self.clusters, scale.prototypes),
            first_epochs=max(1, round(self.first_epochs * scale.epoch_factor)),
            negatives=min(self.negatives, scale.prototypes),
            centred=True,
        )


class LocalAggregation(BankMethod):
    """Trunk, a linear projector, the memory bank, and the clusters of each of its rows.

    Memory per process at the paper's setting: 656 MB for the bank, 51 MB for the clusters, and per
    image of a step 2.1 MB for its background. A step multiplies the batch with all of the bank:
    0.3 gigaflop an image, 4 % of ResNet-50's forward pass.

    Attributes:
        assignments: int32 (images, H), the cluster of each image in each clustering.
    """

    assignments: Tensor

    def __init__(self, config: LocalAggregationConfig, backbone: Backbone, images: int) -> None:
        projector = mlp(
            (backbone.dim, config.width),
            last_bias=True,
            last_norm="plain" if config.centred else "none",
        )
        memory = MemoryBank(images, config.width)
        super().__init__(backbone, projector, memory, momentum=config.bank_momentum)
        self.config = config
        # As in the code, every image is a cluster of its own until the first k-means.
        own = torch.arange(images, dtype=torch.int32)[:, None].repeat(1, config.clusterings)
        self.register_buffer("assignments", own)

    def losses(self, batch: Batch, progress: Progress) -> dict[str, Tensor]:
        """Instance discrimination in the first epochs, then the local aggregation metric."""
        z, bank = self.embed(batch), self.memory.rows
        if progress.epoch < self.config.first_epochs:
            return {"NCE": self._discrimination(z, batch), "LA": z.new_zeros(())}
        neighbours = nearest_rows(z, bank, min(self.config.background, len(bank)))
        close = share_a_cluster(self.assignments, batch.indices, neighbours)
        logits = similarities(z, bank, neighbours) / self.config.temperature
        return {"NCE": z.new_zeros(()), "LA": local_aggregation(logits, close)}

    def _discrimination(self, z: Tensor, batch: Batch) -> Tensor:
        """NPID's loss of unit rows z (n, d)."""
        bank = self.memory.rows
        generator = torch.Generator(z.device).manual_seed(batch.seed)
        rows = draw_candidates(generator, batch.indices, self.config.negatives, len(bank))
        logits = similarities(z, bank, rows) / self.config.temperature
        return nce(logits, logits.new_tensor(_NORMALISER * len(bank)), len(bank))

    @torch.no_grad()
    def after_epoch(self, progress: Progress, images: TrainImages) -> list[nn.Parameter]:
        """Cluster the bank anew, H times, for the epochs of local aggregation."""
        if not self.config.first_epochs <= progress.epoch < progress.epochs:
            return []
        found = kmeans(
            self.memory.rows,
            [self.config.clusters] * self.config.clusterings,
            seed=shared_seed(),
            iterations=self.config.clustering_iterations,
        )
        self.assignments.copy_(torch.stack([one.assignments for one in found], dim=1))
        return []


@torch.no_grad()
def nearest_rows(z: Tensor, bank: Tensor, count: int) -> Tensor:
    """Places of each embedding's nearest rows of the bank: the background B (section 3.2).

    Args:
        z: (n, d) embeddings.
        bank: (images, d), unit rows, in the same precision.
        count: k, at most the rows there are.

    Returns:
        int64 (n, k), in no particular order.
    """
    best = z.new_empty(len(z), 0)
    places = torch.empty(len(z), 0, dtype=torch.int64, device=z.device)
    with torch.autocast(z.device.type, enabled=False):
        for start in range(0, len(bank), _BANK_CHUNK):
            products = z @ bank[start : start + _BANK_CHUNK].T
            largest, at = products.topk(min(count, products.shape[1]), dim=1, sorted=False)
            best = torch.cat([best, largest], dim=1)
            places = torch.cat([places, at + start], dim=1)
            if best.shape[1] > count:
                best, kept = best.topk(count, dim=1, sorted=False)
                places = places.gather(1, kept)
    return places


def share_a_cluster(assignments: Tensor, indices: Tensor, neighbours: Tensor) -> Tensor:
    """Which neighbours are in the cluster of the image in at least one clustering: C and B.

    Args:
        assignments: int32 (images, H).
        indices: (n,), the images.
        neighbours: (n, k), places of other images.

    Returns:
        bool (n, k).
    """
    close = torch.zeros_like(neighbours, dtype=torch.bool)
    for clusters in assignments.T.contiguous():
        close |= clusters[neighbours] == clusters[indices][:, None]
    return close


def local_aggregation(logits: Tensor, close: Tensor) -> Tensor:
    """Mean -log of P(C and B) / P(B), the local aggregation metric (Eq. 5), in nats.

    The paper's P(A) is a sum over A of exp(v.z / tau) / Z; Z cancels.

    Args:
        logits: (n, k) similarities with the background over temperature.
        close: bool (n, k), which of it are close neighbours.

    Returns:
        Scalar; 0 when all of the background is close.
    """
    relative = (logits.softmax(dim=1) * close).sum(dim=1)
    return -(relative + _FLOOR).log().mean()


_STEPS = 1281167 // 128  # of an epoch in the released code, whose rate drops after so many steps:
RESNET50 = Recipe(
    name="Local Aggregation ResNet-50",
    source="Local Aggregation, section 4.1; SVIB, Table 1; IMSVD, Table II",
    method=LocalAggregationConfig(),
    views=views.NPID,
    backbone=BackboneSpec(name="resnet50"),
    epochs=200,
    batch_size=128,
    optim=Optim(
        name="sgd",
        lr=0.06,  # .03 at a batch of 128
        weight_decay=1e-4,  # not of batch norm; the code decays the projector's bias, too
        warmup_epochs=0,
        schedule="steps",
        milestones=(1522000 / _STEPS, 1895857 / _STEPS),  # epochs 152 and 189
    ),
)
