"""PIRL: pretext-invariant representations (Misra & van der Maaten, CVPR 2020), with jigsaws.

Written from the paper; where the authors' code (vissl @09270ed) differs, a comment says so.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from harness import views
from harness.backbone import Backbone
from harness.heads import mlp
from harness.loader import Batch
from harness.memory import MemoryBank
from harness.method import Method
from harness.nce import draw_candidates, nce, partition, similarities
from harness.recipe import BackboneSpec, MethodConfig, Optim, Progress, Recipe, TrainingSize
from harness.scale import Scale


@dataclass(frozen=True, kw_only=True)
class PIRLConfig(MethodConfig):
    """Hyper-parameters of PIRL (paper, section 3.3)."""

    width: int = 128  # of the embeddings of images and of patches
    hidden: int | None = None  # layer before them, with ReLU; None: the heads are linear
    patches: int = 9
    negatives: int = 32000  # N
    # "nce": NPID's estimator with its constant Z. The paper's Eq. 4 instead normalises over the
    # image and its negatives before it asks which is which; the published models are the code's.
    loss: Literal["nce", "cross_entropy"] = "nce"
    temperature: float = 0.07  # tau
    patch_weight: float = 0.5  # lambda; 1 - lambda for the image
    bank_momentum: float = 0.5
    batch_norm_group: int | None = 32  # images of a GPU in the authors' runs; None: all
    # Batch norm before the unit sphere, for small scales only: where the bank is renewed every few
    # dozen steps, whole batches flee their old rows along one direction instead of spreading.
    centred: bool = False

    def build(self, backbone: Backbone, training: TrainingSize) -> Method:
        """PIRL around `backbone`, with a row of memory per training image."""
        return PIRL(self, backbone, training.images)

    def scaled(self, scale: Scale) -> Self:
        """Narrower heads, centred embeddings and fewer negatives."""
        return replace(
            self,
            width=min(self.width, scale.width),
            hidden=self.hidden and min(self.hidden, scale.width),
            negatives=min(self.negatives, scale.prototypes),
            centred=True,
        )


class PIRL(Method):
    """Trunk, a head for images and one for patches, the memory bank and the constant Z.

    Memory per process at the paper's setting: the bank's 656 MB, for each image of a step 1.2 MB
    that the backward pass needs, and 5 MB more for a moment (see `harness.nce.similarities`;
    copies of the negatives, as the authors' code makes them, are 33 MB an image).
    """

    normaliser: Tensor

    def __init__(self, config: PIRLConfig, backbone: Backbone, images: int) -> None:
        super().__init__()
        self.config = config
        self.batch_norm_group = config.batch_norm_group
        self.backbone = backbone
        hidden = () if config.hidden is None else (config.hidden,)
        widths = (backbone.dim, *hidden, config.width)
        norm = "plain" if config.centred else "none"
        self.image_head = mlp(widths, hidden_norm=False, last_bias=True, last_norm=norm)
        self.patch_head = nn.Sequential(mlp(widths, hidden_norm=False, last_bias=True))
        if hidden:  # the code rectifies a patch's embedding, but not an image's
            self.patch_head.append(nn.ReLU(inplace=True))
        joined = (config.patches * config.width, config.width)
        self.join = mlp(joined, last_bias=True, last_norm=norm)
        self.memory = MemoryBank(images, config.width)
        self.memory.rows.copy_(F.normalize(self.memory.rows, dim=1))
        self.register_buffer("normaliser", torch.ones(()))
        self._seen: tuple[Tensor, Tensor] | None = None  # indices and embeddings of the step

    def losses(self, batch: Batch, progress: Progress) -> dict[str, Tensor]:
        """Contrast of the patches and of the image with the image's row of the bank (Eq. 5)."""
        config, bank = self.config, self.memory.rows
        view, patches = batch.views
        z_patches = F.normalize(self.embed_patches(patches).to(bank.dtype), dim=1)
        z_image = F.normalize(self.image_head(self.backbone(view)).to(bank.dtype), dim=1)
        generator = torch.Generator(bank.device).manual_seed(batch.seed)
        logits = []
        for z in (z_patches, z_image):  # the code draws negatives for each
            rows = draw_candidates(generator, batch.indices, config.negatives, len(bank))
            logits.append(similarities(z, bank, rows) / config.temperature)
        if progress.epoch == 0:  # the run's first batch; the code takes Z from the patches
            self.normaliser.copy_(partition(logits[0], len(bank)))
        self._seen = batch.indices, z_image.detach()
        return {
            "patches": config.patch_weight * self.contrast(logits[0]),
            "image": (1 - config.patch_weight) * self.contrast(logits[1]),
        }

    def embed_patches(self, patches: Tensor) -> Tensor:
        """Shuffled patches (n, patches, 3, s, s) to one embedding (n, width) per image."""
        n, count = patches.shape[:2]
        # Patch by patch, so that the groups of batch norm are those of the images.
        each = self.patch_head(self.backbone(patches.transpose(0, 1).flatten(0, 1)))
        return self.join(each.view(count, n, -1).transpose(0, 1).flatten(1))

    def contrast(self, logits: Tensor) -> Tensor:
        """Loss of (n, 1 + negatives) logits, the image's own row first."""
        if self.config.loss == "nce":
            return nce(logits, self.normaliser, len(self.memory.rows))
        return F.cross_entropy(logits, logits.new_zeros(len(logits), dtype=torch.int64))

    def after_step(self, progress: Progress) -> None:
        """Move the rows of the step's images towards the images' embeddings."""
        assert self._seen is not None
        self.memory.update(*self._seen, self.config.bank_momentum)


RESNET50 = Recipe(
    name="PIRL ResNet-50",
    source="PIRL, section 4; SVIB, Tables 1 and 2",
    method=PIRLConfig(),
    views=views.PIRL,
    backbone=BackboneSpec(name="resnet50"),
    epochs=800,
    batch_size=1024,
    optim=Optim(
        name="sgd",
        lr=0.03,
        final_lr=0.00012,  # .001 of the peak
        weight_decay=1e-4,
        warmup_epochs=0,
        by_epoch=True,
    ),
)
# The authors' later improvement with SimCLR's head, colours and blur: 69.9 in their model zoo.
RESNET50_MLP = replace(
    RESNET50,
    name="PIRL ResNet-50, MLP heads",
    source="vissl @09270ed, projects/PIRL",
    method=PIRLConfig(hidden=2048, loss="cross_entropy", temperature=0.1),
    views=tuple(
        replace(view, jitter=(0.8, 0.8, 0.8, 0.2), jitter_p=0.8, adjust_p=0.0, blur_p=0.5)
        for view in views.PIRL
    ),
)
