"""Delivers batches: which images a step takes, and their views, whatever the number of processes.

Nothing here has state. A training step's images follow from (seed, epoch, step), their views from
(seed, epoch, image index), so any number of ranks or workers delivers the same views, and a resumed
epoch goes on from `Plan.start_step`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from harness.augment import augment, colour, crop_views
from harness.cpu_views import views_on_cpu
from harness.crop import center_crop
from harness.data import ImageSet
from harness.draws import permutation
from harness.errors import UserError
from harness.photometrics import normalize
from harness.streams import made_aside
from harness.views import CenterCrop, Pixels, View

MOST_WORKERS = 16  # per process
# Images that a worker decodes at a time: a batch is spread over the workers, and what they hold in
# advance (two pieces each) stays small whatever the batch size.
_PIECE = 32

Maker = Callable[[np.ndarray], list[Tensor]]  # of some images, where they lie or in a worker
Finisher = Callable[[list[Tensor], np.ndarray], list[Tensor]]  # of a whole step, on the device


class Batch(NamedTuple):
    """Images of one step of one rank."""

    views: list[Tensor]  # float32 (n, 3, S, S) each, normalised; (n, patches, 3, s, s) for a jigsaw
    labels: Tensor  # int64 (n,)
    indices: Tensor  # int64 (n,): positions in the data set
    seed: int = 0  # of the step's random draws, the same on all processes


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Which part of an epoch this process delivers, and how."""

    rank: int = 0
    world: int = 1
    start_step: int = 0  # steps of the epoch that are already done
    drop_last: bool = True  # training only: leave out the incomplete last step
    indices: np.ndarray | None = None  # subset of the data set; None: all of it
    # training only: images for the second half of each batch, whose first are from `indices`
    others: np.ndarray | None = None
    device: str = "cpu"
    workers: int = 0  # processes that decode; sets in memory need none


