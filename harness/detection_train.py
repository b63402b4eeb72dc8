"""Fine-tunes torchvision's Mask R-CNN; a killed run goes on and ends with the same bits."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection.generalized_rcnn import GeneralizedRCNN

from harness import dist
from harness.backbone import Backbone
from harness.checkpoint import load_training, save_training
from harness.coco import CocoSplit
from harness.detection import DetectorTraining
from harness.detection_data import batches
from harness.detection_torchvision import build_detector, detect, losses
from harness.errors import UserError
from harness.features import digest
from harness.progress import say, track
from harness.recipe import fingerprint

SAVE_SECONDS = 300.0  # between checkpoints, which hold the network and its momenta
Detect = Callable[[CocoSplit], list[dict[str, Any]]]
_NORMS = (nn.modules.batchnorm._BatchNorm,)


def fine_tune(
    backbone: Backbone, data: CocoSplit, settings: DetectorTraining, workdir: Path
) -> Detect:
    """What finds the objects in this process's share of a split, trained (see `train`)."""
    model = train(backbone, data, settings, workdir)
    return lambda split: detect(model, split, settings)


def train(
    backbone: Backbone, data: CocoSplit, settings: DetectorTraining, workdir: Path
) -> GeneralizedRCNN:
    """A detector fine-tuned from the trunk, which stays as it is.

    Args:
        backbone: A ResNet.
        data: Train split.
        settings: Model, schedule and sizes.
        workdir: `workdir/detector` gets checkpoints, from which an interrupted run goes on.

    Raises:
        UserError: The losses stop being finite; an image cannot be read.
    """
    identity = fingerprint(settings, digest(backbone), backbone.pixels, data.checksum)
    model = build_detector(backbone, len(data.classes), settings)
    dist.sync_batchnorm(model)
    optimizer = _optimizer(model, settings)
    scaler = torch.amp.GradScaler("cuda", enabled=settings.amp)
    done = _restore(model, optimizer, scaler, workdir, identity)
    model.train()
    saved = time.monotonic()
    images = batches(data, settings, done, settings.iterations)
    progress = track(
        range(done, settings.iterations),
        label="detector",
        total=settings.iterations,
        done=done,
    )
    for iteration in progress:
        rate = settings.lr * settings.lr_factor(iteration)
        for group in optimizer.param_groups:
            group["lr"] = rate
        with torch.autocast(dist.device().type, torch.float16, enabled=settings.amp):
            loss = losses(model, next(images))
        _check_finite(loss, iteration, rate)
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        _average_gradients(model)
        scaler.step(optimizer)
        scaler.update()
        last = iteration + 1 == settings.iterations
        if last or time.monotonic() - saved > SAVE_SECONDS:
            say(f"iteration {iteration + 1} of {settings.iterations}: loss {loss.item():.4f}")
            _save(model, optimizer, scaler, workdir, identity, iteration + 1)
            saved = time.monotonic()
    _estimate_norms(model, data, settings)
    return model.eval()


def _optimizer(model: nn.Module, settings: DetectorTraining) -> torch.optim.SGD:
    """SGD; batch norms are not decayed."""
    norms = {id(p) for m in model.modules() if isinstance(m, _NORMS) for p in m.parameters()}
    parameters = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if id(p) not in norms]},
        {"params": [p for p in parameters if id(p) in norms], "weight_decay": 0.0},
    ]
    return torch.optim.SGD(
        groups, lr=settings.lr, momentum=settings.momentum, weight_decay=settings.weight_decay
    )


def _check_finite(loss: Tensor, iteration: int, rate: float) -> None:
    """Raise on every process when the loss of any is not finite."""
    if not dist.all_reduce_sum(loss.detach()).isfinite():
        raise UserError(
            f"the detector's loss became non-finite in iteration {iteration + 1} (learning rate "
            f"{rate:g}); use a smaller --lr, or check that the checkpoint's features are finite"
        )


def _average_gradients(model: nn.Module) -> None:
    """Replace each process's gradients by their mean over processes."""
    if dist.world() == 1:
        return
    # In one go and in one order: which parameters get a gradient depends on what an image shows.
    parameters = [p for p in model.parameters() if p.requires_grad]
    slopes = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
    mean = dist.all_reduce_mean(torch.cat([slope.flatten() for slope in slopes]))
    for parameter, slope in zip(
        parameters, mean.split([p.numel() for p in parameters]), strict=True
    ):
        parameter.grad = slope.view_as(parameter)


def _estimate_norms(model: GeneralizedRCNN, data: CocoSplit, settings: DetectorTraining) -> None:
    """Batch norm statistics as plain means over batches (detectron2's PreciseBN)."""
    norms: list[Any] = [m for m in model.modules() if isinstance(m, _NORMS)]
    usual = [norm.momentum for norm in norms]
    model.train()
    start = settings.iterations
    images = batches(data, settings, start, start + settings.precise_bn)
    progress = track(images, label="batch norm statistics", total=settings.precise_bn)
    with torch.no_grad():
        for number, batch in enumerate(progress):
            for norm in norms:
                norm.momentum = 1 / (number + 1)
            losses(model, batch)
    for norm, momentum in zip(norms, usual, strict=True):
        norm.momentum = momentum


def _save(
    model: nn.Module,
    optimizer: torch.optim.SGD,
    scaler: torch.amp.GradScaler,
    workdir: Path,
    identity: str,
    done: int,
) -> None:
    if dist.is_main():
        state = {
            "identity": identity,
            "done": done,
            "model": model.state_dict(),
            "optimizer": optimizer.state_dict(),
            "scaler": scaler.state_dict(),
        }
        save_training(workdir / "detector", done, state)


def _restore(
    model: nn.Module,
    optimizer: torch.optim.SGD,
    scaler: torch.amp.GradScaler,
    workdir: Path,
    identity: str,
) -> int:
    """Load the last checkpoint; returns the iterations done, 0 if there is none of ours."""
    found = load_training(workdir / "detector")
    # The main process writes the next checkpoint only after all have taken a step together.
    if found is None or found[0].get("identity") != identity:
        return 0
    state, path = found
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    scaler.load_state_dict(state["scaler"])
    say(f"going on from iteration {state['done']} ({path})")
    return state["done"]
