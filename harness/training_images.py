"""The training set of a run: what each step and each pause between epochs gets of it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property, partial
from itertools import islice

import numpy as np
import torch
from torch import Tensor

from harness import dist, draws
from harness.data import ImageSet, open_split
from harness.errors import UserError
from harness.loader import Batch, Plan, eval_batches, loader_workers, train_batches
from harness.method import TrainImages
from harness.recipe import Pool, Recipe, TrainingSize
from harness.subsets import labelled_subset
from harness.supervision import UNSEEN
from harness.views import CenterCrop


@dataclass(frozen=True, kw_only=True, eq=False)
class TrainingImages:
    """The images of a run, with the labels that its recipe shows, in batches on this device.

    An epoch is as many steps as a pass over all images takes, also where few of them are labelled
    and seen many times meanwhile.
    """

    recipe: Recipe
    seed: int
    images: ImageSet  # UNSEEN where a label isn't shown
    labelled: np.ndarray | None = None  # places of the labelled ones; None: all or none are

    @property
    def size(self) -> TrainingSize:
        """What methods are told when they are built."""
        return TrainingSize(len(self.images), len(self.images.classes))

    @property
    def steps_per_epoch(self) -> int:
        """Whole batches of an epoch."""
        return len(self.images) // self.recipe.batch_size

    def epoch(self, epoch: int, start_step: int) -> Iterator[Batch]:
        """This process's share of the steps of an epoch from `start_step` on."""
        vit = self.recipe.backbone.name.startswith("vit")
        memory_format = torch.contiguous_format if vit else torch.channels_last
        pool = "all" if self.labelled is None else self.recipe.method.pool(epoch)
        if pool == "all":
            batches = self._batches(epoch, replace(_plan(), start_step=start_step))
        else:
            batches = self._passes(epoch, start_step, pool)
        for batch in batches:
            yield _on_device(batch, memory_format)

    def _passes(self, epoch: int, start_step: int, pool: Pool) -> Iterator[Batch]:
        """An epoch as passes over the labelled images, which go on from the epoch before."""
        assert self.labelled is not None
        plan = replace(_plan(), indices=self.labelled)
        size = self.recipe.batch_size
        if pool == "halves":
            plan, size = replace(plan, others=self._others), size // 2
        steps = len(self.labelled) // size
        if not steps:
            raise UserError(
                f"{size} labelled images, as many as a batch of {self.recipe.batch_size} takes, "
                f"cannot be drawn from the {len(self.labelled)} labelled training images of "
                f"{self.recipe.dataset}; use a smaller batch size or more labels"
            )
        step, end = (self.steps_per_epoch * number for number in (epoch, epoch + 1))
        step += start_step
        while step < end:
            number, done = divmod(step, steps)
            count = min(steps - done, end - step)
            yield from islice(self._batches(number, replace(plan, start_step=done)), count)
            step += count

    def _batches(self, number: int, plan: Plan) -> Iterator[Batch]:
        """One pass; `number` decides order and crops."""
        return train_batches(
            self.images,
            self.recipe.views,
            seed=self.seed,
            epoch=number,
            batch_size=self._share,
            plan=plan,
        )

    @cached_property
    def _others(self) -> np.ndarray:
        """Places of the images that are not labelled."""
        assert self.labelled is not None
        return np.setdiff1d(np.arange(len(self.images)), self.labelled)

    def between(self, epoch: int) -> TrainImages:
        """The images for a method's work before `epoch`."""
        return TrainImages(partial(self._sample, epoch), self._centres)

    @property
    def _share(self) -> int:
        """Images of a step on each process."""
        return self.recipe.batch_size // dist.world()

    def _sample(self, epoch: int, count: int) -> Iterator[Tensor]:
        count = math.ceil(count / dist.world()) * dist.world()
        if count > len(self.images):
            raise UserError(
                f"{count} distinct training images are asked for between epochs, but "
                f"{self.recipe.dataset} has {len(self.images)}; use fewer means"
            )
        chosen = draws.subset(self.seed, f"between epochs {epoch}", len(self.images), count)
        for batch in train_batches(
            self.images,
            self.recipe.views[:1],
            seed=self.seed,
            epoch=epoch,
            batch_size=self._share,
            plan=replace(_plan(), drop_last=False, indices=chosen),
        ):
            yield batch.views[0].to(dist.device())

    def _centres(self) -> Iterator[Batch]:
        view = self.recipe.views[0]
        # 256 pixels for a crop of 224; small images, which live in memory, are taken whole
        resize = view.size * 8 // 7 if self.images.images is None else view.size
        transform = CenterCrop(resize=resize, size=view.size, interpolation=view.interpolation)
        for batch in eval_batches(
            self.images, transform, view.pixels, batch_size=self._share, plan=_plan()
        ):
            yield _on_device(batch, torch.contiguous_format)


def open_training(recipe: Recipe, seed: int) -> TrainingImages:
    """The training set of a recipe.

    Raises:
        UserError: It isn't there, or the batch size doesn't fit it or the processes.
    """
    with dist.main_first():
        images = open_split(recipe.dataset, "train")
    if recipe.batch_size % dist.world():
        raise UserError(
            f"batch size {recipe.batch_size} does not divide among {dist.world()} processes; "
            f"use a multiple of {dist.world()}"
        )
    labelled = None
    labels = np.full_like(images.labels, UNSEEN)
    if recipe.labelled == 100:
        labels = images.labels
    elif recipe.labelled:
        labelled = labelled_subset(images, recipe.labelled, "auto", seed).indices
        labels[labelled] = images.labels[labelled]
    training = TrainingImages(
        recipe=recipe, seed=seed, images=replace(images, labels=labels), labelled=labelled
    )
    if not training.steps_per_epoch:
        raise UserError(
            f"batch size {recipe.batch_size} is larger than the {len(images)} training images of "
            f"{recipe.dataset}; use at most {len(images)}"
        )
    return training


def _plan() -> Plan:
    return Plan(
        rank=dist.rank(),
        world=dist.world(),
        device=dist.device().type,
        workers=loader_workers(),
    )


def _on_device(batch: Batch, memory_format: torch.memory_format) -> Batch:
    device = dist.device()
    return Batch(
        # a jigsaw's patches have five dimensions, for which there is no channels_last
        views=[
            view.to(device, non_blocking=True, memory_format=memory_format)
            if view.ndim == 4
            else view.to(device, non_blocking=True)
            for view in batch.views
        ],
        labels=batch.labels.to(device, non_blocking=True),
        indices=batch.indices.to(device, non_blocking=True),
    )
