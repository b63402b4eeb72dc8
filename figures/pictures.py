"""The images that figures show: a folder's, or some of a data set's val split."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from harness.crop import center_crop
from harness.data import open_split
from harness.errors import UserError
from harness.folders import SUFFIXES, decode
from harness.photometrics import normalize
from harness.views import CenterCrop, Pixels


def trained_on(recipes: Iterable[Mapping[str, Any] | None]) -> str:
    """Data set of the first run that names one; ImageNet for weights from elsewhere.

    Args:
        recipes: Resolved; None for weights from elsewhere.
    """
    return next((recipe["dataset"] for recipe in recipes if recipe), "imagenet")


def load_pictures(source: str, count: int, size: int) -> Tensor:
    """Up to `count` images, resized and cropped to `size` px as evaluations do.

    Args:
        source: A folder of image files, in any folders below it, of which the first by name are
            taken; or a data set by its name (see `harness.data`), of whose val split some at equal
            distances are.
        count: At least 1.
        size: Side in pixels.

    Returns:
        uint8 (n, 3, size, size).

    Raises:
        UserError: There are none, or one cannot be decoded.
    """
    if count < 1:
        raise UserError(f"a figure of {count} images shows nothing; ask for at least 1")
    folder = Path(source).expanduser()
    if folder.is_dir() and not (folder / "val").is_dir():
        paths = sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES)
        if not paths:
            raise UserError(f"{folder} holds no image files; give a folder of images or a data set")
        found = [decode(path) for path in paths[:count]]
    else:
        data = open_split(source, "val")
        rows = np.linspace(0, len(data), count, endpoint=False).astype(int)
        found = [data.load(row) for row in np.unique(rows).tolist()]
    # the share of the image that 224 of 256 px are
    transform = CenterCrop(resize=round(size * 256 / 224) if size >= 64 else size, size=size)
    return torch.stack([center_crop(image, transform) for image in found])


def for_trunk(pictures: Tensor, pixels: Pixels, device: torch.device) -> Tensor:
    """uint8 pictures (n, 3, H, W) as a trunk takes them: float32, normalised, on its device."""
    return normalize(pictures.to(device).float().div_(255), pixels)


def to_show(pictures: Tensor) -> np.ndarray:
    """Pictures (n, 3, H, W) as matplotlib takes them: (n, H, W, 3)."""
    return pictures.permute(0, 2, 3, 1).cpu().numpy()
