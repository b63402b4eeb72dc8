"""Random and centre crops: where they lie, and how they are resampled.

Small sets that live in memory are cropped as a batch: resampling is linear and separable, so a
crop is two matrix products per image. Decoded JPEGs differ in size; each is cropped on its own, in
uint8. Both use Pillow's antialiased filters, which stop at the border of the crop.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from harness.errors import UserError
from harness.views import CenterCrop, Interpolation, View

TRIES = 10
BOX_SLOTS = 2 * TRIES + 2  # uniforms that `draw_boxes` reads per image
_TABLED = 40  # pixels of a side up to which a table of resampling weights is kept: 10 MB at 40
_LOG_RATIO = (math.log(3 / 4), math.log(4 / 3))


def draw_boxes(view: View, uniforms: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Crop boxes as torchvision's `RandomResizedCrop.get_params` draws them.

    Up to ten tries at an area (uniform in `view.scale`) and an aspect ratio (log-uniform in
    3/4..4/3); the first that fits is placed uniformly, and if none fits the box is the largest
    centred one of an allowed ratio.

    Args:
        view: The view to draw for.
        uniforms: (n, BOX_SLOTS) in [0, 1).
        sizes: Height and width of each image, int64 (n, 2).

    Returns:
        int64 (n, 4): top, left, height, width.
    """
    return boxes_at_scales(np.array([view.scale]), uniforms, sizes)


