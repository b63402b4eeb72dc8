"""Data sets as folders of images: listing, checksum, decoding."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from harness.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

try:
    import simplejpeg
except ModuleNotFoundError:
    simplejpeg = None

SUFFIXES = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
_JPEG_START = b"\xff\xd8\xff"


@dataclass(frozen=True, kw_only=True, eq=False)
class Listing:
    """The image files of one split, in sorted order."""

    folder: Path  # of the split
    paths: np.ndarray  # relative, encoded: bytes (n,); a million Python objects would be copied
    # into every worker as their reference counts change
    labels: np.ndarray  # int64 (n,)
    classes: list[str]
    checksum: str  # SHA-256, hex, over the sorted (relative path, size in bytes)

    def path(self, index: int) -> Path:
        """Where image `index` lies."""
        return self.folder / os.fsdecode(bytes(self.paths[index]))


def list_split(folder: Path, split: str) -> Listing:
    """The images of `folder/split/<class>/**`; the classes are the folders of `folder/train`.

    Raises:
        UserError: No class folders, no images, or classes that the train split does not have.
    """
    root = folder / split
    classes = _class_names(folder / "train")
    unknown = sorted(set(_class_names(root)) - set(classes))
    if unknown:
        raise UserError(
            f"{root} has the class {unknown[0]!r}, which {folder / 'train'} does not have; a"
            " split's folders are the classes of train/."
        )
    files = sorted(found for name in classes for found in _files(root, name))
    if not files:
        raise UserError(f"{root} holds no images in its class folders; unpack the data set again.")
    digest = hashlib.sha256()
    for relative, size in files:
        digest.update(f"{relative}\0{size}\n".encode(errors="surrogateescape"))
    numbers = {name: number for number, name in enumerate(classes)}
    return Listing(
        folder=root,
        paths=np.array([os.fsencode(relative) for relative, _ in files]),
        labels=np.array([numbers[relative.partition("/")[0]] for relative, _ in files]),
        classes=classes,
        checksum=digest.hexdigest(),
    )


def _class_names(root: Path) -> list[str]:
    with os.scandir(root) as entries:
        found = sorted(entry.name for entry in entries if entry.is_dir())
    if not found:
        raise UserError(
            f"{root} has no class folders; put its images into {root}/<class>/ (ImageNet's val/"
            " comes flat and is sorted by a script such as valprep.sh)."
        )
    return found


def _files(root: Path, name: str) -> list[tuple[str, int]]:
    """Relative path (with forward slashes) and size of each image below a class folder."""
    found = []
    pending = [name]
    while pending:
        current = pending.pop()
        if not (root / current).is_dir():
            continue
        with os.scandir(root / current) as entries:
            for entry in entries:
                relative = f"{current}/{entry.name}"
                if entry.is_dir():
                    pending.append(relative)
                elif entry.name.lower().endswith(SUFFIXES):
                    found.append((relative, entry.stat().st_size))
    return found


def decode(path: Path) -> Tensor:
    """Decode an image of any kind to RGB: uint8 (3, H, W); see `decode_pixels`.

    Raises:
        UserError: The file is missing or cannot be decoded.
    """
    import torch

    return torch.from_numpy(decode_pixels(path)).permute(2, 0, 1)


def decode_pixels(path: Path) -> np.ndarray:
    """Decode an image of any kind to RGB: uint8 (H, W, 3), without torch.

    By content, not by name: ImageNet has a PNG called .JPEG, and grayscale and CMYK JPEGs. EXIF
    orientation is ignored, as in the field's other loaders. The pixels are Pillow's to the last
    bit; simplejpeg, where it is installed, only delivers them in about half the time.

    Raises:
        UserError: The file is missing or cannot be decoded.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); restore the file.") from error
    pixels = _decode_jpeg(content) if content.startswith(_JPEG_START) else None
    return _decode_with_pillow(path, content) if pixels is None else pixels


def _decode_jpeg(content: bytes) -> np.ndarray | None:
    """uint8 (H, W, 3), or None for files that only Pillow reads or reads differently."""
    if simplejpeg is None:
        return None
    try:
        if simplejpeg.decode_jpeg_header(content)[2] in ("CMYK", "YCCK"):
            return None
        return simplejpeg.decode_jpeg(content, "RGB")
    except ValueError:
        return None


def _decode_with_pillow(path: Path, content: bytes) -> np.ndarray:
    from PIL import Image

    try:
        with Image.open(BytesIO(content)) as image:
            return np.array(image.convert("RGB"))
    except (OSError, SyntaxError, ValueError) as error:
        raise UserError(
            f"{path} is not a readable image ({error}); restore the file or remove it."
        ) from error
