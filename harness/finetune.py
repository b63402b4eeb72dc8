"""Fine-tuning: a trunk and a linear head trained together on labelled images.

Order of images and crops are functions of (seed, epoch, image), and there is no stochastic depth:
killed and started again, the result is the same, to the last bit on CPU.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel

from harness import dist
from harness.checkpoint import load_training, save_training
from harness.classifier import Classifier, build_optimizer, set_rates
from harness.classify import TrainingSet
from harness.errors import UserError
from harness.features import digest
from harness.loader import Batch, Plan, loader_workers, train_batches
from harness.progress import say
from harness.recipe import fingerprint
from harness.trainlog import TrainLog

if TYPE_CHECKING:
    from harness.backbone import Backbone
    from harness.protocol import FineTuning, Trial

SAVE_SECONDS = 60.0  # a checkpoint at most this long after the one before, and at each epoch's end
LOG_EVERY = 10  # steps between reports; losses are read back from the GPU only then


class DivergedError(UserError):
    """A loss or a weight is not finite."""


@dataclass
class _Run:
    """A fine-tuning in flight."""

    training: TrainingSet
    settings: FineTuning
    trial: Trial
    model: Classifier
    optimizer: torch.optim.Optimizer
    folder: Path  # of its checkpoints and its log
    batch_size: int  # global
    step: int = 0  # done
    saved: float = field(default_factory=time.monotonic)

    @property
    def steps_per_epoch(self) -> int:
        return len(self.training.indices) // self.batch_size

    @property
    def steps(self) -> int:
        return self.steps_per_epoch * self.trial.epochs


def fit(
    backbone: Backbone, training: TrainingSet, settings: FineTuning, trial: Trial, workdir: Path
) -> Classifier:
    """Fine-tune a copy of a trunk with a new head, or go on where a killed attempt stopped.

    An epoch is as many whole batches as the images make; what is left of its permutation sits the
    epoch out. Fewer images than a batch make one batch of all of them. Batch norm is in training
    mode: over the whole batch with `sync_bn`, else over each process's share of it, as in the
    released code, with the running statistics of the first process.

    Args:
        backbone: Where to start; stays as it is.
        training: Labelled images and their augmentation.
        settings: Optimiser and schedule.
        trial: The learning rates and epochs to use among those of the settings.
        workdir: Folder of the evaluation; this run works in `finetune/<fingerprint>` of it.

    Raises:
        UserError: Settings that don't fit the data.
        DivergedError: The loss or a weight became non-finite.
    """
    run = _start(backbone, training, settings, trial, workdir)
    _restore(run)
    if run.step < run.steps:
        _train(run)
    for buffer in run.model.buffers():
        dist.broadcast(buffer)
    return run.model


def _start(
    backbone: Backbone, training: TrainingSet, settings: FineTuning, trial: Trial, workdir: Path
) -> _Run:
    batch_size = _batch_size(training, settings)
    identity = fingerprint(
        settings,
        trial,
        backbone.pixels,
        training.data.checksum,
        hashlib.sha256(training.indices.tobytes()).hexdigest(),
        digest(backbone),
    )
    model = Classifier(backbone, len(training.data.classes), settings)
    if settings.sync_bn:
        dist.sync_batchnorm(model)
    memory_format = torch.preserve_format if backbone.is_vit else torch.channels_last
    model.to(dist.device(), memory_format=memory_format).train()  # pyright: ignore[reportCallIssue]
    return _Run(
        # A trunk's own normalisation takes the place of the view's.
        training=replace(training, view=replace(training.view, pixels=backbone.pixels)),
        settings=settings,
        trial=trial,
        model=model,
        optimizer=build_optimizer(model, settings, trial),
        folder=workdir / "finetune" / identity,
        batch_size=batch_size,
    )


def _batch_size(training: TrainingSet, settings: FineTuning) -> int:
    """The global batch size: that of the settings, or all images where there are fewer."""
    images, world = len(training.indices), dist.world()
    size = min(settings.batch_size, images)
    if size % world or size < 2 * world:
        raise UserError(
            f"a batch of {size} of the {images} labelled images can't be shared among {world} "
            f"processes, each of which needs as many and at least 2; use --batch-size "
            f"{max(size - size % world, 2 * world)} or fewer processes"
        )
    if size < settings.batch_size:
        say(f"batches of all {size} labelled images: there are fewer than {settings.batch_size}")
    return size


def _train(run: _Run) -> None:
    model: nn.Module = run.model
    if dist.world() > 1:
        # The first process's running statistics are everybody's, as in the released code.
        model = DistributedDataParallel(run.model)
    run.folder.mkdir(parents=True, exist_ok=True)
    log = TrainLog(run.folder, _label(run), step=run.step, steps=run.steps)
    pending: list[Tensor] = []
    try:
        for batch in _batches(run):
            pending.append(_step(run, model, batch))
            run.step += 1
            ended = run.step % run.steps_per_epoch == 0
            if run.step % LOG_EVERY == 0 or ended:
                _report(run, log, pending)
                if ended or time.monotonic() - run.saved > SAVE_SECONDS:
                    _save(run)
    finally:
        log.close()


def _label(run: _Run) -> str:
    return f"fine-tuning on {len(run.training.indices)} images of {run.training.data.name}"


def _batches(run: _Run) -> Iterator[Batch]:
    """The batches of all steps that are left."""
    first, within = divmod(run.step, run.steps_per_epoch)
    for epoch in range(first, run.trial.epochs):
        plan = Plan(
            rank=dist.rank(),
            world=dist.world(),
            start_step=within if epoch == first else 0,
            indices=run.training.indices,
            device=str(dist.device()),
            workers=loader_workers(),
        )
        yield from train_batches(
            run.training.data,
            [run.training.view],
            seed=run.settings.seed,
            epoch=epoch,
            batch_size=run.batch_size // dist.world(),
            plan=plan,
        )


def _step(run: _Run, model: nn.Module, batch: Batch) -> Tensor:
    """One update; returns this process's mean loss and share of hits before it: (2,)."""
    epoch = run.step / run.steps_per_epoch
    set_rates(run.optimizer, run.settings, epoch, run.trial.epochs)
    is_vit = run.model.backbone.is_vit
    images = batch.views[0].to(
        dist.device(),
        non_blocking=True,
        memory_format=torch.contiguous_format if is_vit else torch.channels_last,
    )
    labels = batch.labels.to(images.device)
    run.optimizer.zero_grad(set_to_none=True)
    logits = model(images)
    loss = functional.cross_entropy(logits, labels)
    loss.backward()
    run.optimizer.step()
    return torch.stack([loss.detach(), (logits.argmax(dim=1) == labels).float().mean()])


