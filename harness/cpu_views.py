"""Views of decoded images on the CPU: one image at a time, while it is in the cache, by OpenCV.

`augment.py` colours whole batches by torch, which is what a GPU wants and what 32 px images want.
On a CPU a batch of 224 px crops leaves the cache at every operation, and interleaved colours are
what SIMD libraries have fast code for; so this is the same chain a second time, with the same
draws, tested against the first operation by operation. What recipes seldom do (solarize, VISSL's
adjustment) is torch's code here too.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from torch import Tensor

from harness.augment import adjust, blend_weights
from harness.crop import boxes_at_scales, crop_interleaved, cut_patches
from harness.parameters import HUE, Colours, draw_colours, draw_view
from harness.photometrics import LUMA, solarize
from harness.views import RAW_PIXELS, Pixels, View

# A pool of threads gains nothing on one crop, and one that exists doesn't survive the fork that
# makes a worker.
cv2.setNumThreads(0)

_LUMA_OF_WHITE = sum(LUMA)  # 0.9999
_NEUTRAL = [1.0, 0.0, 0.0, 0.0]


def views_on_cpu(
    images: Iterable[Tensor], indices: np.ndarray, views: Sequence[View], *, seed: int, epoch: int
) -> list[Tensor]:
    """What `colour(crop_views(…))` of `augment.py` draws, within 0.01 grey levels.

    Pixels on a threshold (solarize, posterize) may fall on either side of it.

    Args:
        images: n times uint8 (3, H, W), used up one after the other, so that only one needs to be
            in memory; fastest as views of (H, W, 3), as decoders deliver them.
        indices: Their indices (n,) in the data set.
        views: The recipe.
        seed: The run's seed.
        epoch: Epoch, counted from 0.

    Returns:
        Per view float32 (n, 3, size, size), normalised; (n, patches, 3, patch, patch) for a jigsaw.
    """
    jobs = [_draw(view, number, indices, seed, epoch) for number, view in enumerate(views)]
    canvases = {job.side: Canvas(job.side) for job in jobs}
    scales = np.array([view.scale for view in views])
    uniforms = np.stack([job.box for job in jobs], axis=1)
    for number, image in enumerate(images):
        sizes = np.tile(image.shape[-2:], (len(jobs), 1))
        boxes = boxes_at_scales(scales, uniforms[number], sizes)
        pixels = image.permute(1, 2, 0).numpy()
        for job, box in zip(jobs, boxes, strict=True):
            _paint(job, number, crop_interleaved(pixels, box, job.view), canvases[job.side])
    outs = [torch.from_numpy(job.out) for job in jobs]
    return [out if job.view.patch_size else out[:, 0] for job, out in zip(jobs, outs, strict=True)]


@dataclass(frozen=True, kw_only=True)
class _Job:
    """One view of n images: what was drawn for it, and where it goes."""

    view: View
    box: np.ndarray  # uniforms (n, BOX_SLOTS)
    patches: np.ndarray  # uniforms (n, patch_slots(view))
    colours: Colours  # of n * patches pictures
    weights: list  # of their jitter's stages: (n * patches, 4 stages, 4 weights)
    side: int  # of a picture
    out: np.ndarray  # float32 (n, patches, 3, side, side)


def _draw(view: View, number: int, indices: np.ndarray, seed: int, epoch: int) -> _Job:
    drawn = draw_view(view, number, indices, seed=seed, epoch=epoch)
    colours = draw_colours(view, drawn.colours)
    weights = blend_weights(colours, additive=view.brightness == "additive")
    side = view.patch_size or view.size
    pictures = view.patch_grid**2 if view.patch_size else 1
    return _Job(
        view=view,
        box=drawn.box,
        patches=drawn.patches,
        colours=colours,
        weights=weights.transpose(2, 0, 1).tolist(),
        side=side,
        out=torch.empty(len(indices), pictures, 3, side, side).numpy(),
    )


def _paint(job: _Job, number: int, crop: np.ndarray, canvas: Canvas) -> None:
    """Colour and normalise the pictures of image `number`'s crop, uint8 (size, size, 3)."""
    pictures = _patches(job, number, crop) if job.view.patch_size else [crop]
    for place, picture in enumerate(pictures):
        row = number * len(pictures) + place
        canvas.load(picture, flip=bool(job.colours.flip[row]))
        colour_picture(canvas, job.view, job.colours, row, job.weights[row])
        canvas.store(job.view.pixels, job.out[number, place])


def _patches(job: _Job, number: int, crop: np.ndarray) -> list[np.ndarray]:
    planes = torch.from_numpy(crop).permute(2, 0, 1)[None]
    patches = cut_patches(planes, job.view, job.patches[number : number + 1])[0]
    return list(patches.permute(0, 2, 3, 1).contiguous().numpy())


def colour_picture(
    canvas: Canvas, view: View, colours: Colours, row: int, weights: list[list[float]]
) -> None:
    """Every photometric operation after the flip but normalisation, in order.

    Args:
        canvas: Holds the picture.
        view: Says the threshold.
        colours: Parameters of a batch.
        row: The picture's place in it.
        weights: Its stages of the jitter out of `blend_weights`, (4 stages, 4 weights).
    """
    turns = float(colours.factors[row, HUE])
    for operation, stage in zip(colours.order[row].tolist(), weights, strict=True):
        if operation == HUE and turns:
            canvas.shift_hue(turns)
        elif stage != _NEUTRAL:
            factor, grey_share, mean_share, offset = stage
            if mean_share:
                offset += mean_share * canvas.mean_luma()
            canvas.blend(factor, grey_share, offset)
    if colours.adjust[row]:
        canvas.apply(lambda image: adjust(image, colours, np.array([row])))
    if colours.gray[row]:
        canvas.blend(0.0, 1.0, 0.0)
    if colours.sigma[row] > 0:
        canvas.blur(float(colours.sigma[row]))
    if colours.solarize[row]:
        canvas.apply(lambda image: solarize(image, view.solarize_threshold))


