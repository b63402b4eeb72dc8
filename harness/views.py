"""Augmentations as data: a View says how one crop of an image is drawn, `augment.py` draws it.

The named recipes are table 1.0 of the papers' released code: operations always run in the order
crop (and patches), flip, jitter, adjust, gray, blur, solarize, normalise.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

Triple = tuple[float, float, float]
Interpolation = Literal["bicubic", "bilinear"]


@dataclass(frozen=True, kw_only=True)
class Pixels:
    """How pixels in [0, 1] are normalised for a trunk: (x - mean) / std, channel by channel."""

    mean: Triple = (0.485, 0.456, 0.406)  # of ImageNet's R, G, B
    std: Triple = (0.229, 0.224, 0.225)


IMAGENET_PIXELS = Pixels()
SWAV_PIXELS = Pixels(std=(0.228, 0.224, 0.225))  # .228 in SwAV's code: its checkpoints expect it
RAW_PIXELS = Pixels(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))  # SimCLR


@dataclass(frozen=True, kw_only=True)
class View:
    """How one random view of an image is drawn."""

    size: int  # side of the square crop, pixels
    scale: tuple[float, float] = (0.08, 1.0)  # crop area, share of the image
    interpolation: Interpolation = "bicubic"  # antialiased
    flip_p: float = 0.5  # horizontal flip
    jitter: tuple[float, float, float, float] = (0.4, 0.4, 0.2, 0.1)  # brightness … hue
    jitter_p: float = 0.8
    brightness: Literal["multiplicative", "additive"] = "multiplicative"
    adjust_p: float = 0.0  # posterize, sharpen, solarize, stretch the contrast: all or none (VISSL)
    gray_p: float = 0.2
    blur_p: float = 0.0
    blur_sigma: tuple[float, float] = (0.1, 2.0)  # pixels
    solarize_p: float = 0.0
    solarize_threshold: float = 128 / 255
    patch_grid: int = 1  # cells per side that the crop is cut into
    patch_size: int | None = None  # side of the patch out of each cell, pixels; None: no patches
    pixels: Pixels = IMAGENET_PIXELS


@dataclass(frozen=True, kw_only=True)
class CenterCrop:
    """The deterministic transform of an evaluation: resize the shorter side, crop the centre.

    How pixels are normalised belongs to the trunk (`Backbone.pixels`), not to the protocol.
    """

    resize: int = 256  # shorter side, pixels
    size: int = 224  # side of the square crop, pixels
    interpolation: Interpolation = "bicubic"
    squash: bool = False  # resize all of the image to the square, no crop; resize=0: directly


# What the field trains and evaluates heads with. Torchvision's RandomResizedCrop is bilinear.
CROP_AND_FLIP = View(size=224, interpolation="bilinear", jitter_p=0.0, gray_p=0.0)  # scale .08-1
BICUBIC = CenterCrop()  # 256/224
BILINEAR = CenterCrop(interpolation="bilinear")
# imsvd d387689, CIFAR-10 linear evaluation: a crop of 8 % of a 32 px image shows next to nothing.
SMALL_SCALE_CROP = (0.8, 1.0)

# Barlow Twins, CorInfoMax and VICReg's code, after BYOL. VICReg's paper symmetrises it instead.
_A = View(size=224)
ASYMMETRIC = (replace(_A, blur_p=1.0), replace(_A, blur_p=0.1, solarize_p=0.2))
# BYOL's own code adds to the brightness and solarizes floats.
BYOL = tuple(replace(view, brightness="additive", solarize_threshold=0.5) for view in ASYMMETRIC)
# IMSVD's code interpolates bilinearly (bicubic is commented out there).
IMSVD = tuple(replace(view, interpolation="bilinear") for view in ASYMMETRIC)
VICREG_PAPER = (replace(_A, blur_p=0.5, solarize_p=0.1),) * 2


def dino(
    *, global_scale: tuple[float, float], local_scale: tuple[float, float], local_crops: int
) -> tuple[View, ...]:
    """DINO's multi-crop: two 224 px global views, then `local_crops` 96 px local ones."""
    first, second = (replace(view, scale=global_scale) for view in ASYMMETRIC)
    local = View(size=96, scale=local_scale, blur_p=0.5)
    return (first, second, *(local,) * local_crops)


DINO_DEFAULT = dino(global_scale=(0.4, 1.0), local_scale=(0.05, 0.4), local_crops=8)
DINO_VIT = dino(global_scale=(0.25, 1.0), local_scale=(0.05, 0.25), local_crops=10)
DINO_RESNET = dino(global_scale=(0.14, 1.0), local_scale=(0.05, 0.14), local_crops=6)

MOCO_V2 = (
    View(
        size=224,
        scale=(0.2, 1.0),
        interpolation="bilinear",
        jitter=(0.4, 0.4, 0.4, 0.1),
        blur_p=0.5,
    ),
) * 2

_STRONG, _WEAKER = (0.8, 0.8, 0.8, 0.2), (0.4, 0.4, 0.4, 0.1)
# v1 adds to the brightness, v2 multiplies.
_SIMCLR = View(size=224, jitter=_STRONG, blur_p=0.5, pixels=RAW_PIXELS)
SIMCLR_V2 = (_SIMCLR,) * 2
SIMCLR_V1 = (replace(_SIMCLR, brightness="additive"),) * 2

_SWAV = View(
    size=224,
    scale=(0.08, 1.0),
    interpolation="bilinear",
    jitter=_STRONG,
    blur_p=0.5,
    pixels=SWAV_PIXELS,
)
SWAV_TWO_CROPS = (_SWAV,) * 2
SWAV = (replace(_SWAV, scale=(0.14, 1.0)),) * 2 + (replace(_SWAV, size=96, scale=(0.05, 0.14)),) * 6

NPID = (
    View(
        size=224,
        scale=(0.2, 1.0),
        interpolation="bilinear",
        jitter=(0.4, 0.4, 0.4, 0.4),
        jitter_p=1.0,
    ),
)

# VISSL's jigsaw PIRL: an image view, and nine shuffled patches with colours of their own.
_PIRL = View(
    size=224,
    interpolation="bilinear",
    jitter=(0.4, 0.4, 0.4, 0.2),
    jitter_p=1.0,
    adjust_p=0.66,
)
PIRL = (_PIRL, replace(_PIRL, size=255, scale=(0.6, 1.0), patch_grid=3, patch_size=64))


SMALLEST_AREA = 0.2  # of a crop of a 32 px image, as IMSVD's CIFAR-10 recipe has it


def shrink_views(views: tuple[View, ...], sizes: dict[int, int]) -> tuple[View, ...]:
    """The same recipe for images of about 32 px.

    Sides of crops and patches are mapped by `sizes`. No crop is less than a fifth of the image: a
    twentieth of a CIFAR image is 7 px wide. There is no blur: 2 pixels of it on 32 remove what 14
    would on 224, and the CIFAR recipes of the field have none. SimCLR's colours are jittered half
    as much, as its own CIFAR-10 recipe has it (appendix B.9): small networks learn nothing else.
    """
    return tuple(
        replace(
            view,
            size=sizes[view.size],
            patch_size=sizes[view.patch_size] if view.patch_size else None,
            scale=(max(view.scale[0], SMALLEST_AREA), max(view.scale[1], 2 * SMALLEST_AREA)),
            jitter=_WEAKER if view.jitter == _STRONG else view.jitter,
            blur_p=0.0,
        )
        for view in views
    )