def _report(run: _Run, log: TrainLog, pending: list[Tensor]) -> None:
    """Read back the losses since the last report, over all processes; stop if one is not finite."""
    losses, hits = dist.all_reduce_mean(torch.stack(pending)).T.tolist()
    first = run.step - len(pending)
    pending.clear()
    for step, loss in enumerate(losses, start=first):
        if not math.isfinite(loss):
            raise _diverged(run, f"the loss is {loss}", step)
    norms = torch._foreach_norm([p.detach() for p in run.model.parameters()])
    if not torch.stack(norms).isfinite().all():
        raise _diverged(run, "a weight is not finite", run.step)
    values = {
        "epoch": round(run.step / run.steps_per_epoch, 4),
        "loss": float(np.mean(losses)),
        "top1": 100 * float(np.mean(hits)),
        "learning_rate": run.optimizer.param_groups[0]["lr"],
        "head_learning_rate": run.optimizer.param_groups[-1]["lr"],
    }
    log.write(run.step, run.batch_size, values)


def _diverged(run: _Run, what: str, step: int) -> DivergedError:
    return DivergedError(
        f"{what} at step {step} of {run.steps} (learning rates {run.trial.lr:g} of the trunk, "
        f"{run.trial.head_lr:g} of the head): fine-tuning has diverged; use a smaller --lr and "
        "--head-lr"
    )


def _save(run: _Run) -> None:
    """Write a checkpoint; the last one does without the optimiser's state."""
    run.saved = time.monotonic()
    if dist.is_main():
        state: dict[str, Any] = {"step": run.step, "model": run.model.state_dict()}
        if run.step < run.steps:
            state["optimizer"] = run.optimizer.state_dict()
        save_training(run.folder, run.step, state)


def _restore(run: _Run) -> None:
    found = load_training(run.folder)
    # All processes must start from the same step: the main one writes the next checkpoint only
    # after all have taken a step together.
    if found is None:
        return
    state, path = found
    run.model.load_state_dict(state["model"])
    run.step = state["step"]
    if "optimizer" in state:
        run.optimizer.load_state_dict(state["optimizer"])
    say(f"going on from step {run.step} of {run.steps} ({path})")


def best_trial(trials: Sequence[Trial], accuracy: Callable[[Trial], float]) -> Trial:
    """The trial with the best held-out accuracy, the first of equals; all are told on stderr.

    Raises:
        DivergedError: Every one diverged.
    """
    best: tuple[float, Trial] | None = None
    diverged = DivergedError("nothing was tried")
    for trial in trials:
        name = f"lr {trial.lr:g}, head {trial.head_lr:g}, {trial.epochs} epochs"
        try:
            found = accuracy(trial)
        except DivergedError as error:
            diverged = error
            say(f"{name}: diverged")
            continue
        say(f"{name}: {found:.2f} % of the held-out images")
        if best is None or found > best[0]:
            best = found, trial
    if best is None:
        raise diverged
    say(f"chosen: lr {best[1].lr:g}, {best[1].epochs} epochs")
    return best[1]