def boxes_at_scales(scales: np.ndarray, uniforms: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """As `draw_boxes`, for views of different scale, such as all those of one image.

    Args:
        scales: Smallest and largest area of each row, share of the image: (n, 2) or (1, 2).
        uniforms: (n, BOX_SLOTS) in [0, 1).
        sizes: Height and width of each row's image, int64 (n, 2).

    Returns:
        int64 (n, 4): top, left, height, width.
    """
    height, width = sizes[:, :1], sizes[:, 1:]
    low, high = scales[:, :1], scales[:, 1:]
    area = height * width * (low + (high - low) * uniforms[:, :TRIES])
    span = _LOG_RATIO[1] - _LOG_RATIO[0]
    ratio = np.exp(_LOG_RATIO[0] + span * uniforms[:, TRIES : 2 * TRIES])
    box_width, box_height = np.rint(np.sqrt(area * ratio)), np.rint(np.sqrt(area / ratio))
    fits = (box_width > 0) & (box_width <= width) & (box_height > 0) & (box_height <= height)
    rows, first = np.arange(len(sizes)), fits.argmax(axis=1)
    extent = np.stack([box_height[rows, first], box_width[rows, first]], axis=1)
    start = np.floor(uniforms[:, 2 * TRIES :] * (sizes - extent + 1))
    none = ~fits.any(axis=1)
    if none.any():
        extent[none] = _fallback_extent(sizes[none])
        start[none] = (sizes[none] - extent[none]) // 2
    return np.concatenate([start, extent], axis=1).astype(np.int64)


def _fallback_extent(sizes: np.ndarray) -> np.ndarray:
    ratio = sizes[:, 1] / sizes[:, 0]
    height = np.where(ratio < 3 / 4, np.rint(sizes[:, 1] / (3 / 4)), sizes[:, 0])
    width = np.where(ratio > 4 / 3, np.rint(sizes[:, 0] * (4 / 3)), sizes[:, 1])
    return np.stack([height, width], axis=1)


def _kernel(x: Tensor, interpolation: Interpolation) -> Tensor:
    x = x.abs()
    if interpolation == "bilinear":
        return (1 - x).clamp_(min=0)
    near = (1.5 * x - 2.5) * x * x + 1  # Keys' cubic with a = -1/2, as in Pillow
    far = ((-0.5 * x + 2.5) * x - 4) * x + 2
    return torch.where(x < 1, near, torch.where(x < 2, far, torch.zeros_like(x)))


def resampling_matrices(
    start: Tensor, length: Tensor, side: int, size: int, interpolation: Interpolation
) -> Tensor:
    """Weights that resample a stretch of a line of `side` pixels to `size` pixels.

    Args:
        start: First pixel of each stretch, float32 (n,).
        length: Pixels in each stretch, float32 (n,).
        side: Pixels of the whole line.
        size: Pixels wanted.
        interpolation: "bicubic" or "bilinear", both antialiased.

    Returns:
        float32 (n, size, side); rows sum to 1.
    """
    scale = (length / size).view(-1, 1, 1)
    pixels = torch.arange(side, device=start.device, dtype=torch.float32) - start.view(-1, 1, 1)
    centres = (torch.arange(size, device=start.device) + 0.5).view(1, -1, 1) * scale
    weights = _kernel((pixels + 0.5 - centres) / scale.clamp(min=1), interpolation)
    weights = weights * ((pixels >= 0) & (pixels < length.view(-1, 1, 1)))
    return weights / weights.sum(dim=2, keepdim=True)


def _weights(
    start: Tensor, length: Tensor, side: int, size: int, interpolation: Interpolation
) -> Tensor:
    """`resampling_matrices` of integers (n,): of short lines out of a table of all there can be."""
    if side > _TABLED:
        return resampling_matrices(start.float(), length.float(), side, size, interpolation)
    table = _every_stretch(side, size, interpolation, start.device)
    return table.index_select(0, start * side + length - 1)


@lru_cache(maxsize=16)
def _every_stretch(
    side: int, size: int, interpolation: Interpolation, device: torch.device
) -> Tensor:
    """Of each start and each length of a line: (side * side, size, side)."""
    places = torch.arange(side * side, device=device)
    start, length = places.div(side, rounding_mode="floor"), places % side + 1
    return resampling_matrices(start.float(), length.float(), side, size, interpolation)


def crop_batch(images: Tensor, boxes: np.ndarray, view: View) -> Tensor:
    """Crop and resample images of one size.

    Args:
        images: float32 (n, H, 3, W): rows first, so that both passes are plain matrix products.
        boxes: int64 (n, 4) from `draw_boxes`.
        view: Says the size of the crops and the interpolation.

    Returns:
        float32 (n, 3, size, size), clamped to [0, 255].
    """
    n, height, _, width = images.shape
    if n == 1:  # a batch of one takes another matrix product, which rounds differently
        return crop_batch(images.repeat(2, 1, 1, 1), boxes.repeat(2, axis=0), view)[:1]
    size = view.size
    top, left, lines, across = torch.from_numpy(boxes).to(images.device).unbind(1)
    rows = _weights(top, lines, height, size, view.interpolation)
    columns = _weights(left, across, width, size, view.interpolation)
    narrow = torch.bmm(images.view(n, height * 3, width), columns.mT)
    narrow.clamp_(0, 255)  # as Pillow, whose first pass ends in 8 bits
    crops = torch.bmm(rows, narrow.view(n, height, 3 * size)).view(n, size, 3, size)
    return crops.permute(0, 2, 1, 3).contiguous().clamp_(0, 255)


def crop_image(image: Tensor, box: np.ndarray, view: View) -> Tensor:
    """Crop and resample one decoded image: uint8 (3, H, W) to uint8 (3, size, size)."""
    if image.stride(0) == 1:  # as decoders deliver it
        crop = crop_interleaved(image.permute(1, 2, 0).numpy(), box, view)
        return torch.from_numpy(crop).permute(2, 0, 1)
    top, left, height, width = box.tolist()
    part = image[:, top : top + height, left : left + width]
    return resize(part, (view.size, view.size), view.interpolation)


def crop_interleaved(pixels: np.ndarray, box: np.ndarray, view: View) -> np.ndarray:
    """`crop_image` to the last bit, for the layout of decoders and OpenCV.

    Torch has vector code for it, but recognises it by the strides of a batch without gaps.

    Args:
        pixels: uint8 (H, W, 3).
        box: int64 (4,) out of `draw_boxes`.
        view: Says the size of the crop and the interpolation.

    Returns:
        uint8 (size, size, 3), contiguous.
    """
    top, left, height, width = box.tolist()
    part = np.ascontiguousarray(pixels[top : top + height, left : left + width])
    batch = torch.from_numpy(part.reshape(1, height, width, 3).transpose(0, 3, 1, 2))
    crop = resize(batch, (view.size, view.size), view.interpolation).numpy()
    return np.ascontiguousarray(crop[0].transpose(1, 2, 0))


def resize(images: Tensor, size: tuple[int, int], interpolation: Interpolation) -> Tensor:
    """Resample uint8 images (3, H, W) or (n, 3, H, W) with antialiasing, as Pillow does."""
    if tuple(images.shape[-2:]) == size:
        return images
    batch = images if images.ndim == 4 else images[None]
    out = F.interpolate(batch, size=size, mode=interpolation, antialias=True)
    return out if images.ndim == 4 else out[0]


def center_crop(images: Tensor, transform: CenterCrop) -> Tensor:
    """Resize the shorter side, then crop the centre, as torchvision's Resize and CenterCrop.

    With `squash` the second step is another resize, of the whole image, and `resize` 0 leaves out
    the first.

    Args:
        images: uint8 (3, H, W) or (n, 3, H, W).
        transform: Sizes and interpolation.

    Returns:
        uint8 (…, 3, size, size).

    Raises:
        UserError: The crop is larger than the resized image.
    """
    short, size = transform.resize, transform.size
    if transform.squash and not short:
        return resize(images, (size, size), transform.interpolation)
    if size > short and not transform.squash:
        raise UserError(
            f"a centre crop of {size} px does not fit an image whose shorter side is resized to"
            f" {short} px; use resize >= size."
        )
    height, width = images.shape[-2:]
    if height <= width:
        target = (short, int(short * width / height))
    else:
        target = (int(short * height / width), short)
    resized = resize(images, target, transform.interpolation)
    if transform.squash:
        return resize(resized, (size, size), transform.interpolation)
    top, left = (round((side - size) / 2.0) for side in target)
    return resized[..., top : top + size, left : left + size]


def patch_slots(view: View) -> int:
    """Uniforms per image that `cut_patches` reads."""
    return 3 * view.patch_grid**2 if view.patch_size else 0


def cut_patches(crops: Tensor, view: View, uniforms: np.ndarray) -> Tensor:
    """The jigsaw of PIRL (Misra & van der Maaten 2020): one patch out of each cell, shuffled.

    Args:
        crops: (n, 3, size, size).
        view: Says the grid and the side of a patch.
        uniforms: (n, patch_slots(view)): where each patch lies in its cell, then the order.

    Returns:
        (n, patch_grid ** 2, 3, patch_size, patch_size), same type as `crops`.
    """
    count, grid, side = view.patch_grid**2, view.patch_grid, view.patch_size
    assert side is not None
    cell = view.size // grid
    offsets = np.floor(uniforms[:, : 2 * count] * (cell - side + 1)).astype(np.int64)
    cells = np.argsort(uniforms[:, 2 * count :], axis=1, kind="stable")
    places = np.arange(count)
    corner = np.stack([places // grid, places % grid]) * cell
    inside = offsets.reshape(-1, 2, count) + corner
    starts = np.take_along_axis(inside, cells[:, None, :], axis=2).tolist()
    patches = [
        crop[:, top : top + side, left : left + side]
        for crop, (tops, lefts) in zip(crops, starts, strict=True)
        for top, left in zip(tops, lefts, strict=True)
    ]
    return torch.stack(patches).view(len(crops), count, 3, side, side)
