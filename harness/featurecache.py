"""Features on disk, so that one extraction serves many protocols and killed ones go on.

A split's features are cut into pieces of `PIECE` images, each file one process's share of a piece.
Files are named by what was computed and written by rename: concurrent jobs write the same bytes.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from harness.errors import UserError
from harness.files import cache_folder, load_array, save_array

PIECE = 16_384  # images: 134 MB of ResNet-50's features
_DEFAULT_GB = 50.0


def folder() -> Path:
    """Where features are kept: `features/` in the cache folder."""
    return cache_folder() / "features"


def limit_bytes() -> int:
    """Most bytes that features may take: FEATURE_CACHE_GB (default 50; 0 keeps nothing).

    Raises:
        UserError: The variable is not a number.
    """
    value = os.environ.get("FEATURE_CACHE_GB", str(_DEFAULT_GB))
    try:
        gigabytes = float(value)
    except ValueError:
        gigabytes = -1.0
    if not 0 <= gigabytes < float("inf"):
        raise UserError(
            f"FEATURE_CACHE_GB={value} is not a number of gigabytes; set it to 50, or to 0 to keep "
            "no features"
        )
    return int(gigabytes * 1e9)


@dataclass(frozen=True)
class FeatureCache:
    """The pieces of one split's features."""

    key: str  # fingerprint of weights, reading, transform, pixels, data and device

    def load(self, piece: int, share: slice) -> np.ndarray | None:
        """Rows `share` of a piece (a process's), whatever number of processes wrote it."""
        from harness import dist

        if not limit_bytes():
            return None
        own = self._path(piece, dist.rank(), dist.world())
        if (rows := load_array(own)) is not None:
            return rows
        for world in self._worlds(piece):
            parts = [load_array(self._path(piece, rank, world)) for rank in range(world)]
            parts = [part for part in parts if part is not None]
            if len(parts) == world:
                whole = np.empty((sum(map(len, parts)), parts[0].shape[1]), parts[0].dtype)
                for rank, part in enumerate(parts):
                    whole[rank::world] = part
                return whole[share]
        return None

    def save(self, piece: int, rows: np.ndarray) -> None:
        """Keep this process's share of a piece, if the limit allows; a full disk does no harm."""
        from harness import dist
        from harness.progress import say

        if _size(self._folder) + rows.nbytes * dist.world() > limit_bytes():
            return
        try:
            save_array(self._path(piece, dist.rank(), dist.world()), rows)
        except OSError as error:
            say(f"warning: features are not kept in {folder()} ({error.strerror})")

    def touch(self) -> None:
        """Mark as just used, and remove what was longest unused beyond the limit."""
        from harness import dist

        if self._folder.is_dir():
            os.utime(self._folder)
        if dist.is_main():
            _evict(limit_bytes())

    @property
    def _folder(self) -> Path:
        return folder() / self.key

    def _path(self, piece: int, rank: int, world: int) -> Path:
        return self._folder / f"{piece:05d}-{rank}of{world}.npy"

    def _worlds(self, piece: int) -> list[int]:
        """Numbers of processes of which the first one left its share."""
        found = self._folder.glob(f"{piece:05d}-0of*.npy")
        return sorted(int(path.stem.rpartition("of")[2]) for path in found)


def _size(entry: Path) -> int:
    return sum(path.stat().st_size for path in entry.glob("*.npy"))


def _entries() -> list[Path]:
    """Folders of features, the longest unused first."""
    if not folder().is_dir():
        return []
    return sorted((p for p in folder().iterdir() if p.is_dir()), key=lambda p: p.stat().st_mtime)


def _evict(limit: int) -> int:
    """Remove whole entries until at most `limit` bytes are left; returns the bytes freed."""
    sizes = {entry: _size(entry) for entry in _entries()}
    total, freed = sum(sizes.values()), 0
    for entry, size in sizes.items():
        if total - freed <= limit:
            break
        # A job that still reads them keeps its maps: the files go when it ends.
        shutil.rmtree(entry, ignore_errors=True)
        freed += size
    return freed


def clean() -> int:
    """Remove all kept features; returns the bytes freed."""
    return _evict(-1)
