"""Data sets by name: `imagenet`, `cifar10`, `mnist5k`, `voc07`, …, and folders laid out alike.

The only reader of DATA_ROOT. A data set is a name in a recipe; where it lies is the machine's
business.
"""

from __future__ import annotations

import difflib
import hashlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from harness import bundles, draws, scenes, voc
from harness.errors import UserError
from harness.folders import Listing, decode, list_split
from harness.pixelcache import cached_pixels

if TYPE_CHECKING:
    from torch import Tensor

Split = Literal["train", "val"]
NAMES = ("imagenet", "imagenet100", "cifar10", "mnist5k", scenes.NAME, "places205", "voc07")
_HOW_TO_GET = {
    "imagenet": (
        "register at image-net.org, unpack ILSVRC2012 there as train/<wnid>/ and val/<wnid>/"
    ),
    # No semicolon: what is behind the last one of a message is the way out.
    "imagenet100": (
        "put imagenet100.txt of the GitHub repository HobbitLong/CMC into that folder and, in it,"
        " link the 100 classes that the file lists from imagenet/ beside it: mkdir train val &&"
        " xargs -I@ ln -s ../../imagenet/train/@ train/ <imagenet100.txt &&"
        " xargs -I@ ln -s ../../imagenet/val/@ val/ <imagenet100.txt"
    ),
    "places205": (
        "register at places.csail.mit.edu/user, and sort the images of its train and val lists"
        " into train/<category>/ and val/<category>/ there"
    ),
    "cifar10": (
        "download cifar-10-python.tar.gz or cifar-10-binary.tar.gz from"
        " cs.toronto.edu/~kriz/cifar.html and unpack it there"
    ),
}


@dataclass(frozen=True, kw_only=True, eq=False)
class ImageSet:
    """One split of a data set.

    Attributes:
        name: The data set's name, or the folder it was given as.
        split: "train" or "val".
        classes: Class names; a label is a position in this list.
        labels: int64 (n,); of VOC (n, classes), 1 shown, 0 only difficult objects, -1 absent.
        checksum: SHA-256, hex, of the split. For sets of files: of the sorted relative paths and
            sizes in bytes, since reading 140 GB per job is out of the question. For sets in
            one file: of all pixels, then all labels.
        images: uint8 (n, 3, H, W) when the split lives in memory, else None.
    """

    name: str
    split: str
    classes: list[str]
    labels: np.ndarray
    checksum: str
    images: Tensor | None = field(default=None, repr=False)
    listing: Listing | None = field(default=None, repr=False)

    def __len__(self) -> int:
        """Number of images."""
        return len(self.labels)

    def load(self, index: int) -> Tensor:
        """One image as uint8 (3, H, W).

        Raises:
            UserError: The file cannot be decoded; it is named.
        """
        if self.images is not None:
            return self.images[index]
        assert self.listing is not None
        return decode(self.listing.path(index))

    def describe(self) -> dict[str, Any]:
        """What a record says of the split: checksum, number of images and of classes."""
        return {"checksum": self.checksum, "images": len(self), "classes": len(self.classes)}


