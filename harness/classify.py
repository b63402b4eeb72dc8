"""Linear heads on a frozen backbone: several learning rates in one pass, resumable to the bit."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from harness import dist, draws
from harness.checkpoint import load_training, save_training
from harness.errors import UserError
from harness.features import (
    BATCH_SIZE,
    Features,
    digest,
    embed,
    frozen,
    gather_numbers,
)
from harness.fusion import fused, marks
from harness.loader import Batch, Plan, loader_workers, train_batches
from harness.optim import TRUST
from harness.progress import say, track
from harness.recipe import Reading, fingerprint

if TYPE_CHECKING:
    from harness.backbone import Backbone
    from harness.data import ImageSet
    from harness.protocol import HeadTraining
    from harness.views import View

SAVE_SECONDS = 60.0  # a checkpoint at most this long after the one before, and at each epoch's end


@dataclass(frozen=True, kw_only=True)
class TrainingSet:
    """What heads are trained on."""

    data: ImageSet
    indices: np.ndarray  # positions of the images used
    view: View  # their augmentation


class Heads(NamedTuple):
    """R linear heads side by side; momenta are SGD's buffers."""

    weight: Tensor  # (R, classes, d)
    bias: Tensor  # (R, classes)
    weight_momentum: Tensor
    bias_momentum: Tensor

    def logits(self, features: Tensor) -> Tensor:
        """(n, R, classes) of features (n, d), as one matrix product."""
        scores = features @ self.weight.flatten(0, 1).T + self.bias.flatten()
        return scores.unflatten(1, self.bias.shape)

    def finite(self) -> list[bool]:
        """For each head whether all its weights are."""
        parameters = torch.cat([self.weight.flatten(1), self.bias], dim=1)
        return parameters.isfinite().all(dim=1).tolist()


