"""Features of a frozen backbone, spread over processes and kept on disk."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np
import torch
from torch import Tensor

from harness import dist
from harness.backbone import POOLED
from harness.data import open_split
from harness.errors import UserError
from harness.featurecache import PIECE, FeatureCache
from harness.files import written_atomically
from harness.fusion import fused, marks
from harness.loader import Plan, eval_batches, loader_workers
from harness.progress import track
from harness.recipe import fingerprint

if TYPE_CHECKING:
    from harness.backbone import Backbone
    from harness.data import ImageSet
    from harness.recipe import Reading
    from harness.views import CenterCrop

BATCH_SIZE = 128  # images a forward


@dataclass(frozen=True, kw_only=True)
class Features:
    """Features of some images of a split, with what they belong to."""

    values: Tensor  # (n, d) fp32, on this process's device
    labels: Tensor  # (n,) int64, on the CPU
    indices: Tensor  # (n,) int64, on the CPU: positions in the split


@contextmanager
def frozen(backbone: Backbone) -> Iterator[Backbone]:
    """`backbone` on this process's device, in eval mode and without gradients, for a block."""
    training = backbone.training
    backbone.to(device=dist.device()).to(memory_format=torch.channels_last).eval()
    try:
        with torch.no_grad():
            yield backbone
    finally:
        backbone.train(training)


def embed(
    backbone: Backbone, images: Tensor, reading: Reading = POOLED, *, rows: int = BATCH_SIZE
) -> Tensor:
    """Features (n, d) fp32 of images (n, 3, H, W), on this process's device.

    Always runs batches of `rows`, the last one filled up with copies: kernels differ in the last
    bit from one shape to another, and so would features on one and on two processes.
    """
    images = images.to(dist.device(), memory_format=torch.channels_last)
    return torch.cat(
        [
            backbone(filled_up(part, rows).contiguous(memory_format=torch.channels_last), reading)[
                : len(part)
            ].float()
            for part in images.split(rows)
        ]
    )


def filled_up(part: Tensor, rows: int = BATCH_SIZE) -> Tensor:
    """`part` with copies of its rows behind it, so that there are `rows` of them."""
    if len(part) == rows:
        return part
    return part[torch.arange(rows, device=part.device) % len(part)]


