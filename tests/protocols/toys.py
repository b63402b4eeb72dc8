"""A data set that pixels solve, a backbone that reads them, and both protocols on it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor, nn

from harness.backbone import POOLED, Backbone
from harness.data import ImageSet
from harness.recipe import BackboneSpec, Reading
from harness.views import CenterCrop, View
from protocols.knn import KNN
from protocols.linear import Linear

CLASSES = 6
SIDE = 8
TRANSFORM = CenterCrop(resize=SIDE, size=SIDE)
KNN_TOY = KNN(dataset="toy", transform=TRANSFORM, k=(1, 5, 20))
LINEAR_TOY = Linear(
    dataset="toy",
    transform=TRANSFORM,
    train_view=View(size=SIDE, scale=(0.8, 1.0), jitter_p=0.0, gray_p=0.0),
    lr=(1e-6, 0.3, 1.0),
    batch_size=32,
    epochs=12,
    holdout=0.1,
)


class PixelBackbone(Backbone):
    """Features are the pixels of a 4x4 thumbnail through a fixed random projection."""

    def __init__(self, dim: int = 64) -> None:
        super().__init__(BackboneSpec(name="resnet_tiny"), SIDE)
        self.dim = dim
        generator = torch.Generator().manual_seed(7)
        self.trunk = nn.Linear(48, dim, bias=False)
        with torch.no_grad():
            self.trunk.weight.copy_(torch.randn((dim, 48), generator=generator) / 48**0.5)

    def forward(self, images: Tensor, reading: Reading = POOLED) -> Tensor:
        return self.trunk(nn.functional.adaptive_avg_pool2d(images, 4).flatten(1))


def toy_split(
    split: str, *, images: int = 330, noise: int = 20, shuffled: bool = False
) -> ImageSet:
    """Images of one colour per class, with pixel noise; a share of the labels is shuffled."""
    generator = np.random.default_rng(1 if split == "train" else 2)
    labels = np.arange(images) % CLASSES
    colours = np.array([(r, g, b) for r in (60, 190) for g in (60, 190) for b in (60, 190)])
    pixels = colours[labels][:, :, None, None] + generator.integers(
        -noise, noise + 1, (images, 3, SIDE, SIDE)
    )
    wrong = generator.random(images) < shuffled
    labels[wrong] = generator.permutation(labels[wrong])
    data = torch.from_numpy(pixels.clip(0, 255).astype(np.uint8))
    return ImageSet(
        name="toy",
        split=split,
        classes=[f"class {c}" for c in range(CLASSES)],
        labels=labels.astype(np.int64),
        checksum=hashlib.sha256(data.numpy().tobytes() + labels.tobytes()).hexdigest(),
        images=data,
    )


@contextmanager
def toy_data(*, noise: int = 20, images: int = 330, shuffled: float = 0.0) -> Iterator[None]:
    """Whatever data set is asked for, it is the toy."""

    def open_split(dataset: str, split: str) -> ImageSet:
        return toy_split(split, images=images, noise=noise, shuffled=shuffled)

    with (
        patch("harness.features.open_split", open_split),
        patch("harness.data.open_split", open_split),
    ):
        yield


def run_both(folder: Path) -> dict[str, tuple[float | None, ...]]:
    """Both protocols on images and labels so noisy that accuracies lie between chance and 100."""
    with toy_data(noise=190, images=331, shuffled=0.5):
        found = KNN_TOY.run(PixelBackbone(), folder / "knn")
        found |= replace(LINEAR_TOY, epochs=3).run(PixelBackbone(), folder / "linear")
    return {name: tuple(estimate) for name, estimate in found.items()}
