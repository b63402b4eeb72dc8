"""The only pretraining loop: `pretrain(recipe, seed, runs)`, on one process or many.

Every random number is a function of (seed, step, process) or (seed, epoch, image), so that a run
killed at any moment and started again ends with the same weights, to the last bit on CPU.
"""

from __future__ import annotations

import contextlib
import json
import math
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from harness import dist, draws
from harness.backbone import Backbone, build_backbone
from harness.batchnorm import average_running_statistics, set_batchnorm
from harness.checkpoint import forget_training, load_backbone, save_training
from harness.errors import UserError
from harness.execution import AS_USUAL, Execution, Precision
from harness.files import write_atomically
from harness.loader import Batch
from harness.method import Method
from harness.optim import build_optimizer, clip_each_gradient, set_schedules
from harness.recipe import Progress, Recipe, pretrain_key, resolved
from harness.resume import agreed_checkpoint
from harness.snapshots import END, is_finished, is_lost, snapshot_steps, trunk_file
from harness.training_images import TrainingImages, open_training
from harness.trainlog import TrainLog
from harness.trunks import missed_snapshots, save_trunk

LOG_EVERY = 10  # steps between reports; losses are read back from the GPU only then
SAVE_SHARE = 0.02  # of the time may go into checkpoints


class NonFiniteLossError(UserError):
    """Training diverged."""

    def __init__(self, text: str, what: str, run: Run | None = None) -> None:
        super().__init__(text)
        self.what = what  # in a few words
        self.run = run  # None: it had diverged before


class NonFiniteWeightError(NonFiniteLossError):
    """Training diverged, which only the main process knows: it writes the checkpoints."""


@dataclass
class Run:
    """A training run in flight."""

    recipe: Recipe
    seed: int
    workdir: Path
    data: TrainingImages
    method: Method
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    precision: Precision  # resolved
    steps_per_epoch: int
    execution: Execution = AS_USUAL
    step: int = 0
    seconds: float = 0.0  # of training, all attempts together
    started: float = field(default_factory=time.monotonic)
    checkpoint: Path | None = None  # the last one known to be good

    @property
    def steps(self) -> int:
        """Steps of the whole run."""
        return self.steps_per_epoch * self.recipe.epochs

    @property
    def progress(self) -> Progress:
        """Where the run stands."""
        return Progress(self.step / self.steps_per_epoch, self.recipe.epochs)

    @property
    def elapsed(self) -> float:
        """Seconds of training, earlier attempts included."""
        return self.seconds + time.monotonic() - self.started


def pretrain(
    recipe: Recipe,
    seed: int,
    runs: Path,
    execution: Execution = AS_USUAL,
    *,
    on_step: Callable[[Run], None] | None = None,
) -> Path:
    """Train `recipe`, or go on where a killed attempt stopped.

    Args:
        recipe: What to train, resolved (after scaling).
        seed: Of everything random.
        runs: Folder of all runs; this one works in `runs/<pretrain key>`.
        execution: How it computes. Precision "auto" is bf16 on GPUs that have it, fp16 on other
            GPUs, fp32 on CPU. Checkpoints are farther apart than `save_every` where writing one
            takes longer than 2 % of that; 0 writes one at every report.
        on_step: Called after every step, on every process.

    Returns:
        Path of the evaluated trunk, `backbone.pt`; at once if it is already there, and with it
        the recipe's snapshots.

    Raises:
        UserError: Settings that cannot run, or a loss that is not finite.
    """
    dist.init()
    workdir = runs / pretrain_key(recipe, seed)
    final = workdir / trunk_file()
    # one process decides for all: shared file systems show a new file to each at another time
    if dist.broadcast_object(is_finished(recipe, workdir)):
        _, info = load_backbone(final)
        if info.get("diverged"):
            what = info["diverged"]
            raise NonFiniteLossError(f"{what}: it has diverged; delete {final} to try again", what)
        return final
    if dist.is_main():
        text = json.dumps({"seed": seed, "recipe": resolved(recipe)}, indent=1)
        write_atomically(workdir / "recipe.json", text + "\n")
    run = _start(recipe, seed, workdir, execution)
    _resume(run)
    _train(run, on_step)
    # one that is there is of an earlier attempt, whose checksum records name
    if dist.is_main() and not final.exists():
        save_trunk(run)
    dist.barrier()
    return final


def keep_diverged(error: NonFiniteLossError) -> bool:
    """Make divergence the outcome of a run: its backbone.pt says so, and evaluations record it.

    Returns:
        Whether it could: not if other processes are still training, unaware.
    """
    if isinstance(error, NonFiniteWeightError) and dist.world() > 1:
        return False
    run = error.run
    if run is not None and dist.is_main():
        for percent in (*missed_snapshots(run), END):
            save_trunk(run, percent, diverged=error.what)
    dist.barrier()
    return True


