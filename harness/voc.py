"""PASCAL VOC 2007 as multi-label classification: which classes each image shows.

Read from the lists `ImageSets/Main/<class>_<part>.txt` of the devkit, as VISSL does
(extra_scripts/datasets/create_voc_data_files.py @09270ed): one line per image, 1 where it shows the
class, 0 where it shows only objects marked difficult, -1 where it shows none.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import numpy as np

from harness.errors import UserError
from harness.folders import Listing

_PARTS = {"train": "trainval", "val": "test"}
_PLACES = ("VOCdevkit/VOC2007", "VOC2007", "voc07")
_ARCHIVES = {"train": "VOCtrainval_06-Nov-2007.tar", "val": "VOCtest_06-Nov-2007.tar"}
_VALUES = {"1": 1, "0": 0, "-1": -1}


def is_voc(folder: Path) -> bool:
    """Whether a folder is laid out as VOC's devkit is."""
    return (folder / "ImageSets" / "Main").is_dir()


def find_voc07(root: Path) -> Path:
    """The folder of VOC2007 below DATA_ROOT, or DATA_ROOT itself.

    Raises:
        UserError: It is in none of the usual places.
    """
    for folder in (*(root / place for place in _PLACES), root):
        if is_voc(folder):
            return folder
    raise UserError(
        f"data set 'voc07' needs the folder ImageSets/Main in {', '.join(_PLACES)} below {root} and"
        f" it is not there; unpack {' and '.join(_ARCHIVES.values())} of host.robots.ox.ac.uk/"
        "pascal/VOC there."
    )


def list_voc(folder: Path, split: str) -> Listing:
    """The images of trainval (split "train") or test ("val"), sorted by name.

    Returns:
        `labels` is int64 (n, classes): 1 shown, 0 only difficult objects, -1 absent; the classes
        are in alphabetical order. `checksum` covers names, sizes and labels.

    Raises:
        UserError: No lists, a list that isn't as described, or an image without file.
    """
    part = _PARTS[split]
    lists = sorted((folder / "ImageSets" / "Main").glob(f"*_{part}.txt"))
    if not lists:
        raise UserError(
            f"{folder / 'ImageSets' / 'Main'} has no lists <class>_{part}.txt; unpack"
            f" {_ARCHIVES[split]} there."
        )
    columns = [_read_list(path) for path in lists]
    names = sorted(columns[0])
    for path, column in zip(lists, columns, strict=True):
        if column.keys() != columns[0].keys():
            odd = sorted(column.keys() ^ columns[0].keys())[0]
            raise UserError(
                f"{path} and {lists[0]} do not list the same images ({odd}); unpack"
                f" {_ARCHIVES[split]} again."
            )
    sizes = _sizes(folder / "JPEGImages", names)
    labels = np.array([[column[name] for column in columns] for name in names], dtype=np.int64)
    classes = [path.name.removesuffix(f"_{part}.txt") for path in lists]
    digest = hashlib.sha256("\0".join(classes).encode())
    for name, size, row in zip(names, sizes, labels.tolist(), strict=True):
        digest.update(f"{name}\0{size}\0{row}\n".encode())
    return Listing(
        folder=folder / "JPEGImages",
        paths=np.array([os.fsencode(f"{name}.jpg") for name in names]),
        labels=labels,
        classes=classes,
        checksum=digest.hexdigest(),
    )


def _read_list(path: Path) -> dict[str, int]:
    """Label by image name."""
    found = {}
    for number, line in enumerate(path.read_text().splitlines(), start=1):
        words = line.split()
        if not words:
            continue
        if len(words) != 2 or words[1] not in _VALUES:
            raise UserError(
                f"line {number} of {path} is {line!r}, not an image's name and -1, 0 or 1; restore"
                " the file."
            )
        found[words[0]] = _VALUES[words[1]]
    if not found:
        raise UserError(f"{path} lists no images; restore the file.")
    return found


def _sizes(folder: Path, names: list[str]) -> list[int]:
    """Bytes of each image's file."""
    present = {}
    if folder.is_dir():
        with os.scandir(folder) as entries:
            present = {entry.name: entry.stat().st_size for entry in entries}
    missing = [f"{name}.jpg" for name in names if f"{name}.jpg" not in present]
    if missing:
        raise UserError(
            f"{folder} lacks {len(missing)} of the {len(names)} images listed, {missing[0]} first;"
            " unpack the data set again."
        )
    return [present[f"{name}.jpg"] for name in names]
