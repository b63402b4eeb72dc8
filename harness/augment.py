"""Executes Views: draws the parameters of every image, crops, then colours the batch.

There are two ways in and one set of parameters. `augment` takes images that live in memory as one
tensor and crops them as a batch. `crop_views` takes one decoded image and cuts all its crops, and
`colour` turns a batch of such crops into views. An image's views depend on the seed, the epoch and
its index alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from harness import photometrics
from harness.crop import BOX_SLOTS, crop_batch, crop_image, cut_patches, draw_boxes, patch_slots
from harness.draws import uniforms
from harness.photometrics import mean_per_image, normalize
from harness.views import View

_CHUNK_PIXELS = {"cpu": 128 * 32 * 32, "cuda": 1 << 25}  # CPU: what stays in a core's cache
_COLOUR_SLOTS = 18
_BRIGHTNESS, _CONTRAST, _SATURATION, _HUE = range(4)


@dataclass(frozen=True, kw_only=True)
class Colours:
    """Photometric parameters of n images (for jigsaw views: of n * patches images)."""

    flip: np.ndarray  # bool (n,)
    order: np.ndarray  # int64 (n, 4): operation at each stage of the jitter
    factors: np.ndarray  # float64 (n, 4): brightness, contrast, saturation, hue; neutral if unused
    adjust: np.ndarray  # bool (n,)
    bits: np.ndarray  # float64 (n,): posterize, 4-8
    sharpness: np.ndarray  # float64 (n,)
    inversion: np.ndarray  # float64 (n,): solarize threshold of the adjustment
    gray: np.ndarray  # bool (n,)
    sigma: np.ndarray  # float64 (n,): of the blur in pixels; 0 = none
    solarize: np.ndarray  # bool (n,)


def draw_colours(view: View, uniform: np.ndarray) -> Colours:
    """Photometric parameters as torchvision's and VISSL's transforms draw them.

    Args:
        view: The view to draw for.
        uniform: (n, 18) in [0, 1).
    """
    u = uniform
    jittered = u[:, 1] < view.jitter_p
    strength = np.array(view.jitter)
    low = np.maximum(1 - strength, 0)
    low[_HUE], high = -strength[_HUE], 1 + strength
    high[_HUE] = strength[_HUE]
    neutral = np.array([1.0, 1.0, 1.0, 0.0])
    if view.brightness == "additive":
        low[_BRIGHTNESS], high[_BRIGHTNESS] = -strength[_BRIGHTNESS], strength[_BRIGHTNESS]
        neutral[_BRIGHTNESS] = 0.0
    factors = np.where(jittered[:, None], low + (high - low) * u[:, 2:6], neutral)
    sigma = view.blur_sigma[0] + (view.blur_sigma[1] - view.blur_sigma[0]) * u[:, 12]
    return Colours(
        flip=u[:, 0] < view.flip_p,
        order=np.argsort(u[:, 6:10], axis=1, kind="stable"),
        factors=factors,
        gray=u[:, 10] < view.gray_p,
        sigma=np.where(u[:, 11] < view.blur_p, sigma, 0.0),
        solarize=u[:, 13] < view.solarize_p,
        adjust=u[:, 14] < view.adjust_p,
        bits=4 + np.floor(5 * u[:, 15]),
        sharpness=0.1 + 1.8 * u[:, 16],
        inversion=np.floor(257 * u[:, 17]) / 255,
    )


@dataclass(frozen=True, kw_only=True)
class ViewDraws:
    """Uniforms of one view of n images, by what they are for."""

    box: np.ndarray  # (n, BOX_SLOTS)
    patches: np.ndarray  # (n, patch_slots(view))
    colours: np.ndarray  # (n * patches, 18)


def draw_view(view: View, number: int, indices: np.ndarray, *, seed: int, epoch: int) -> ViewDraws:
    """All uniforms of view `number` of a recipe for the images of `indices` (n,)."""
    cut = patch_slots(view)
    pictures = view.patch_grid**2 if view.patch_size else 1
    drawn = uniforms(seed, epoch, indices, number, BOX_SLOTS + cut + pictures * _COLOUR_SLOTS)
    box, patches, colours = np.split(drawn, [BOX_SLOTS, BOX_SLOTS + cut], axis=1)
    return ViewDraws(
        box=box, patches=patches, colours=colours.reshape(len(drawn) * pictures, _COLOUR_SLOTS)
    )


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
    results = [_empty(view, len(images), images.device) for view in views]
    side = max(view.size for view in views)
    for part in _chunks(len(images), side, images.device.type):
        # Rows before channels: the layout that `crop_batch` multiplies.
        rows = images[part].permute(0, 2, 1, 3).contiguous().float()
        sizes = np.broadcast_to(np.array(images.shape[-2:]), (len(rows), 2))
        for number, view in enumerate(views):
            drawn = draw_view(view, number, indices[part], seed=seed, epoch=epoch)
            crops = crop_batch(rows, draw_boxes(view, drawn.box, sizes), view)
            _finish(crops, view, drawn, out=results[number][part])
    return results


def crop_views(
    image: Tensor, index: int, views: Sequence[View], *, seed: int, epoch: int
) -> list[Tensor]:
    """All crops of one decoded image: uint8 (3, H, W) to uint8 (3, size, size) per view."""
    sizes = np.array([image.shape[-2:]])
    crops = []
    for number, view in enumerate(views):
        drawn = draw_view(view, number, np.array([index]), seed=seed, epoch=epoch)
        crops.append(crop_image(image, draw_boxes(view, drawn.box, sizes)[0], view))
    return crops


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
        out = _empty(view, len(batch), batch.device)
        for part in _chunks(len(batch), view.size, batch.device.type):
            drawn = draw_view(view, number, indices[part], seed=seed, epoch=epoch)
            _finish(batch[part].float(), view, drawn, out=out[part])
        results.append(out)
    return results


def _chunks(n: int, side: int, device: str) -> list[slice]:
    """Slices of a batch of nearly equal length whose float crops fit the cache."""
    most = max(4, _CHUNK_PIXELS["cpu" if device == "cpu" else "cuda"] // side**2)
    bounds = np.linspace(0, n, -(-n // most) + 1).astype(int).tolist()
    return [slice(low, high) for low, high in pairwise(bounds)]


def _empty(view: View, n: int, device: torch.device) -> Tensor:
    side = view.patch_size or view.size
    patches = (view.patch_grid**2,) if view.patch_size else ()
    return torch.empty(n, *patches, 3, side, side, device=device)


def _finish(crops: Tensor, view: View, drawn: ViewDraws, *, out: Tensor) -> None:
    """Float crops in [0, 255] to a normalised view, into `out`; overwrites `crops`."""
    images = crops.div_(255)
    if view.patch_size:
        images, out = cut_patches(images, view, drawn.patches).flatten(0, 1), out.flatten(0, 1)
    images = apply_colours(images, draw_colours(view, drawn.colours), view)
    normalize(images, view.mean, view.std, out=out)


def apply_colours(images: Tensor, colours: Colours, view: View) -> Tensor:
    """Every photometric operation but normalisation, in order; overwrites `images`.

    Args:
        images: float32 (n, 3, H, W) in [0, 1].
        colours: Parameters of the n images.
        view: Says the threshold and the kind of brightness.

    Returns:
        (n, 3, H, W) in [0, 1].
    """
    _update(images, colours.flip, lambda part, _: part.flip(-1))
    if view.jitter_p > 0:
        images = _jitter(images, colours, additive=view.brightness == "additive")
    _update(images, colours.adjust, lambda part, rows: _adjust(part, colours, rows))
    _update(images, colours.gray, lambda part, _: photometrics.luma(part).expand_as(part))
    _update(images, colours.sigma > 0, lambda part, rows: _blur(part, colours.sigma[rows]))
    threshold = view.solarize_threshold
    _update(images, colours.solarize, lambda part, _: photometrics.solarize(part, threshold))
    return images


def _update(
    images: Tensor, mask: np.ndarray, operation: Callable[[Tensor, np.ndarray], Tensor]
) -> None:
    """Apply an operation in place to the images of a mask (n,)."""
    rows = mask.nonzero()[0]
    if len(rows) == len(images):
        images.copy_(operation(images, rows))
    elif len(rows):
        index = torch.from_numpy(rows).to(images.device)
        images.index_copy_(0, index, operation(images.index_select(0, index), rows))


def _jitter(images: Tensor, colours: Colours, *, additive: bool) -> Tensor:
    """Brightness, contrast, saturation and hue, in each image's own order."""
    weights = _blend_weights(colours, additive=additive)
    stages = torch.from_numpy(weights).to(images.device, torch.float32)[..., None, None, None]
    for stage in range(4):
        factor, grey_share, mean_share, offset = stages[stage]
        contrasted = weights[stage, 2].nonzero()[0]
        if len(contrasted):
            index = torch.from_numpy(contrasted).to(images.device)
            means = mean_per_image(photometrics.luma(images.index_select(0, index)))
            offset.index_copy_(0, index, mean_share.index_select(0, index) * means)
        images = photometrics.blend(images, factor, grey_share, offset)
        turned = (colours.order[:, stage] == _HUE) & (colours.factors[:, _HUE] != 0)
        _update(images, turned, lambda part, rows: _turn(part, colours.factors[rows, _HUE]))
    return images