def hold_out(labels: np.ndarray, share: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Positions to train on and positions held out: the same share of each class, at least one.

    Args:
        labels: Classes (n,) of the split.
        share: Of each class to hold out; 0 holds out nothing.
        seed: The same seed and labels give the same positions.

    Raises:
        UserError: A class has a single image.
    """
    held = []
    for label in np.unique(labels) if share else ():
        members = np.flatnonzero(labels == label)
        if len(members) < 2:
            raise UserError(
                f"class {label} has {len(members)} train image, too few to hold one out; give a "
                "single --lr, so that nothing is held out"
            )
        count = min(max(round(share * len(members)), 1), len(members) - 1)
        held.append(members[draws.subset(seed, f"hold out {label}", len(members), count)])
    chosen = np.sort(np.concatenate(held)) if held else np.empty(0, dtype=np.int64)
    return np.setdiff1d(np.arange(len(labels)), chosen), chosen


def initial_heads(settings: HeadTraining, classes: int, width: int) -> Heads:
    """Heads that all start from the same normal weights, so that only their rates differ."""
    generator = torch.Generator().manual_seed(draws.torch_seed(settings.seed))
    first = torch.randn((classes, width), generator=generator) * settings.init_std
    weight = first.repeat(len(settings.lr), 1, 1).to(dist.device())
    bias = torch.zeros(weight.shape[:2], device=weight.device)
    return Heads(weight, bias, torch.zeros_like(weight), torch.zeros_like(bias))


def gradients(heads: Heads, features: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of each head's cross-entropy, mean over the global batch.

    Args:
        heads: R heads.
        features: (n, d), this process's share.
        labels: (n,) classes.

    Returns:
        Of weight (R, classes, d) and bias (R, classes).
    """
    # d CE / d logits = (softmax - one-hot) / n: in closed form, a diverged head stays alone.
    errors = heads.logits(features).softmax(dim=2)
    errors -= functional.one_hot(labels, errors.shape[2])[:, None]
    errors /= len(features) * dist.world()
    weight = (errors.flatten(1).T @ features).view_as(heads.weight)
    return dist.all_reduce_sum(weight), dist.all_reduce_sum(errors.sum(dim=0))


def sgd_step(
    heads: Heads, gradient: tuple[Tensor, Tensor], settings: HeadTraining, factor: float
) -> None:
    """torch.optim.SGD's update, each head at its own rate times `factor`.

    In place, the gradients too: thirteen heads of ImageNet are 107 MB.
    """
    rates = torch.tensor(settings.lr, device=heads.weight.device) * factor
    pairs = ((heads.weight, heads.weight_momentum), (heads.bias, heads.bias_momentum))
    for (value, momentum), slope in zip(pairs, gradient, strict=True):
        if settings.optimizer == "larc":
            slope = _larc(slope, value, alpha=settings.weight_decay)
        else:
            slope.add_(value, alpha=settings.weight_decay)
        momentum.mul_(settings.momentum).add_(slope)
        step = slope + settings.momentum * momentum if settings.nesterov else momentum
        value -= torch.mul(rates.view(-1, *[1] * (value.dim() - 1)), step, out=slope)


def _larc(gradient: Tensor, value: Tensor, *, alpha: float) -> Tensor:
    """Decayed gradients, rescaled head by head to `TRUST` times the weights' norm.

    As `apex.parallel.LARC(trust_coefficient=.001, clip=False)` does, biases included (You et al.
    2017): where either norm is 0 the gradient stays as it is.
    """
    axes = tuple(range(1, value.dim()))
    norm = torch.linalg.vector_norm(value, dim=axes, keepdim=True)
    slope = torch.linalg.vector_norm(gradient, dim=axes, keepdim=True)
    ratio = TRUST * norm / (slope + alpha * norm + 1e-8)
    scaled = (gradient + alpha * value) * ratio
    return torch.where((norm > 0) & (slope > 0), scaled, gradient)


def _steps(training: TrainingSet, settings: HeadTraining) -> int:
    """Steps of an epoch."""
    world, images = dist.world(), len(training.indices)
    if settings.batch_size % world:
        raise UserError(
            f"batch size {settings.batch_size} is not a multiple of the {world} processes; use "
            f"{settings.batch_size - settings.batch_size % world or world}"
        )
    if settings.batch_size > images:
        raise UserError(
            f"batch size {settings.batch_size} is more than the {images} train images of "
            f"{training.data.name}; use --batch-size of at most {images}"
        )
    if not settings.lr or settings.epochs < 1:
        raise UserError(
            f"lr={settings.lr} with epochs={settings.epochs} trains nothing; give at least one "
            "learning rate and one epoch"
        )
    return images // settings.batch_size


def fit(backbone: Backbone, training: TrainingSet, settings: HeadTraining, workdir: Path) -> Heads:
    """Train one head per learning rate on augmented images, all in one pass of the backbone.

    Goes on from the checkpoint in `workdir/heads` if one of the same settings, data and weights
    is there: killed and started again, the result is the same to the last bit.

    Args:
        backbone: Stays as it is, in eval mode.
        training: Images and their augmentation.
        settings: Optimiser and schedule.
        workdir: Folder of the evaluation.

    Raises:
        UserError: Settings that don't fit the data; every head's weights became non-finite.
    """
    steps = _steps(training, settings)
    width = backbone.dim * (settings.last_blocks if backbone.is_vit else 1)
    heads = initial_heads(settings, len(training.data.classes), width)
    held = len(training.data) - len(training.indices)
    # A trunk's own normalisation takes the place of the view's.
    training = replace(training, view=replace(training.view, pixels=backbone.pixels))
    identity = fingerprint(
        settings,
        backbone.pixels,
        training.data.checksum,
        held,
        digest(backbone),
        *marks(backbone),
    )
    done = _restore(heads, workdir, identity)
    saved = time.monotonic()
    progress = track(
        range(done, settings.epochs * steps),
        label=f"linear heads on {training.data.name}",
        total=settings.epochs * steps,
        done=done,
    )
    batches: Iterator[Batch] = iter(())
    reading = Reading(last_blocks=settings.last_blocks)
    with frozen(backbone):
        trunk = fused(backbone)
        for step in progress:
            epoch, within = divmod(step, steps)
            if within == 0 or step == done:
                batches = _epoch_batches(training, settings, epoch, within)
            batch = next(batches)
            rows = min(BATCH_SIZE, len(batch.labels))
            features = embed(trunk, batch.views[0], reading, rows=rows)
            slope = gradients(heads, features, batch.labels.to(features.device))
            sgd_step(heads, slope, settings, settings.lr_factor(epoch))
            if within == steps - 1:
                _check_finite(heads, settings, epoch)
            if within == steps - 1 or time.monotonic() - saved > SAVE_SECONDS:
                _save(heads, workdir, identity, step + 1)
                saved = time.monotonic()
    return heads


def _epoch_batches(
    training: TrainingSet, settings: HeadTraining, epoch: int, start_step: int
) -> Iterator[Batch]:
    plan = Plan(
        rank=dist.rank(),
        world=dist.world(),
        start_step=start_step,
        indices=training.indices,
        device=str(dist.device()),
        workers=loader_workers(),
    )
    return iter(
        train_batches(
            training.data,
            [training.view],
            seed=settings.seed,
            epoch=epoch,
            batch_size=settings.batch_size // dist.world(),
            plan=plan,
        )
    )


def _save(heads: Heads, workdir: Path, identity: str, done: int) -> None:
    if dist.is_main():
        state = {name: value.cpu() for name, value in heads._asdict().items()}
        save_training(workdir / "heads", done, {"identity": identity, "done": done, **state})


def _restore(heads: Heads, workdir: Path, identity: str) -> int:
    """Fill `heads` from the last checkpoint; returns the steps done, 0 if there is none of ours."""
    found = load_training(workdir / "heads")
    # The main process writes the next checkpoint only after all have taken a step together.
    if found is None or found[0].get("identity") != identity:
        return 0
    for name, value in heads._asdict().items():
        value.copy_(found[0][name])
    say(f"going on from step {found[0]['done']} ({found[1]})")
    return found[0]["done"]


def _check_finite(heads: Heads, settings: HeadTraining, epoch: int) -> None:
    """Raise once no head is left."""
    if not any(heads.finite()):
        rates = ", ".join(map(str, settings.lr))
        raise UserError(
            f"the weights of every linear head became non-finite in epoch {epoch + 1} (learning "
            f"rates {rates}); use smaller --lr, or check that the checkpoint's features are finite"
        )


def held_out_accuracies(heads: Heads, held_out: Features) -> list[float]:
    """Top-1 accuracy in percent of each head over all processes' images; -1 if it diverged."""
    if len(held_out.labels):
        predicted = heads.logits(held_out.values).argmax(dim=2).cpu()
    else:
        predicted = torch.empty((0, len(heads.bias)), dtype=torch.int64)
    hits = gather_numbers((predicted == held_out.labels[:, None]).double()).mean(dim=0) * 100
    return [
        accuracy if finite else -1.0
        for accuracy, finite in zip(hits.tolist(), heads.finite(), strict=True)
    ]


def choose(heads: Heads, held_out: Features | None, rates: tuple[float, ...]) -> int:
    """Position of the head with the best held-out accuracy, the first of equals.

    Args:
        heads: R heads.
        held_out: This process's share of the held-out images; None with a single head.
        rates: Their learning rates, for the report on stderr.
    """
    if held_out is None:
        return 0
    accuracies = held_out_accuracies(heads, held_out)
    report = ", ".join(
        f"lr {rate:g}: " + ("non-finite weights" if accuracy < 0 else f"{accuracy:.2f} %")
        for rate, accuracy in zip(rates, accuracies, strict=True)
    )
    best = max(range(len(accuracies)), key=accuracies.__getitem__)
    say(f"held-out accuracy: {report}; chosen: lr {rates[best]:g}")
    return best


def top_classes(heads: Heads, head: int, features: Tensor, count: int) -> Tensor:
    """The likeliest classes (n, min(count, classes)) by one head, best first, on the CPU.

    Ties go to the lower class.
    """
    scores = features @ heads.weight[head].T + heads.bias[head]
    return scores.sort(dim=1, descending=True, stable=True).indices[:, :count].cpu()
