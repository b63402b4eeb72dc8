"""Files that appear whole or not at all, and arrays that know when they are damaged."""

from __future__ import annotations

import hashlib
import os
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np

_DIGEST_BYTES = 32


def cache_folder() -> Path:
    """$XDG_CACHE_HOME/ssl-reproduce, by default ~/.cache/ssl-reproduce."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "ssl-reproduce"


@contextmanager
def written_atomically(path: Path) -> Iterator[BinaryIO]:
    """A file to write and read that takes the place of `path` when the block ends well.

    Readers see the old content or the new one, on NFS and after a crash too; when the block
    raises, the old one stays and nothing is left behind.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}.partial")
    try:
        with partial.open("w+b") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def write_atomically(path: Path, content: bytes | str) -> None:
    """Write a whole file in one step (see `written_atomically`)."""
    with written_atomically(path) as file:
        file.write(content.encode() if isinstance(content, str) else content)


def save_array(path: Path, array: np.ndarray) -> None:
    """Write an ordinary .npy in one step, with the SHA-256 of its bytes appended."""
    with written_atomically(path) as file:
        np.save(file, array, allow_pickle=False)
        file.flush()
        content = np.memmap(file.name, dtype=np.uint8, mode="r")
        file.write(hashlib.sha256(content.data).digest())


def load_array(path: Path) -> np.ndarray | None:
    """An array that `save_array` wrote, memory-mapped; None if there is none or it is damaged.

    Concurrent jobs read a whole file or write the same one.
    """
    try:
        content = np.memmap(path, dtype=np.uint8, mode="r")
        digest = hashlib.sha256(content[:-_DIGEST_BYTES].data).digest()
        if digest == content[-_DIGEST_BYTES:].tobytes():
            # Copy-on-write, since torch wants arrays that may be written to.
            return np.load(path, mmap_mode="c", allow_pickle=False)
    except FileNotFoundError:
        return None
    except (OSError, ValueError):
        pass  # too short to hold a digest, or unreadable
    print(f"warning: {path} is damaged and will be made again", file=sys.stderr)
    return None