def open_split(dataset: str, split: Split) -> ImageSet:
    """Open a split of a data set by its name.

    Args:
        dataset: `mnist5k` and `mnist5k-scenes` (bundled), `cifar10`, `imagenet`, `imagenet100`,
            `places205` or `voc07` (below DATA_ROOT), or a folder with `train/<class>/` and
            `val/<class>/` or with VOC's `ImageSets/Main`, by its path or by its name below
            DATA_ROOT. With `@10000` behind it, 10,000 images of train drawn once and for all; val
            stays whole. VOC's train is trainval, its val is test.
        split: "train" or "val".

    Raises:
        UserError: The data is missing or damaged; the text says what was looked for, where, and
            how to get it.
    """
    if split not in ("train", "val"):
        raise UserError(f"unknown split {split!r}: choose train or val.")
    openers: dict[str, Callable[[Split], ImageSet]] = {
        "mnist5k": _open_mnist5k,
        "cifar10": _open_cifar10,
        "imagenet": lambda part: _open_folder("imagenet", _find_named("imagenet"), part),
        "imagenet100": lambda part: _open_folder("imagenet100", _find_named("imagenet100"), part),
        "places205": lambda part: _open_folder("places205", _find_named("places205"), part),
        "voc07": lambda part: _open_folder("voc07", voc.find_voc07(_data_root("voc07")), part),
        scenes.NAME: lambda part: _open_folder(scenes.NAME, _find_named(scenes.NAME), part),
    }
    name, at, count = dataset.rpartition("@")
    if at and count.isdigit():
        return _first_drawn(open_split(name, split), int(count))
    if dataset in openers:
        return openers[dataset](split)
    return _open_folder(dataset, _find_folder(dataset), split)


def _first_drawn(data: ImageSet, count: int) -> ImageSet:
    """`count` images of a train split, the same for every seed; another split as it is."""
    if data.split != "train":
        return data
    if not 0 < count <= len(data):
        raise UserError(
            f"{data.name}@{count} asks for {count} images of a train split of {len(data)}; use"
            f" {data.name}@N with N from 1 to {len(data)}."
        )
    rows = draws.subset(0, "images of train", len(data), count)
    checksum = hashlib.sha256(f"{data.checksum}@{count}".encode()).hexdigest()
    return replace(
        data,
        name=f"{data.name}@{count}",
        labels=data.labels[rows],
        checksum=checksum,
        images=None if data.images is None else data.images[_tensor(rows)],
        listing=data.listing and replace(data.listing, paths=data.listing.paths[rows]),
    )


def _data_root(dataset: str) -> Path:
    value = os.environ.get("DATA_ROOT", "")
    if not value:
        raise UserError(
            f"data set {dataset!r} is looked for below the folder that the environment variable"
            f" DATA_ROOT names, and DATA_ROOT is not set; export DATA_ROOT=<folder of {dataset}/>."
        )
    root = Path(value).expanduser()
    if not root.is_dir():
        raise UserError(
            f"DATA_ROOT={value} is not a folder; set it to the folder that holds {dataset}/."
        )
    return root


def _is_split_folder(folder: Path) -> bool:
    return (folder / "train").is_dir() and (folder / "val").is_dir()


def find_folder(dataset: str, wanted: Sequence[str], advice: str) -> Path:
    """Folder of a data set that has its own layout, by its path or by its name below DATA_ROOT.

    The bundled scenes have one too.

    Args:
        dataset: The path or the name.
        wanted: What the folder has to hold, relative to it.
        advice: How to get the data set, a half sentence.

    Raises:
        UserError: No such folder, or a part is missing.
    """
    if dataset == scenes.NAME:
        return _find_named(dataset)
    given = Path(dataset).expanduser()
    places = [given]
    if not given.is_absolute() and (os.environ.get("DATA_ROOT") or not given.is_dir()):
        places.append(_data_root(dataset) / given)
    for folder in places:
        if all((folder / part).exists() for part in wanted):
            return folder
    raise UserError(
        f"data set {dataset!r} needs {' and '.join(wanted)}, and"
        f" {' and '.join(map(str, places))} has not both; {advice}."
    )


def locate(dataset: str) -> Path | None:
    """Folder that a data set's splits are read from; None for one that is no folder.

    Raises:
        UserError: It isn't there; the text says what was looked for, where, and how to get it.
    """
    name, at, count = dataset.rpartition("@")
    if at and count.isdigit():
        return locate(name)
    if dataset == "mnist5k":
        return None
    if dataset == "voc07":
        return voc.find_voc07(_data_root(dataset))
    if dataset == "cifar10":
        root = _data_root(dataset)
        places = (root / dataset, root)
        return next((p for p in places if bundles.has_cifar10(p)), None) or _find_named(dataset)
    return _find_named(dataset) if dataset in NAMES else _find_folder(dataset)