def extract(
    backbone: Backbone,
    data: ImageSet,
    transform: CenterCrop,
    reading: Reading = POOLED,
    *,
    indices: np.ndarray | None = None,
) -> Features:
    """This process's share of a split's features, each image once over all processes.

    They are kept on disk (see `featurecache`): asked for again, by another protocol or after a
    kill, only what is missing is computed. Takes 4 bytes x images x width of memory, shared
    among the processes.

    Args:
        backbone: Frozen here; its mode is restored. What runs is a copy of it with fused batch
            norms.
        data: The split.
        transform: Of each image; the normalisation is the backbone's.
        reading: Which features.
        indices: Only these images of the split; default all.
    """
    positions = np.arange(len(data)) if indices is None else np.asarray(indices, dtype=np.int64)
    images = (data.checksum, hashlib.sha256(positions.tobytes()).hexdigest())
    kernels = (BATCH_SIZE, dist.device().type, torch.__version__, *marks(backbone))
    cache = FeatureCache(
        fingerprint(digest(backbone), backbone.pixels, transform, reading, *images, *kernels)
    )
    share = slice(dist.rank(), None, dist.world())
    pieces = [positions[start : start + PIECE] for start in range(0, len(positions), PIECE)]
    rows = [cache.load(number, share) for number in range(len(pieces))]
    missing = [number for number, kept in enumerate(rows) if kept is None]
    counts = [-(-len(pieces[number][share]) // BATCH_SIZE) for number in missing]
    with frozen(backbone):
        trunk = fused(backbone) if missing else backbone
        computed = track(
            _embedded(trunk, data, transform, reading, [pieces[number] for number in missing]),
            label=f"features of {data.name} {data.split}",
            total=sum(counts),
        )
        for number, count in zip(missing, counts, strict=True):
            parts = list(islice(computed, count))
            if not parts:  # fewer images than processes: only the width is needed
                parts = [embed(trunk, torch.zeros(1, 3, *[transform.size] * 2), reading)[:0]]
            found = torch.cat(parts).cpu().numpy()
            cache.save(number, found)
            rows[number] = found
    cache.touch()
    mine = np.concatenate([piece[share] for piece in pieces])
    return Features(
        values=_joined(cast("list[np.ndarray]", rows)),  # none is missing any more
        labels=torch.from_numpy(data.labels[mine]),
        indices=torch.from_numpy(mine),
    )


def _joined(pieces: list[np.ndarray]) -> Tensor:
    """All rows on this process's device; the pieces are let go one by one, not held twice."""
    rows = torch.empty((sum(map(len, pieces)), pieces[0].shape[1]), device=dist.device())
    start = 0
    while pieces:
        piece = torch.from_numpy(pieces.pop(0))
        rows[start : start + len(piece)] = piece
        start += len(piece)
    return rows


def _embedded(
    backbone: Backbone,
    data: ImageSet,
    transform: CenterCrop,
    reading: Reading,
    pieces: list[np.ndarray],
) -> Iterator[Tensor]:
    """Features of this process's share of each piece, batch by batch."""
    for positions in pieces:
        plan = Plan(
            rank=dist.rank(),
            world=dist.world(),
            indices=positions,
            device=str(dist.device()),
            workers=loader_workers(),
        )
        for batch in eval_batches(
            data, transform, backbone.pixels, batch_size=BATCH_SIZE, plan=plan
        ):
            yield embed(backbone, batch.views[0], reading)


def gathered(features: Features) -> Features:
    """The features of all processes, in the order of the split, on every process."""
    if dist.world() == 1:
        return features
    order = gather_numbers(features.indices).argsort()
    return Features(
        values=dist.gather_rows(features.values)[order.to(features.values.device)],
        labels=gather_numbers(features.labels)[order],
        indices=gather_numbers(features.indices)[order],
    )


def gather_numbers(x: Tensor) -> Tensor:
    """Rows (n_r, …) of all processes in rank order, on the CPU whatever the collectives use."""
    return dist.gather_rows(x.to(dist.device())).cpu()


def open_pair(dataset: str) -> tuple[ImageSet, ImageSet]:
    """The train and val splits of a data set.

    Raises:
        UserError: They don't have the same classes, or an image has several.
    """
    train, val = open_split(dataset, "train"), open_split(dataset, "val")
    if train.labels.ndim > 1:
        raise UserError(
            f"data set {dataset!r} has several labels an image and this protocol takes one; use"
            " protocols/voc07_svm.py or another data set."
        )
    if train.classes != val.classes:
        odd = sorted(set(train.classes) ^ set(val.classes))[:3]
        raise UserError(
            f"data set {dataset!r} has {len(train.classes)} classes in train and "
            f"{len(val.classes)} in val ({', '.join(odd)}, …); give both the same class folders"
        )
    return train, val


def collect(
    features: Features, predictions: dict[str, Tensor], workdir: Path
) -> dict[str, np.ndarray]:
    """All processes' predictions in the order of the split; also `workdir/predictions.npz`.

    Args:
        features: This process's share of the split.
        predictions: By name, a row for each of these images: (n,) or (n, places), on the CPU.
        workdir: Folder of the evaluation; only the main process writes.

    Returns:
        `predictions` and beside them `indices` and `labels`, of every image of the split once.
    """
    order = gather_numbers(features.indices).argsort()
    shares = {"indices": features.indices, "labels": features.labels, **predictions}
    arrays = {name: gather_numbers(share)[order].numpy() for name, share in shares.items()}
    if dist.is_main():
        with written_atomically(workdir / "predictions.npz") as file:
            np.savez(file, allow_pickle=False, **arrays)
    dist.barrier()
    return arrays


def digest(backbone: Backbone) -> str:
    """SHA-256 of the weights and buffers: tells checkpoints apart wherever they came from."""
    total = hashlib.sha256()
    for name, value in sorted(backbone.state_dict().items()):
        total.update(name.encode())
        total.update(value.detach().cpu().contiguous().numpy().tobytes())
    return total.hexdigest()