def _blend_weights(colours: Colours, *, additive: bool) -> np.ndarray:
    """Each stage of each image as a blend: what the image, luma, mean luma and 1 weigh.

    Returns:
        float64 (4 stages, 4 weights, n); hue is a blend that changes nothing.
    """
    order = colours.order
    value = np.take_along_axis(colours.factors, order, axis=1)
    is_constant = (order == _BRIGHTNESS) & additive
    factor = np.where((order == _HUE) | is_constant, 1.0, value)
    grey_share = np.where(order == _SATURATION, 1 - factor, 0.0)
    mean_share = np.where(order == _CONTRAST, 1 - factor, 0.0)
    constant = np.where(is_constant, value, 0.0)
    return np.stack([factor, grey_share, mean_share, constant]).transpose(2, 0, 1)


def _turn(images: Tensor, turns: np.ndarray) -> Tensor:
    return photometrics.shift_hue(images, _column(turns, images).squeeze(1))


def _blur(images: Tensor, sigma: np.ndarray) -> Tensor:
    return photometrics.blur(images, torch.from_numpy(sigma))


def _adjust(images: Tensor, colours: Colours, rows: np.ndarray) -> Tensor:
    """The photometric operation of VISSL: all four steps in this order."""
    images = photometrics.posterize(images, _column(colours.bits[rows], images))
    images = photometrics.sharpen(images, _column(colours.sharpness[rows], images))
    images = photometrics.solarize(images, _column(colours.inversion[rows], images))
    return photometrics.autocontrast(images)


def _column(values: np.ndarray, like: Tensor) -> Tensor:
    return torch.from_numpy(values).to(like.device, like.dtype).view(-1, 1, 1, 1)
