"""Executes Views: crops, then colours the batch.

There are two ways in and one set of parameters. `augment` takes images that live in memory as one
tensor and crops them as a batch. `crop_views` takes decoded images and cuts all their crops, and
`colour` turns a batch of such crops into views. An image's views depend on the seed, the epoch and
its index alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from harness.crop import crop_batch, crop_image, cut_patches, draw_boxes
from harness.parameters import (
    BRIGHTNESS,
    CONTRAST,
    HUE,
    SATURATION,
    Colours,
    ViewDraws,
    draw_colours,
    draw_view,
)
from harness.photometrics import (
    autocontrast,
    blend,
    blur,
    luma,
    mean_per_image,
    normalize,
    posterize,
    sharpen,
    shift_hue,
    solarize,
)
from harness.views import View

_CHUNK_PIXELS = {"cpu": 128 * 32 * 32, "cuda": 1 << 25}  # CPU: what stays in a core's cache
_NEUTRAL_BLEND = np.array([[1.0], [0.0], [0.0], [0.0]])


def augment(
    images: Tensor, indices: np.ndarray, views: Sequence[View], *, seed: int, epoch: int
) -> list[Tensor]:
    """Views of images that live in memory.

    Args:
        images: uint8 (n, 3, H, W), on the device that shall do the work.
        indices: Their indices (n,) in the data set.
        views: The recipe.
        seed: The run's seed.
        epoch: Epoch, counted from 0.

    Returns:
        Per view float32 (n, 3, size, size), normalised; (n, patches, 3, patch, patch) for a jigsaw.
    """
    sizes = np.broadcast_to(np.array(images.shape[-2:]), (len(images), 2))
    results = []
    for number, view in enumerate(views):
        drawn = draw_view(view, number, indices, seed=seed, epoch=epoch)
        boxes = draw_boxes(view, drawn.box, sizes)
        cut = partial(_cut, images, boxes, view)
        results.append(_finish(cut, view, drawn, images.device))
    return results


def crop_views(
    images: Sequence[Tensor],
    indices: np.ndarray,
    views: Sequence[View],
    *,
    seed: int,
    epoch: int,
) -> list[Tensor]:
    """All crops of decoded images of any size.

    Args:
        images: n times uint8 (3, H, W).
        indices: Their indices (n,) in the data set.
        views: The recipe.
        seed: The run's seed.
        epoch: Epoch, counted from 0.

    Returns:
        Per view uint8 (n, 3, size, size).
    """
    sizes = np.array([image.shape[-2:] for image in images])
    results = []
    for number, view in enumerate(views):
        drawn = draw_view(view, number, indices, seed=seed, epoch=epoch)
        boxes = draw_boxes(view, drawn.box, sizes)
        crops = [crop_image(image, box, view) for image, box in zip(images, boxes, strict=True)]
        results.append(torch.stack(crops).contiguous())
    return results


def colour(
    crops: Sequence[Tensor], indices: np.ndarray, views: Sequence[View], *, seed: int, epoch: int
) -> list[Tensor]:
    """Turns crops into views; with `crop_views` the equivalent of `augment`.

    Args:
        crops: Per view uint8 (n, 3, size, size), on the device that shall do the work.
        indices: Indices (n,) of the images in the data set.
        views: The recipe.
        seed: The run's seed.
        epoch: Epoch, counted from 0.

    Returns:
        As `augment`.
    """
    results = []
    for number, (view, batch) in enumerate(zip(views, crops, strict=True)):
        drawn = draw_view(view, number, indices, seed=seed, epoch=epoch)
        results.append(_finish(partial(_as_float, batch), view, drawn, batch.device))
    return results


def _cut(images: Tensor, boxes: np.ndarray, view: View, part: slice) -> Tensor:
    # Rows before channels: the layout that `crop_batch` multiplies.
    rows = images[part].permute(0, 2, 1, 3).contiguous().float()
    return crop_batch(rows, boxes[part], view)


def _as_float(crops: Tensor, part: slice) -> Tensor:
    return crops[part].float()


def _finish(
    crops: Callable[[slice], Tensor], view: View, drawn: ViewDraws, device: torch.device
) -> Tensor:
    """Colours and normalises a view in chunks that fit the cache.

    Args:
        crops: Makes a slice of the crops: float32 (k, 3, size, size) in [0, 255], overwritten.
        view: The view.
        drawn: Uniforms of the n images.
        device: Where the crops are.
    """
    n = len(drawn.box)
    per_image = len(drawn.colours) // max(n, 1)
    colours = draw_colours(view, drawn.colours)
    side = view.patch_size or view.size
    out = torch.empty(n * per_image, 3, side, side, device=device)
    for part in _chunks(n, view.size, device.type):
        images = crops(part).div_(255)
        if view.patch_size:
            images = cut_patches(images, view, drawn.patches[part]).flatten(0, 1)
        pictures = slice(part.start * per_image, part.stop * per_image)
        images = apply_colours(images, colours.part(pictures), view)
        normalize(images, view.pixels, out=out[pictures])
    return out.unflatten(0, (n, per_image)) if view.patch_size else out


def _chunks(n: int, side: int, device: str) -> list[slice]:
    """Slices of a batch of nearly equal length whose float crops fit the cache."""
    most = max(1, _CHUNK_PIXELS["cpu" if device == "cpu" else "cuda"] // side**2)
    bounds = np.linspace(0, n, -(-n // most) + 1).astype(int).tolist()
    return [slice(low, high) for low, high in pairwise(bounds)]


def apply_colours(images: Tensor, colours: Colours, view: View) -> Tensor:
    """Every photometric operation but normalisation, in order; overwrites `images`.

    Args:
        images: float32 (n, 3, H, W) in [0, 1].
        colours: Parameters of the n images.
        view: Says the threshold and the kind of brightness.

    Returns:
        (n, 3, H, W) in [0, 1].
    """
    images = _where(images, colours.flip, lambda part, _: part.flip(-1))
    if view.jitter_p > 0:
        images = _jitter(images, colours, additive=view.brightness == "additive")
    images = _where(images, colours.adjust, lambda part, rows: adjust(part, colours, rows))
    images = _where(images, colours.gray, lambda part, _: luma(part).repeat(1, 3, 1, 1))
    images = _where(images, colours.sigma > 0, lambda part, rows: _blur(part, colours.sigma[rows]))
    threshold = view.solarize_threshold
    return _where(images, colours.solarize, lambda part, _: solarize(part, threshold))


def _where(
    images: Tensor, mask: np.ndarray, operation: Callable[[Tensor, np.ndarray], Tensor]
) -> Tensor:
    """Apply an operation to the images of a mask (n,); may overwrite `images`."""
    rows = mask.nonzero()[0]
    if len(rows) == 0:
        return images
    if len(rows) == len(images):
        return operation(images, rows)
    index = torch.from_numpy(rows).to(images.device)
    return images.index_copy_(0, index, operation(images.index_select(0, index), rows))


def _jitter(images: Tensor, colours: Colours, *, additive: bool) -> Tensor:
    """Brightness, contrast, saturation and hue, in each image's own order."""
    weights = blend_weights(colours, additive=additive)
    on_device = torch.from_numpy(weights).to(images.device, torch.float32)[..., None, None, None]
    for stage in range(4):
        factor, grey_share, mean_share, offset = on_device[stage]
        contrasted = weights[stage, 2].nonzero()[0]
        if len(contrasted):
            index = torch.from_numpy(contrasted).to(images.device)
            means = mean_per_image(luma(images.index_select(0, index)))
            offset.index_copy_(0, index, mean_share.index_select(0, index) * means)
        is_used = (weights[stage] != _NEUTRAL_BLEND).any(axis=1)
        if is_used.any():
            shifts = is_used[2] or is_used[3]
            images = blend(
                images, factor, grey_share if is_used[1] else None, offset if shifts else None
            )
        turned = (colours.order[:, stage] == HUE) & (colours.factors[:, HUE] != 0)
        images = _where(images, turned, lambda part, rows: _turn(part, colours.factors[rows, HUE]))
    return images


