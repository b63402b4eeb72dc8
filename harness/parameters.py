"""What a random view of an image is made of: its parameters, drawn from stateless uniforms."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from harness.crop import BOX_SLOTS, patch_slots
from harness.draws import uniforms
from harness.views import View

_COLOUR_SLOTS = 18
BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)  # operations of the jitter


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

    def part(self, rows: slice) -> Colours:
        """The parameters of some of the images."""
        return Colours(**{name: values[rows] for name, values in vars(self).items()})


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
    low[HUE], high = -strength[HUE], 1 + strength
    high[HUE] = strength[HUE]
    neutral = np.array([1.0, 1.0, 1.0, 0.0])
    if view.brightness == "additive":
        low[BRIGHTNESS], high[BRIGHTNESS] = -strength[BRIGHTNESS], strength[BRIGHTNESS]
        neutral[BRIGHTNESS] = 0.0
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
