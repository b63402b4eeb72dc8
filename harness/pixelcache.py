"""Decoded pixels of small image folders, kept on disk so that a job need not decode them again."""

from __future__ import annotations

import sys

import numpy as np

from harness.errors import UserError
from harness.files import cache_folder, load_array, save_array
from harness.folders import Listing, decode


def cached_pixels(listing: Listing, *, side: int) -> np.ndarray:
    """All images of a split, decoded once and memory-mapped from then on.

    The file is named after the split's checksum; a damaged one is noticed and replaced.

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
    pixels = load_array(path)
    if pixels is None or pixels.shape != shape:
        pixels = _decode_all(listing, shape)
        try:
            save_array(path, pixels)
        except OSError as error:
            print(f"warning: {path} is not written ({error.strerror})", file=sys.stderr)
    return pixels


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