def blend_weights(colours: Colours, *, additive: bool) -> np.ndarray:
    """Each stage of each image as a blend: what the image, luma, mean luma and 1 weigh.

    Args:
        colours: Parameters of n images.
        additive: The brightness is added, not multiplied.

    Returns:
        float64 (4 stages, 4 weights, n); hue is a blend that changes nothing.
    """
    order = colours.order
    value = np.take_along_axis(colours.factors, order, axis=1)
    is_constant = (order == BRIGHTNESS) & additive
    factor = np.where((order == HUE) | is_constant, 1.0, value)
    grey_share = np.where(order == SATURATION, 1 - factor, 0.0)
    mean_share = np.where(order == CONTRAST, 1 - factor, 0.0)
    constant = np.where(is_constant, value, 0.0)
    return np.stack([factor, grey_share, mean_share, constant]).transpose(2, 0, 1)


def _turn(images: Tensor, turns: np.ndarray) -> Tensor:
    return shift_hue(images, _column(turns, images).squeeze(1))


def _blur(images: Tensor, sigma: np.ndarray) -> Tensor:
    return blur(images, torch.from_numpy(sigma))


def adjust(images: Tensor, colours: Colours, rows: np.ndarray) -> Tensor:
    """The photometric operation of VISSL: all four steps in this order.

    Args:
        images: float32 (k, 3, H, W) in [0, 1].
        colours: Parameters of n images.
        rows: Which of them (k,) these are.

    Returns:
        (k, 3, H, W).
    """
    images = posterize(images, _column(colours.bits[rows], images))
    images = sharpen(images, _column(colours.sharpness[rows], images))
    images = solarize(images, _column(colours.inversion[rows], images))
    return autocontrast(images)


def _column(values: np.ndarray, like: Tensor) -> Tensor:
    return torch.from_numpy(values).to(like.device, like.dtype).view(-1, 1, 1, 1)