def cores_per_process() -> int:
    """Cores for each process of this machine."""
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    else:
        cores = os.cpu_count() or 1
    # torchrun shows all cores to each process of a machine, srun gives each its own.
    return max(cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1")), 1)


def loader_workers() -> int:
    """Processes that decode for this one: its share of the cores, 0 if that is a single one."""
    share = min(cores_per_process(), MOST_WORKERS)
    return share if share > 1 else 0


def steps_per_epoch(n: int, batch_size: int, plan: Plan) -> int:
    """Training steps of an epoch over `n` images at `batch_size` images per rank.

    Raises:
        UserError: There are fewer images than a global batch takes.
    """
    taken = batch_size * plan.world
    if not plan.drop_last:
        return -(-n // taken)
    if n < taken:
        raise UserError(
            f"a batch of {taken} images ({batch_size} on each of {plan.world} processes) cannot be"
            f" drawn from {n}; use a batch size of at most {n}."
        )
    return n // taken


def train_batches(
    data: ImageSet,
    views: Sequence[View],
    *,
    seed: int,
    epoch: int,
    batch_size: int,
    plan: Plan,
) -> Iterator[Batch]:
    """One epoch of random views in a random order.

    Step s of W ranks takes images `s * B * W` to `(s + 1) * B * W` of the epoch's permutation, and
    rank r gets every W-th of them from the r-th on.

    Args:
        data: A split.
        views: The recipe.
        seed: The run's seed.
        epoch: Epoch, counted from 0.
        batch_size: Images per rank, B.
        plan: Rank, world, first step, subset, device and workers.

    Yields:
        `Batch` on `plan.device`.

    Raises:
        UserError: Fewer images than a global batch takes, or an image that cannot be decoded.
    """
    steps = [step[plan.rank :: plan.world] for step in _steps(data, seed, epoch, batch_size, plan)]
    steps = [step for step in steps if len(step)]  # the last one need not reach every rank
    draw = {"views": tuple(views), "seed": seed, "epoch": epoch}
    if data.images is not None:
        batches = _deliver(data, steps, partial(_picked, data.images), partial(_views, draw), plan)
    elif plan.device == "cpu":  # the workers colour too
        batches = _from_files(data, steps, partial(_views_of_files, data, draw), _unchanged, plan)
    else:
        cut, finish = partial(_cut_files, data, draw), partial(_colour, draw)
        batches = _from_files(data, steps, cut, finish, plan)
    yield from made_aside(batches, plan.device)


def _steps(
    data: ImageSet, seed: int, epoch: int, batch_size: int, plan: Plan
) -> Iterator[np.ndarray]:
    """Images of each global step that is left of an epoch."""
    pool = _pool(data, plan)
    order = pool[permutation(seed, epoch, len(pool))]
    taken = batch_size * plan.world
    if plan.others is None:
        for step in range(plan.start_step, steps_per_epoch(len(pool), batch_size, plan)):
            yield order[step * taken : (step + 1) * taken]
        return
    taken //= 2
    other = plan.others[permutation(seed, -1 - epoch, len(plan.others))]
    other = np.resize(other, len(order))  # from the start again if there are fewer
    for step in range(plan.start_step, len(order) // taken):
        part = slice(step * taken, (step + 1) * taken)
        yield np.concatenate([order[part], other[part]])


def eval_batches(
    data: ImageSet, transform: CenterCrop, pixels: Pixels, *, batch_size: int, plan: Plan
) -> Iterator[Batch]:
    """Every image once over all ranks, in order; rank r of W gets every W-th from the r-th on.

    Args:
        data: A split.
        transform: Resize and centre crop.
        pixels: Their normalisation.
        batch_size: Images per rank; the last batch may be smaller.
        plan: Rank, world, first step, subset, device and workers.

    Yields:
        `Batch` with one view on `plan.device`.

    Raises:
        UserError: An image that cannot be decoded, or a crop larger than the resized image.
    """
    mine = _pool(data, plan)[plan.rank :: plan.world]
    starts = range(plan.start_step * batch_size, len(mine), batch_size)
    steps = [mine[start : start + batch_size] for start in starts]
    deliver = _from_files if data.images is None else _deliver
    make, finish = partial(_centres, data, transform), partial(_normalize, pixels)
    yield from made_aside(deliver(data, steps, make, finish, plan), plan.device)


def _pool(data: ImageSet, plan: Plan) -> np.ndarray:
    if plan.indices is None:
        return np.arange(len(data))
    return np.asarray(plan.indices, dtype=np.int64)


def _batch(data: ImageSet, views: list[Tensor], indices: np.ndarray) -> Batch:
    labels = torch.from_numpy(data.labels[indices]).to(views[0].device)
    return Batch(views, labels, torch.from_numpy(indices.copy()))


def _deliver(
    data: ImageSet, steps: list[np.ndarray], make: Maker, finish: Finisher, plan: Plan
) -> Iterator[Batch]:
    """Batches made in this process: sets in memory are augmented faster than they are sent."""
    for step in steps:
        yield _batch(data, finish(_joined([make(step)], plan.device), step), step)


def _picked(images: Tensor, indices: np.ndarray) -> list[Tensor]:
    return [images[torch.from_numpy(indices)]]


def _views(draw: dict, images: list[Tensor], indices: np.ndarray) -> list[Tensor]:
    return augment(images[0], indices, **draw)


def _views_of_files(data: ImageSet, draw: dict, indices: np.ndarray) -> list[Tensor]:
    return views_on_cpu(map(data.load, indices.tolist()), indices, **draw)


def _cut_files(data: ImageSet, draw: dict, indices: np.ndarray) -> list[Tensor]:
    """Decode each image once and cut all its crops: uint8 (n, 3, size, size) per view."""
    return crop_views([data.load(index) for index in indices.tolist()], indices, **draw)


def _colour(draw: dict, crops: list[Tensor], indices: np.ndarray) -> list[Tensor]:
    return colour(crops, indices, **draw)


def _centres(data: ImageSet, transform: CenterCrop, indices: np.ndarray) -> list[Tensor]:
    if data.images is not None:
        return [center_crop(data.images[torch.from_numpy(indices)], transform)]
    return [torch.stack([center_crop(data.load(index), transform) for index in indices.tolist()])]


def _normalize(pixels: Pixels, crops: list[Tensor], _: np.ndarray) -> list[Tensor]:
    return [normalize(crops[0].float().div_(255), pixels)]


def _unchanged(views: list[Tensor], _: np.ndarray) -> list[Tensor]:
    return views


class _Pieces(Dataset[list[Tensor] | UserError]):
    """What a worker runs: one piece of a step per item."""

    def __init__(self, pieces: list[np.ndarray], make: Maker) -> None:
        self.pieces, self.make = pieces, make

    def __len__(self) -> int:
        return len(self.pieces)

    def __getitem__(self, item: int) -> list[Tensor] | UserError:
        try:
            return self.make(self.pieces[item])
        except UserError as error:
            # Raised in the main process; DataLoader would wrap it in a traceback's text.
            return error


def _from_files(
    data: ImageSet, steps: list[np.ndarray], make: Maker, finish: Finisher, plan: Plan
) -> Iterator[Batch]:
    """Batches of a set that is decoded as it goes, in workers if the plan has any."""
    split = [np.array_split(step, -(-len(step) // _PIECE)) for step in steps]
    pieces = [piece for parts in split for piece in parts]
    loader = DataLoader(
        _Pieces(pieces, make),
        batch_size=None,
        num_workers=min(plan.workers, len(pieces)),
        worker_init_fn=_one_thread,
        pin_memory=plan.device != "cpu",
        generator=torch.Generator(),  # else it draws from the global one, which checkpoints hold
    )
    made = iter(loader)
    for step, parts in zip(steps, split, strict=True):
        pieces = [_checked(next(made)) for _ in parts]
        yield _batch(data, finish(_joined(pieces, plan.device), step), step)


def _checked(piece: list[Tensor] | UserError) -> list[Tensor]:
    if isinstance(piece, UserError):
        raise piece
    return piece


def _joined(pieces: list[list[Tensor]], device: str) -> list[Tensor]:
    """A step's views on the device, of its pieces'."""
    return [
        torch.cat([part.to(device, non_blocking=True) for part in parts])
        for parts in zip(*pieces, strict=True)
    ]


def _one_thread(_: int) -> None:
    torch.set_num_threads(1)
