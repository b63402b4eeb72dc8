"""Images and objects for a detector: order, sizes and flips are functions of (seed, epoch, image).

For the torchvision engine; detectron2 has a loader of its own.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as transforms

from harness import dist, draws
from harness.coco import CocoSplit
from harness.detection import DetectorTraining
from harness.errors import UserError
from harness.loader import loader_workers

# Neighbours in a batch that share an orientation, so that little of it is padding: detectron2
# groups the two images of a GPU likewise.
_TOGETHER = 2
_SIDE, _FLIP = range(2)  # what an image's uniforms are for


class TrainImage(NamedTuple):
    """An augmented image; k objects, crowds left out."""

    pixels: Tensor  # uint8 (3, h, w)
    boxes: Tensor  # float32 (k, 4): x1, y1, x2, y2
    labels: Tensor  # int64 (k,): 1 to the number of classes; 0 is the background
    masks: Tensor  # uint8 (k, h, w)
    epoch: int
    position: int  # in the split


class TestImage(NamedTuple):
    """A resized image."""

    __test__ = False  # no test, whatever pytest thinks of the name

    pixels: Tensor  # uint8 (3, h, w)
    position: int  # in the split


def resized(height: int, width: int, side: int, longest: int) -> tuple[int, int]:
    """Height and width with a shorter side of `side`, or a longer one of `longest` if it is less.

    Rounds as detectron2's ResizeShortestEdge does.
    """
    scale = side / min(height, width)
    scale *= min(1.0, longest / (max(height, width) * scale))
    return int(height * scale + 0.5), int(width * scale + 0.5)


def epoch_order(data: CocoSplit, seed: int, epoch: int) -> np.ndarray:
    """Positions of the images with objects in an epoch's order; neighbours share an orientation.

    The same whatever the number of processes.
    """
    usable = np.flatnonzero(data.objects_per_image)
    order = usable[draws.permutation(seed, epoch, len(usable))]
    tall = data.sizes[order, 0] > data.sizes[order, 1]
    groups, rest = [], []
    for group in (order[tall], order[~tall]):
        whole = len(group) // _TOGETHER * _TOGETHER
        groups.append(group[:whole].reshape(-1, _TOGETHER))
        rest.append(group[whole:])
    pairs = np.concatenate(groups)
    # Another seed, since the same draws have sorted the images above.
    pairs = pairs[draws.permutation(draws.torch_seed(seed, _TOGETHER), epoch, len(pairs))]
    return np.concatenate([pairs.ravel(), *rest])


def batches(
    data: CocoSplit, settings: DetectorTraining, start: int, stop: int
) -> Iterator[list[TrainImage]]:
    """This process's images of iterations `start` to `stop`, augmented.

    Raises:
        UserError: An image that cannot be decoded.
    """
    make = _Augmented(data, settings)
    loader = DataLoader(
        _Caught(make),
        batch_sampler=_Keys(data, settings, start, stop, dist.rank(), dist.world()),
        collate_fn=list,
        num_workers=loader_workers(),
        worker_init_fn=_one_thread,
        generator=torch.Generator(),  # else it draws from the global one
    )
    yield from _unwrapped(loader)


def test_images(data: CocoSplit, settings: DetectorTraining) -> Iterator[TestImage]:
    """This process's share of a split, each image once over all processes.

    Raises:
        UserError: An image that cannot be decoded.
    """
    loader = DataLoader(
        _Caught(_Resized(data, settings)),
        sampler=range(dist.rank(), len(data), dist.world()),
        batch_size=None,
        num_workers=loader_workers(),
        worker_init_fn=_one_thread,
        generator=torch.Generator(),
    )
    yield from _unwrapped(loader)


@dataclass(frozen=True)
class _Keys:
    """(epoch, position) of each image of this process, iteration by iteration."""

    data: CocoSplit
    settings: DetectorTraining
    start: int
    stop: int
    rank: int
    world: int

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        size = self.settings.batch_size
        share = size // self.world
        steps = int(np.count_nonzero(self.data.objects_per_image)) // size
        of_epoch, order = -1, np.empty(0, dtype=np.int64)
        for iteration in range(self.start, self.stop):
            epoch, step = divmod(iteration, steps)
            if epoch != of_epoch:
                of_epoch, order = epoch, epoch_order(self.data, self.settings.seed, epoch)
            first = step * size + self.rank * share
            yield [(epoch, position) for position in order[first : first + share].tolist()]


@dataclass(frozen=True)
class _Augmented:
    """A train image at a random size, flipped half of the time, with its objects."""

    data: CocoSplit
    settings: DetectorTraining

    def __call__(self, key: tuple[int, int]) -> TrainImage:
        epoch, position = key
        settings = self.settings
        random = draws.uniforms(settings.seed, epoch, [position], 0, 2)[0]
        side = settings.train_sides[int(random[_SIDE] * len(settings.train_sides))]
        height, width = self.data.sizes[position].tolist()
        size = resized(height, width, side, settings.max_side)
        pixels = _resize(self.data.load(position), size)
        boxes, labels, masks = _objects(self.data, position, size)
        if random[_FLIP] < 0.5:
            pixels, masks = pixels.flip(2), masks.flip(2)
            boxes = torch.stack(
                [size[1] - boxes[:, 2], boxes[:, 1], size[1] - boxes[:, 0], boxes[:, 3]], dim=1
            )
        return TrainImage(pixels, boxes, labels, masks, epoch, position)


@dataclass(frozen=True)
class _Resized:
    """A val image at its test size."""

    data: CocoSplit
    settings: DetectorTraining

    def __call__(self, position: int) -> TestImage:
        height, width = self.data.sizes[position].tolist()
        size = resized(height, width, self.settings.test_side, self.settings.max_side)
        return TestImage(_resize(self.data.load(position), size), position)


def _resize(image: Tensor, size: tuple[int, int]) -> Tensor:
    return transforms.resize(image, list(size), InterpolationMode.BILINEAR, antialias=True)


def _objects(
    data: CocoSplit, position: int, size: tuple[int, int]
) -> tuple[Tensor, Tensor, Tensor]:
    """Boxes (k, 4), labels (k,) and masks (k, h, w) of an image resized to `size`.

    Boxes are cut at the image's border; those that have no area left are dropped.
    """
    objects = data.objects(position)
    height, width = data.sizes[position].tolist()
    scale = np.array([size[1] / width, size[0] / height])
    corners = np.array([one["bbox"] for one in objects], dtype=np.float64).reshape(-1, 2, 2)
    corners[:, 1] += corners[:, 0]
    corners = (corners * scale).clip(0, size[::-1])
    kept = np.flatnonzero((corners[:, 1] > corners[:, 0]).all(axis=1)).tolist()
    categories = [objects[number]["category_id"] for number in kept]
    masks = [_mask(objects[number]["segmentation"], (height, width), size) for number in kept]
    return (
        torch.from_numpy(corners[kept].reshape(-1, 4).astype(np.float32)),
        torch.from_numpy(1 + np.searchsorted(data.categories, categories)),
        torch.from_numpy(np.stack(masks) if masks else np.zeros((0, *size), dtype=np.uint8)),
    )


def _mask(segmentation: Any, original: tuple[int, int], size: tuple[int, int]) -> np.ndarray:
    """uint8 (h, w): polygons drawn at the new size, or a run-length code resized to it."""
    from pycocotools import mask as rle

    if isinstance(segmentation, list):
        scale = np.array([size[1] / original[1], size[0] / original[0]])
        polygons = [(np.reshape(one, (-1, 2)) * scale).ravel().tolist() for one in segmentation]
        return _decoded(rle.merge(rle.frPyObjects(polygons, *size)))
    if isinstance(segmentation["counts"], list):
        segmentation = rle.frPyObjects(segmentation, *original)
    mask = torch.from_numpy(_decoded(segmentation))
    return transforms.resize(mask[None], list(size), InterpolationMode.NEAREST)[0].numpy()


def _decoded(code: Any) -> np.ndarray:
    """uint8 (h, w) of a run-length code."""
    from pycocotools import mask as rle

    with warnings.catch_warnings():
        # pycocotools 2.0.11 has no `copy` in its __array__, as numpy 2 wants it.
        warnings.filterwarnings("ignore", message="__array__ implementation")
        return rle.decode(code)


class _Caught(Dataset[Any]):
    """What a worker runs; a user's mistake is raised in the main process, without a traceback."""

    def __init__(self, make: Callable[[Any], Any]) -> None:
        self.make = make

    def __getitem__(self, key: Any) -> Any:
        try:
            return self.make(key)
        except UserError as error:
            return error


def _unwrapped(loader: DataLoader[Any]) -> Iterator[Any]:
    for item in loader:
        for one in item if isinstance(item, list) else [item]:
            if isinstance(one, UserError):
                raise one
        yield item


def _one_thread(_: int) -> None:
    torch.set_num_threads(1)
