"""Decoded pixels of small image folders, kept on disk so that a job need not decode them again."""

from __future__ import annotations

import hashlib
import os
import sys
from pathlib import Path

import numpy as np

from harness.errors import UserError
from harness.files import written_atomically
from harness.folders import Listing, decode

_DIGEST_BYTES = 32


def cache_folder() -> Path:
    """$XDG_CACHE_HOME/ssl-reproduce, by default ~/.cache/ssl-reproduce."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "ssl-reproduce"


def cached_pixels(listing: Listing, *, side: int) -> np.ndarray:
    """All images of a split, decoded once and memory-mapped from then on.

    The file is an ordinary .npy, named after the split's checksum, with the SHA-256 of its bytes
    appended: a damaged one is noticed and replaced. It is written by rename, so that concurrent
    jobs read a whole file or write the same one.

    Args:
        listing: The split.
        side: Height and width that every image has.

    Returns:
        uint8 (n, 3, side, side).

    Raises:
        UserError: An image cannot be decoded, or is of another size.
    """
    path = cache_folder() / f"pixels-{listing.checksum}.npy"
    shape = (len(listing.labels), 3, side, side)
    pixels = _read(path, shape)
    if pixels is None:
        pixels = _decode_all(listing, shape)
        try:
            _write(path, pixels)
        except OSError as error:
            print(f"warning: {path} is not written ({error.strerror})", file=sys.stderr)
    return pixels


def _read(path: Path, shape: tuple[int, ...]) -> np.ndarray | None:
    """The cached pixels, or None if there are none or they are damaged."""
    try:
        content = np.memmap(path, dtype=np.uint8, mode="r")
        digest = hashlib.sha256(content[:-_DIGEST_BYTES].data).digest()
        if digest == content[-_DIGEST_BYTES:].tobytes():
            # Copy-on-write, since torch wants arrays that may be written to.
            pixels = np.load(path, mmap_mode="c", allow_pickle=False)
            return pixels if pixels.shape == shape else None
    except FileNotFoundError:
        return None
    except (OSError, ValueError):
        pass  # too short to hold a digest, or unreadable
    print(f"warning: {path} is damaged and will be made again", file=sys.stderr)
    return None


def _write(path: Path, pixels: np.ndarray) -> None:
    with written_atomically(path) as file:
        np.save(file, pixels, allow_pickle=False)
        file.flush()
        content = np.memmap(file.name, dtype=np.uint8, mode="r")
        file.write(hashlib.sha256(content.data).digest())


def _decode_all(listing: Listing, shape: tuple[int, ...]) -> np.ndarray:
    pixels = np.empty(shape, dtype=np.uint8)
    for index in range(len(pixels)):
        image = decode(listing.path(index))
        if tuple(image.shape) != shape[1:]:
            raise UserError(
                f"{listing.path(index)} is {image.shape[2]}x{image.shape[1]} pixels and every image"
                f" of this set is {shape[3]}x{shape[2]}; restore the file."
            )
        pixels[index] = image.numpy()
    return pixels
