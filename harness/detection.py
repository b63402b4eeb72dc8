"""Settings of a detector's training, shared by the engines that carry it out."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from typing import Literal

from harness.errors import UserError
from harness.protocol import Metric

Kind = Literal["bbox", "segm"]
KINDS: tuple[Kind, ...] = ("bbox", "segm")
# As COCOeval.stats has them: all thresholds, IoU .5 and .75, small, medium and large objects.
STATS = ("ap", "ap50", "ap75", "aps", "apm", "apl")
METRICS = tuple(
    # repeated fine-tunings of one trunk differ by 0.2 to 0.3 AP
    Metric(name=f"{kind}_{stat}", unit="AP", noise=0.3)
    for kind in KINDS
    for stat in STATS
)

Engine = Literal["detectron2", "torchvision"]
INSTALL = (
    "pip install 'setuptools<82' && pip install --no-build-isolation "
    "'git+https://github.com/facebookresearch/detectron2.git'"
)


@dataclass(frozen=True, kw_only=True)
class DetectorTraining:
    """How Mask R-CNN is fine-tuned: SGD, linear warm-up, rate drops; all in iterations."""

    engine: Engine = "detectron2"  # torchvision's Mask R-CNN differs in details: other numbers
    model: Literal["c4", "fpn"] = "c4"  # res4 features with a res5 head, or a feature pyramid
    norm: Literal["SyncBN", "naiveSyncBN"] = "SyncBN"  # detectron2's batch norm over processes
    lr: float = 0.02  # at `batch_size`, after the warm-up
    iterations: int = 90_000  # batches
    milestones: tuple[int, ...] = (60_000, 80_000)  # iterations at which the rate drops
    drop: float = 0.1  # what the rate is then multiplied by
    warmup: int = 1000  # iterations of linear warm-up
    warmup_factor: float = 0.001  # of the rate, where the warm-up starts
    momentum: float = 0.9  # of SGD
    weight_decay: float = 1e-4  # of all but batch norms
    batch_size: int = 16  # images, global
    train_sides: tuple[int, ...] = (640, 672, 704, 736, 768, 800)  # shorter side, one is drawn
    test_side: int = 800  # shorter side of val images, pixels
    max_side: int = 1333  # of the longer side, pixels
    # The first number of each is per level of a pyramid.
    train_proposals: tuple[int, int] = (12_000, 2000)  # per train image, before and after NMS
    test_proposals: tuple[int, int] = (6000, 1000)  # per val image, likewise
    anchors_per_image: int = 256  # that the loss of the proposals samples
    rois_per_image: int = 512  # that the loss of the heads samples
    detections: int = 100  # per val image, at most
    precise_bn: int = 200  # batches that estimate batch norm statistics after training; 0: none
    amp: bool = False  # mixed precision, on GPUs only
    seed: int = 0  # of new layers, order, sizes, flips and samples

    def lr_factor(self, iteration: int) -> float:
        """What the learning rate is multiplied by in an iteration, counted from 0."""
        factor = self.drop ** sum(iteration >= milestone for milestone in self.milestones)
        if iteration >= self.warmup:
            return factor
        done = iteration / self.warmup
        return factor * (self.warmup_factor * (1 - done) + done)


def check_settings(settings: DetectorTraining, images: int, processes: int) -> None:
    """Refuse what cannot be trained, before anything is.

    Args:
        settings: To check.
        images: Train images with objects.
        processes: That share a batch.

    Raises:
        UserError: A batch that the images or processes don't make up; an engine that is not there.
    """
    if settings.batch_size % processes or settings.batch_size < 1:
        raise UserError(
            f"batch size {settings.batch_size} is not a multiple of the {processes} processes; "
            f"use {max(settings.batch_size - settings.batch_size % processes, processes)}"
        )
    if images < settings.batch_size:
        raise UserError(
            f"a batch of {settings.batch_size} images cannot be drawn from {images} train images "
            f"with objects; use --batch-size {max(images - images % processes, processes)}"
        )
    if settings.iterations < 1 or not settings.train_sides:
        raise UserError(
            f"iterations={settings.iterations} and train_sides={settings.train_sides} leave "
            "nothing to train; give at least one of each"
        )
    if settings.engine == "detectron2" and importlib.util.find_spec("detectron2") is None:
        raise UserError(
            f"engine detectron2 is not installed; install it ({INSTALL}) or use --engine "
            "torchvision, which is always there and whose numbers count as a different protocol"
        )
    if settings.amp:
        import torch

        if not torch.cuda.is_available():
            raise UserError("amp=True needs a GPU and there is none; leave --amp out")