def list_folders(name: str, folder: Path | None) -> list[Path]:
    """Where lists of a data set's images are looked for: below DATA_ROOT and beside train/.

    Args:
        name: Of the data set.
        folder: Of its splits; None where it doesn't consist of files.
    """
    folders = [] if folder is None else [folder]
    if os.environ.get("DATA_ROOT"):
        root = _data_root(name)
        folders = [root / "imagenet_subsets", root / "imagenet", *folders]
    return list(dict.fromkeys(folders))


def _find_named(name: str) -> Path:
    if name == scenes.NAME:
        return scenes.folder()
    root = _data_root(name)
    # DATA_ROOT itself may be ImageNet's folder, and no other's.
    for folder in (root / name, *([root] if name == "imagenet" else [])):
        if _is_split_folder(folder):
            return folder
    raise UserError(
        f"data set {name!r} needs the folders train/ and val/ in {root / name} and they are not"
        f" there; {_HOW_TO_GET[name]}."
    )


def _find_folder(dataset: str) -> Path:
    given = Path(dataset).expanduser()
    places = [given]
    if os.environ.get("DATA_ROOT") and not given.is_absolute():
        places.append(_data_root(dataset) / given)
    for folder in places:
        if _is_split_folder(folder) or voc.is_voc(folder):
            return folder
    looked = " and ".join(str(place) for place in places)
    close = difflib.get_close_matches(dataset, NAMES, n=1)
    hint = f"did you mean {close[0]}?" if close else "give a folder that has both."
    raise UserError(
        f"unknown data set {dataset!r}: it is none of {', '.join(NAMES)}, and {looked} has no"
        f" folders train/ and val/; {hint}"
    )


def _open_folder(name: str, folder: Path, split: Split) -> ImageSet:
    listing = (voc.list_voc if voc.is_voc(folder) else list_split)(folder, split)
    return ImageSet(
        name=name,
        split=split,
        classes=listing.classes,
        labels=listing.labels,
        checksum=listing.checksum,
        listing=listing,
    )


def _open_cifar10(split: Split) -> ImageSet:
    root = _data_root("cifar10")
    for folder in (root / "cifar10", root):
        bundle = bundles.read_cifar10(folder, split)
        if bundle is not None:
            return _from_bundle("cifar10", split, bundle)
    folder = root / "cifar10"
    if not _is_split_folder(folder):
        raise UserError(
            f"data set 'cifar10' needs train/<class>/ and val/<class>/, cifar-10-batches-py/ or"
            f" cifar-10-batches-bin/ in {folder} and none is there; {_HOW_TO_GET['cifar10']}."
        )
    listing = list_split(folder, split)
    if listing.classes != list(bundles.CIFAR10_CLASSES):
        raise UserError(
            f"{folder / 'train'} has the classes {', '.join(listing.classes[:10])} and CIFAR-10 has"
            f" {', '.join(bundles.CIFAR10_CLASSES)}; {_HOW_TO_GET['cifar10']}."
        )
    pixels = cached_pixels(listing, side=32)
    return ImageSet(
        name="cifar10",
        split=split,
        classes=listing.classes,
        labels=listing.labels,
        checksum=listing.checksum,
        images=_tensor(pixels),
    )


def _tensor(array: np.ndarray) -> Tensor:
    import torch  # here, so that data sets can be looked for without it

    return torch.from_numpy(array)


def _open_mnist5k(split: Split) -> ImageSet:
    return _from_bundle("mnist5k", split, bundles.read_mnist5k(split))


def _from_bundle(name: str, split: Split, bundle: bundles.Bundle) -> ImageSet:
    return ImageSet(
        name=name,
        split=split,
        classes=list(bundle.classes),
        labels=bundle.labels,
        checksum=bundle.checksum(),
        images=_tensor(bundle.pixels),
    )