class Canvas:
    """A picture on its way through the operations, and room for the next one's result.

    The picture is `factor * pixels + grey_share * luma(pixels) + offset` in [0, 1]. Such maps
    compose, and blur and grey means pass through them; so they are only executed where a clamp can
    bite or an operation isn't linear, and the last one together with the normalisation.
    """

    def __init__(self, side: int) -> None:
        # Torch's tensors are aligned, which numpy doesn't promise: bits may depend on it.
        self._bytes = torch.empty(side, side, 3, dtype=torch.uint8).numpy()
        self._pixels, self._spare = (torch.empty(side, side, 3).numpy() for _ in range(2))
        self._map = (1.0, 0.0, 0.0)

    def load(self, picture: np.ndarray, *, flip: bool) -> None:
        """Start with a picture: uint8 (side, side, 3)."""
        np.copyto(self._pixels, cv2.flip(picture, 1, dst=self._bytes) if flip else picture)
        self._map = (1 / 255, 0.0, 0.0)

    def mean_luma(self) -> float:
        """Mean grey value in [0, 1]."""
        channels = cv2.mean(self._pixels)[:3]  # the fourth is OpenCV's, of no channel
        mean = sum(weight * channel for weight, channel in zip(LUMA, channels, strict=True))
        factor, grey_share, offset = self._map
        return factor * mean + _LUMA_OF_WHITE * (grey_share * mean + offset)

    def blend(self, factor: float, grey_share: float, offset: float) -> None:
        """`factor * picture + grey_share * luma + offset`, clamped to [0, 1]."""
        inner_factor, inner_share, inner_offset = self._map
        self._map = (
            factor * inner_factor,
            factor * inner_share + grey_share * (inner_factor + _LUMA_OF_WHITE * inner_share),
            (factor + _LUMA_OF_WHITE * grey_share) * inner_offset + offset,
        )
        # The bounds of the result, as each of its terms lies between 0 and its weight.
        if offset + min(grey_share, 0) < 0:
            self._execute()
            cv2.threshold(self._pixels, 0, 0, cv2.THRESH_TOZERO, dst=self._pixels)
        if offset + factor + max(grey_share, 0) > 1:
            self._execute()
            cv2.threshold(self._pixels, 1, 0, cv2.THRESH_TRUNC, dst=self._pixels)

    def _execute(self) -> None:
        factor, grey_share, offset = self._map
        if self._map == (1.0, 0.0, 0.0):
            return
        if grey_share:
            cv2.transform(self._pixels, self._matrix(RAW_PIXELS), dst=self._spare)
        else:
            cv2.addWeighted(self._pixels, factor, self._pixels, 0, offset, dst=self._spare)
        self._swap()
        self._map = (1.0, 0.0, 0.0)

    def _matrix(self, pixels: Pixels) -> np.ndarray:
        """The map and then a normalisation: float32 (3, 4)."""
        factor, grey_share, offset = self._map
        rows = []
        for channel, (mean, std) in enumerate(zip(pixels.mean, pixels.std, strict=True)):
            row = [grey_share * weight / std for weight in LUMA]
            row[channel] += factor / std
            rows.append([*row, (offset - mean) / std])
        return np.array(rows, np.float32)

    def _swap(self) -> None:
        self._pixels, self._spare = self._spare, self._pixels

    def shift_hue(self, turns: float) -> None:
        """Rotate the hue in HSV space by `turns`; value and saturation stay."""
        if self._map[1] or self._map[2]:  # a mere factor leaves the hue alone
            self._execute()
        cv2.cvtColor(self._pixels, cv2.COLOR_RGB2HSV, dst=self._spare)
        hue = self._spare[..., 0]
        # In degrees; OpenCV's way back takes hues above a turn, its SIMD code none below 0.
        np.add(hue, np.float32(360 * (turns % 1)), out=hue)
        cv2.cvtColor(self._spare, cv2.COLOR_HSV2RGB, dst=self._pixels)

    def blur(self, sigma: float) -> None:
        """Separable Gaussian with reflected borders, cut at 3 sigma (pixels)."""
        side = 2 * max(math.ceil(3 * sigma), 1) + 1
        cv2.GaussianBlur(self._pixels, (side, side), sigma, dst=self._spare)
        self._swap()

    def apply(self, operation: Callable[[Tensor], Tensor]) -> None:
        """An operation of `photometrics.py` on a batch of this one picture in [0, 1]."""
        self._execute()
        picture = torch.from_numpy(self._pixels).permute(2, 0, 1)[None]
        np.copyto(self._spare, operation(picture)[0].permute(1, 2, 0).numpy())
        self._swap()

    def store(self, pixels: Pixels, out: np.ndarray) -> None:
        """Normalise into `out`, float32 (3, side, side)."""
        matrix = self._matrix(pixels)
        for channel in range(3):
            cv2.transform(self._pixels, matrix[channel : channel + 1], dst=out[channel])