def _start(recipe: Recipe, seed: int, workdir: Path, execution: Execution) -> Run:
    data = open_training(recipe, seed)
    torch.manual_seed(draws.torch_seed(seed, 0))
    backbone = build_backbone(recipe.backbone, max(view.size for view in recipe.views))
    backbone.pixels = recipe.views[0].pixels
    method = recipe.method.build(backbone, data.size)
    set_batchnorm(method, method.batch_norm_group, recipe.batch_size)
    memory_format = torch.preserve_format if backbone.is_vit else torch.channels_last
    method.to(dist.device(), memory_format=memory_format).train()  # pyright: ignore[reportCallIssue]
    if execution.recompute:
        method.backbone.recompute()
    if execution.compile:
        for trunk in (m for m in method.modules() if isinstance(m, Backbone)):
            trunk.compile_trunk()
    precision = _resolve(execution.precision)
    return Run(
        recipe=recipe,
        seed=seed,
        workdir=workdir,
        data=data,
        method=method,
        optimizer=build_optimizer(method, recipe),
        scaler=torch.amp.GradScaler(dist.device().type, enabled=precision == "fp16"),
        precision=precision,
        steps_per_epoch=data.steps_per_epoch,
        execution=execution,
    )


def _resolve(precision: Precision) -> Precision:
    if dist.device().type == "cpu":
        # Half-precision products are some sixty times slower than fp32 on most CPUs.
        return "fp32" if precision == "auto" else precision
    if precision == "auto":
        # Older GPUs emulate bf16, slowly, and torch would count them in.
        native = torch.cuda.is_bf16_supported(including_emulation=False)
        return "bf16" if native else "fp16"
    return precision


def _autocast(run: Run) -> contextlib.AbstractContextManager[Any]:
    if run.precision == "fp32":
        return contextlib.nullcontext()
    dtype = torch.bfloat16 if run.precision == "bf16" else torch.float16
    return torch.autocast(dist.device().type, dtype=dtype)


def _state(run: Run) -> dict[str, Any]:
    """Everything that the rest of the run depends on; randomness has no state."""
    return {
        "step": run.step,
        "seconds": run.elapsed,
        "precision": run.precision,
        "compile": run.execution.compile,
        "method": run.method.state_dict(),
        "optimizer": run.optimizer.state_dict(),
        "scaler": run.scaler.state_dict(),
    }


def _resume(run: Run) -> None:
    found = agreed_checkpoint(run.workdir)
    if found is None:
        return
    state, path = found
    if dist.broadcast_object(is_lost(run.recipe, run.workdir, step=state["step"], steps=run.steps)):
        _start_again(run)
        return
    run.checkpoint = path
    _check_same_execution(run, state)
    run.method.load_state_dict(state["method"])
    run.optimizer.load_state_dict(state["optimizer"])
    run.scaler.load_state_dict(state["scaler"])
    run.step, run.seconds = state["step"], state["seconds"]
    if dist.is_main():
        print(f"resuming {run.workdir.name} at step {run.step}/{run.steps}", file=sys.stderr)


def _check_same_execution(run: Run, state: dict[str, Any]) -> None:
    """A run goes on as it began: either setting changes the last bits."""
    if state["precision"] != run.precision:
        raise UserError(
            f"{run.checkpoint} was trained in {state['precision']}, this run is in "
            f"{run.precision}; give --precision {state['precision']} or delete {run.workdir}"
        )
    was = state.get("compile", False)  # checkpoints of earlier versions don't say
    if was != run.execution.compile:
        mend = "give --compile" if was else "leave out --compile"
        raise UserError(
            f"{run.checkpoint} was trained {'with' if was else 'without'} --compile; {mend} or "
            f"delete {run.workdir}"
        )


def _start_again(run: Run) -> None:
    """Train from the first step: a trunk that was to be kept on the way is missing."""
    if dist.is_main():
        forget_training(run.workdir)
        print(f"training {run.workdir.name} again: a trunk on its way is lost", file=sys.stderr)
    dist.barrier()


def save(run: Run) -> None:
    """Write a checkpoint, unless the last update has spoilt the weights; the main process does.

    Between two steps this may happen at any time, and changes nothing about the run.

    Raises:
        NonFiniteLossError: A weight is not finite.
    """
    if not dist.is_main():
        return
    _check_weights(run)
    run.checkpoint = save_training(run.workdir, run.step, _state(run))


def _check_weights(run: Run) -> None:
    norms = torch._foreach_norm([p.detach() for p in run.method.parameters()])
    if not torch.stack(norms).isfinite().all():
        raise NonFiniteWeightError(*_diverged(run, "a weight is not finite", run.step))


