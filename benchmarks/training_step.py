"""Claim: what the harness adds to a training step costs next to nothing.

Schedules, seeds, checks of the loss, logs and checkpoints beside a bare loop of the same model,
loss, optimiser (with its clipping) and batches, on the small networks of the scale "demo", where a
step is short. One thread. `python benchmarks/training_step.py [--quick] [--json]`
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch

from benchmarks import timing
from harness import registry
from harness.backbone import build_backbone
from harness.loader import Batch
from harness.optim import build_optimizer, clip_each_gradient
from harness.recipe import Progress, Recipe
from harness.scale import find_scale, scale_recipe
from harness.train import LOG_EVERY, Run, pretrain

RECIPES = ("imsvd:RESNET50", "dino:VIT_SMALL")
BARE = "bare loop"


class _EnoughError(Exception):
    """Ends a training that has been measured."""


class _Bare:
    """The loop that everybody writes first."""

    def __init__(self, run: Run) -> None:
        recipe, views = run.recipe, run.recipe.views
        trunk = build_backbone(recipe.backbone, max(view.size for view in views))
        memory_format = torch.preserve_format if trunk.is_vit else torch.channels_last
        self.method = recipe.method.build(trunk, run.data.size)
        self.method.to(memory_format=memory_format).train()  # pyright: ignore[reportCallIssue]
        self.optimizer = build_optimizer(self.method, recipe)
        for group in self.optimizer.param_groups:
            group["lr"] = group["peak"]
        self.clip = recipe.optim.clip_grad
        self.batches = self._endless(run)

    @staticmethod
    def _endless(run: Run) -> Iterator[Batch]:
        for epoch in range(run.recipe.epochs):
            yield from run.data.epoch(epoch, 0)

    def step(self) -> None:
        progress = Progress(1.0, 100)
        batch = next(self.batches)
        self.optimizer.zero_grad(set_to_none=True)
        sum(self.method.losses(batch, progress).values()).backward()  # pyright: ignore[reportAttributeAccessIssue]
        if self.clip is not None:
            clip_each_gradient(self.method, self.clip)
        self.optimizer.step()
        self.method.after_step(progress)


def measured(recipe: Recipe, *, steps: int, repetitions: int) -> dict[str, list[float]]:
    """CPU seconds of so many steps in turn: the harness's own, and the bare loop's."""
    times: dict[str, list[float]] = {"ours": [], BARE: []}
    bare: list[_Bare] = []
    started = 0.0

    def after_step(run: Run) -> None:
        nonlocal started
        if run.step % steps:
            return
        now = time.process_time()
        bare.extend([] if bare else [_Bare(run)])
        begun = time.process_time()
        for _ in range(steps):
            bare[0].step()
        if run.step > steps:  # the first are the warm-up
            times["ours"].append(now - started)
            times[BARE].append(time.process_time() - begun)
        if len(times["ours"]) == repetitions:
            raise _EnoughError
        started = time.process_time()

    with tempfile.TemporaryDirectory() as folder:
        try:
            pretrain(recipe, 0, Path(folder), on_step=after_step)
        except _EnoughError:
            return times
    raise AssertionError("the recipe is shorter than the measurement")


def main() -> None:
    """Measure and print."""
    options = timing.options(__doc__)
    torch.set_num_threads(1)
    steps, repetitions = (1, 1) if options.quick else (LOG_EVERY, 11)
    claims = []
    for name in RECIPES:
        recipe = scale_recipe(registry.recipe(name), find_scale("demo"))
        recipe = replace(recipe, epochs=100)
        times = measured(recipe, steps=steps, repetitions=repetitions)
        claims.append(
            timing.claim(f"{steps} steps of {name}", times, BARE, must=1.03, stretch=1.01)
        )
    timing.show_claims(claims, as_json=options.json)


if __name__ == "__main__":
    main()
