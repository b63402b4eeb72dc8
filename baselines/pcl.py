"""PCL: prototypical contrastive learning (Li, Zhou, Xiong & Hoi, ICLR 2021).

Written from the paper; where the released code (@964da1f) says more or differs, a comment says so.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from harness import dist, views
from harness.backbone import Backbone
from harness.contrast import info_nce
from harness.errors import UserError
from harness.heads import mlp
from harness.kmeans import Clusters, kmeans, shared_seed
from harness.loader import Batch
from harness.memory import Queue
from harness.method import Method, TrainImages
from harness.momentum import MomentumContrast
from harness.recipe import BackboneSpec, MethodConfig, Optim, Progress, Recipe, TrainingSize
from harness.scale import Scale


@dataclass(frozen=True, kw_only=True)
class PCLConfig(MethodConfig):
    """Hyper-parameters of PCL (paper, section 4 and appendix B; the released code's flags)."""

    has_teacher = True

    hidden: tuple[int, ...] = ()  # of the head; v1's is one Linear
    width: int = 128  # of the embedding
    temperature: float = 0.1  # tau, and the mean of the concentrations
    key_momentum: float = 0.999
    queue: int = 16384  # r; the paper says 16,000, which batches of 256 don't fill evenly
    negative_prototypes: int = 16384  # of each clustering, drawn for a step
    clusters: tuple[int, ...] = (25000, 50000, 100000)  # K, one clustering for each
    smoothing: float = 10.0  # alpha, holds the concentrations of small clusters down
    clustering_restarts: int = 5  # this and the next: code
    clustering_iterations: int = 20
    warmup_epochs: int = 20  # without prototypes, at least 1
    batch_norm_group: int | None = 32  # images of a GPU, of 8; the README offers 4 as well

    def build(self, backbone: Backbone, training: TrainingSize) -> Method:
        """PCL around `backbone` and a frozen copy of it, with a cluster per training image and K.

        Raises:
            UserError: Not more training images than clusters.
        """
        if training.images <= max(self.clusters):
            raise UserError(
                f"{max(self.clusters)} clusters need more training images than that, but there are "
                f"{training.images}; use at most {training.images - 1} clusters"
            )
        return PCL(self, backbone, training.images)

    def scaled(self, scale: Scale) -> Self:
        """Narrower layers, a shorter queue, and prototypes that halve from one K to the next."""
        most = max(self.clusters)
        return replace(
            self,
            hidden=tuple(min(width, scale.width) for width in self.hidden),
            width=min(self.width, scale.width),
            queue=min(self.queue, scale.prototypes),
            negative_prototypes=min(self.negative_prototypes, scale.prototypes),
            clusters=tuple(k * min(most, scale.prototypes) // most for k in self.clusters),
            warmup_epochs=max(1, round(self.warmup_epochs * scale.epoch_factor)),
            key_momentum=scale.teacher_momentum or self.key_momentum,
        )


class Clustering(nn.Module):
    """One clustering of the training images, its centroids on the unit sphere.

    Attributes:
        assignments: int32 (images,), the cluster of each.
        centroids: (K, d), unit rows.
        concentrations: (K,), phi.
    """

    assignments: Tensor
    centroids: Tensor
    concentrations: Tensor

    def __init__(self, images: int, clusters: int, width: int) -> None:
        super().__init__()
        self.register_buffer("assignments", torch.zeros(images, dtype=torch.int32))
        self.register_buffer("centroids", torch.zeros(clusters, width))
        self.register_buffer("concentrations", torch.ones(clusters))

    @torch.no_grad()
    def take_in(self, found: Clusters, *, smoothing: float, temperature: float) -> None:
        """Make what k-means found the prototypes of the next epoch."""
        phi = concentrations(found, smoothing=smoothing, temperature=temperature)
        self.assignments.copy_(found.assignments)
        self.centroids.copy_(F.normalize(found.centroids, dim=1))
        self.concentrations.copy_(phi)


class PCL(MomentumContrast):
    """Query and key encoder, a queue, and a clustering of the training images for each K.

    Memory per process at the paper's setting: 8 MB for the queue, 90 MB for centroids and 15 MB
    for assignments; 656 MB for the features while they are clustered.
    """

    def __init__(self, config: PCLConfig, backbone: Backbone, images: int) -> None:
        super().__init__(
            backbone,
            mlp((backbone.dim, *config.hidden, config.width), hidden_norm=False, last_bias=True),
            Queue(config.queue, config.width),
            momentum=(config.key_momentum, config.key_momentum),
            batch_norm_group=config.batch_norm_group,
        )
        self.config = config
        self.images = images
        self.clusterings = nn.ModuleList(
            Clustering(images, clusters, config.width) for clusters in config.clusters
        )

    def losses(self, batch: Batch, progress: Progress) -> dict[str, Tensor]:
        """InfoNCE with keys and queue; after the warm-up ProtoNCE as well, the mean over the K."""
        first, second = batch.views
        self.batch_keys = self.keys(second, batch.seed)
        query = self.queries(first)
        temperature = self.config.temperature
        instances = info_nce(query, self.batch_keys, self.queue.rows, temperature=temperature)
        if progress.epoch < self.config.warmup_epochs:
            return {"InfoNCE": instances, "ProtoNCE": torch.zeros_like(instances)}
        return {"InfoNCE": instances, "ProtoNCE": self._proto_nce(query, batch)}

    def _proto_nce(self, query: Tensor, batch: Batch) -> Tensor:
        generator = torch.Generator(query.device).manual_seed(batch.seed)
        everyone = dist.gather_batch(batch.indices)
        terms = []
        for one in self._clusterings():
            own = one.assignments[everyone].long()
            count = min(self.config.negative_prototypes, len(one.centroids))
            others = draw_others(generator, own, len(one.centroids), count)
            terms.append(proto_nce(query, one.centroids, one.concentrations, own, others))
        return torch.stack(terms).mean()

    @torch.no_grad()
    def after_epoch(self, progress: Progress, images: TrainImages) -> list[nn.Parameter]:
        """Cluster the key encoder's features of all images (the E-step), for the next epoch."""
        if not self.config.warmup_epochs <= progress.epoch < progress.epochs:
            return []
        found = kmeans(
            self._features(images),
            self.config.clusters,
            seed=shared_seed(),
            restarts=self.config.clustering_restarts,
            iterations=self.config.clustering_iterations,
        )
        smoothing, temperature = self.config.smoothing, self.config.temperature
        for one, clusters in zip(self._clusterings(), found, strict=True):
            one.take_in(clusters, smoothing=smoothing, temperature=temperature)
        return []

    def _clusterings(self) -> Iterator[Clustering]:
        for one in self.clusterings:
            assert isinstance(one, Clustering)
            yield one

    def _features(self, images: TrainImages) -> Tensor:
        """Unit rows (images, width) of all training images' centre crops, on all processes."""
        queue = self.queue.rows
        features = queue.new_zeros(self.images, self.config.width)
        self.teacher.eval()
        for batch in images.centres():
            z = self.teacher(batch.views[0])
            features[batch.indices] = F.normalize(z.to(queue.dtype), dim=1)
        self.teacher.train()
        return dist.all_reduce_sum(features)  # every row is zero on all processes but one


def concentrations(found: Clusters, *, smoothing: float, temperature: float) -> Tensor:
    """How widely each cluster is spread, phi (Eq. 12), in double precision.

    The mean distance of its Z images from its centroid over log(Z + alpha). From the code: the
    distances are to centroids before those are normalised, clusters of one image or none count as
    the most spread, and the values are cut at their 10th and 90th percentile. Both paper and code
    scale them to a mean of tau.

    Args:
        found: Clusters and squared distances.
        smoothing: alpha.
        temperature: tau.

    Returns:
        (K,).
    """
    k = len(found.centroids)
    sizes = found.assignments.bincount(minlength=k).double()
    distances = found.distances.double().clamp_min(0).sqrt()
    spread = found.assignments.bincount(weights=distances, minlength=k)
    phi = spread / sizes.clamp_min(1) / (sizes + smoothing).log()
    phi = torch.where(sizes > 1, phi, phi[sizes > 1].max())
    bounds = phi.quantile(phi.new_tensor([0.1, 0.9]))
    phi = phi.clamp(bounds[0], bounds[1])
    return temperature * phi / phi.mean()


def draw_others(generator: torch.Generator, own: Tensor, clusters: int, count: int) -> Tensor:
    """Random prototypes that belong to no image of the step, without replacement.

    Args:
        generator: On the device of `own`, in the same state on all processes.
        own: (N,), the clusters of the global batch's images.
        clusters: K.
        count: r, at most K.

    Returns:
        int64 (r,); where fewer than r are left, the rest are clusters of `own`.
    """
    keys = torch.rand(clusters, generator=generator, device=own.device)
    keys[own] = -1
    return keys.topk(count, sorted=False).indices


def proto_nce(query: Tensor, centroids: Tensor, phi: Tensor, own: Tensor, others: Tensor) -> Tensor:
    """Mean -log of the softmax weight of each image's own prototype (Eq. 11, one clustering).

    The prototypes that it is compared with are those of all images of the batch and the drawn
    ones; each logit is divided by its prototype's concentration. As in the code, images of one
    cluster have its prototype twice, once as the target and once as a rival. The code takes the
    images of a GPU; here they are the global batch's, so that processes don't change the loss.

    Args:
        query: (n, d) unit rows of this process's images.
        centroids: (K, d) unit rows.
        phi: (K,) concentrations.
        own: int64 (N,), clusters of the global batch's images.
        others: int64 (r,), drawn clusters; those that are in `own` are left out.

    Returns:
        Scalar in nats, in the centroids' precision.
    """
    with torch.autocast(query.device.type, enabled=False):
        chosen = torch.cat([own, others])
        logits = query.to(centroids.dtype) @ centroids[chosen].T / phi[chosen]
        taken = torch.zeros_like(phi, dtype=torch.bool).index_fill(0, own, True)
        logits[:, len(own) :].masked_fill_(taken[others], -torch.inf)
        targets = torch.arange(dist.rank(), len(own), dist.world(), device=own.device)
        return F.cross_entropy(logits, targets)


RESNET50_V1 = Recipe(
    name="PCL ResNet-50",
    source="PCL, section 4.1 and appendix B; SVIB, Table 1; IMSVD, Table II",
    method=PCLConfig(),
    views=views.NPID * 2,
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
        milestones=(120, 160),
    ),
)
# "MoCo v2's improvements": its head, augmentation and schedule (--mlp --aug-plus --cos), tau .2.
RESNET50_V2 = replace(
    RESNET50_V1,
    name="PCL v2 ResNet-50",
    source="PCL, section 4.1 and Table 2; released code's README",
    method=PCLConfig(hidden=(2048,), temperature=0.2),
    views=views.MOCO_V2,
    optim=Optim(
        name="sgd", lr=0.03, weight_decay=1e-4, decay_all=True, warmup_epochs=0, by_epoch=True
    ),
)