def _diverged(run: Run, what: str, step: int) -> tuple[str, str, Run]:
    """The arguments of the error."""
    good = "there is no checkpoint yet"
    if run.checkpoint is not None:
        good = f"the last good checkpoint is {run.checkpoint}"
    what = f"{what} at step {step} of {run.workdir.name}"
    text = f"{what}: training has diverged; {good}; lower the learning rate"
    return text, what, run


class _Losses(nn.Module):
    """What DDP wraps: its forward is the method's losses."""

    def __init__(self, method: Method) -> None:
        super().__init__()
        self.method = method

    def forward(self, batch: Batch, progress: Progress) -> dict[str, Tensor]:
        return self.method.losses(batch, progress)


def _train(run: Run, on_step: Callable[[Run], None] | None) -> None:
    losses: nn.Module = _Losses(run.method)
    if dist.world() > 1:
        # Methods and batch norms keep their buffers equal on all processes themselves.
        losses = DistributedDataParallel(losses, broadcast_buffers=False)
    log = TrainLog(run.workdir, run.recipe.name, step=run.step, steps=run.steps)
    pending: list[dict[str, Tensor]] = []
    saved, save_seconds = time.monotonic(), 0.0
    snapshots = snapshot_steps(run.recipe, run.steps)
    try:
        while run.step < run.steps:
            epoch, start = divmod(run.step, run.steps_per_epoch)
            for batch in run.data.epoch(epoch, start):
                pending.append(_step(run, losses, batch))
                run.step += 1
                last = run.step == run.steps
                wait = run.execution.save_every and max(
                    run.execution.save_every, save_seconds / SAVE_SHARE
                )
                due = dist.is_main() and time.monotonic() - saved > wait and not last
                kept = snapshots.get(run.step, [])
                if run.step % LOG_EVERY == 0 or last or kept:
                    _report(run, log, pending)
                if kept and dist.is_main():
                    # before any checkpoint of this step: who goes on from one has its snapshots
                    _check_weights(run)
                    for percent in kept:
                        save_trunk(run, percent)
                if due and not pending:
                    begun = time.monotonic()
                    save(run)
                    saved = time.monotonic()
                    save_seconds = saved - begun
                if on_step is not None:
                    on_step(run)
    finally:
        log.close()


def _step(run: Run, losses: nn.Module, batch: Batch) -> dict[str, Tensor]:
    """One update; returns the detached loss terms."""
    torch.manual_seed(draws.torch_seed(run.seed, 1, run.step, dist.rank()))
    batch = batch._replace(seed=draws.torch_seed(run.seed, 2, run.step))
    set_schedules(run.optimizer, run.recipe, run.progress.epoch)
    run.optimizer.zero_grad(set_to_none=True)
    with _autocast(run):
        terms: dict[str, Tensor] = losses(batch, run.progress)
    run.scaler.scale(torch.stack(list(terms.values())).sum()).backward()
    clip = run.recipe.optim.clip_grad
    if clip is not None:
        run.scaler.unscale_(run.optimizer)
        clip_each_gradient(run.method, clip)
    run.method.after_backward(run.progress)
    run.scaler.step(run.optimizer)
    run.scaler.update()
    run.method.after_step(run.progress)
    average_running_statistics(run.method)
    if (run.step + 1) % run.steps_per_epoch == 0:
        _end_epoch(run)
    return {name: value.detach() for name, value in terms.items()}


def _end_epoch(run: Run) -> None:
    """Let the method work between epochs.

    Part of the epoch's last step, so that no checkpoint can fall between the two.
    """
    done = Progress((run.step + 1) / run.steps_per_epoch, run.recipe.epochs)

    with _autocast(run):
        replaced = run.method.after_epoch(done, run.data.between(int(done.epoch)))
    for parameter in replaced:
        run.optimizer.state.pop(parameter, None)


def _report(run: Run, log: TrainLog, pending: list[dict[str, Tensor]]) -> None:
    """Read the pending losses back, stop at the first that is not finite, write the last."""
    names = list(pending[0])
    table = torch.stack([torch.stack([terms[name] for name in names]) for terms in pending])
    table = dist.all_reduce_mean(table.float()).cpu()
    first = run.step - len(pending)
    pending.clear()
    for offset, row in enumerate(table.tolist()):
        for name, value in zip(names, row, strict=True):
            if not math.isfinite(value):
                what = f"the loss term {name} is {value}"
                raise NonFiniteLossError(*_diverged(run, what, first + offset))
    values = dict(zip(names, table[-1].tolist(), strict=True))
    values = {"epoch": round(run.progress.epoch, 4), "loss": sum(values.values())} | values
    values["learning_rate"] = run.optimizer.param_groups[0]["lr"]
    log.write(run.step, run.recipe.batch_size, values)
