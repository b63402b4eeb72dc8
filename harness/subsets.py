"""Which train images are labelled: SimCLR's lists of ImageNet, or class-balanced draws."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from harness import draws
from harness.data import ImageSet, list_folders
from harness.errors import UserError

SubsetKind = Literal["auto", "simclr", "balanced"]


class _List(NamedTuple):
    name: str
    sha256: str


# google-research/simclr @383d414, imagenet_subsets/: 12,811 and 128,116 images; the first is a
# subset of the second.
SIMCLR_LISTS = {
    1.0: _List("1percent.txt", "71e82a48ba78252683ae334c4d019ebd5c6e855b9599c1389fbe83eb9549cf17"),
    10.0: _List(
        "10percent.txt", "6d09de11e7bdaf5b1f3b1f249b6183695f97310cdd20f0c03e7235b6b9392091"
    ),
}
_HOW_TO_GET = (
    "copy it as it is from the GitHub repository google-research/simclr, folder imagenet_subsets"
)


@dataclass(frozen=True, kw_only=True, eq=False)
class Subset:
    """The labelled images of a train split."""

    indices: np.ndarray  # int64, sorted: positions in the split
    classes: int  # how many occur
    source: str  # "simclr 1percent.txt" or "balanced"
    checksum: str  # SHA-256, hex: of SimCLR's file, or of the drawn positions, one a line

    def describe(self) -> dict[str, Any]:
        """What a record says of the subset."""
        return {
            "checksum": self.checksum,
            "images": len(self.indices),
            "classes": self.classes,
            "list": self.source,
        }


def labelled_subset(data: ImageSet, percent: float, kind: SubsetKind, seed: int) -> Subset:
    """The labelled images of a train split.

    Args:
        data: A train split.
        percent: How many of its images are labelled.
        kind: "simclr" takes SimCLR's list, "balanced" draws; "auto" takes the list for the data
            set imagenet and draws for others.
        seed: Of the draw; a list is what it is.

    Raises:
        UserError: No such list, another file under its name, or images that are not there.
    """
    if not 0 < percent <= 100:
        raise UserError(f"percent={percent:g} of the train images can't be labelled; use 1 or 10")
    if kind == "simclr" or (kind == "auto" and data.name == "imagenet"):
        return _simclr(data, percent)
    indices = balanced(data.labels, percent, seed)
    lines = "".join(f"{index}\n" for index in indices)
    return _subset(data, indices, "balanced", hashlib.sha256(lines.encode()).hexdigest())


def _subset(data: ImageSet, indices: np.ndarray, source: str, checksum: str) -> Subset:
    classes = len(np.unique(data.labels[indices]))
    return Subset(indices=indices, classes=classes, source=source, checksum=checksum)


def balanced(labels: np.ndarray, percent: float, seed: int) -> np.ndarray:
    """A share of a split with as many images of each class, give or take one.

    Every class gives at least one image; one that has too few gives all it has and the others
    more. With the same seed, a smaller share is part of a larger one.

    Args:
        labels: Classes (n,) of the split.
        percent: Of the split.
        seed: Different seeds draw independently.

    Returns:
        Positions, int64, sorted.
    """
    classes, sizes = np.unique(labels, return_counts=True)
    # Which classes give one more is a matter of the seed; a larger share only adds to them.
    order = draws.permutation(seed, 0, len(classes))
    counts = np.maximum(_even(sizes[order], round(len(labels) * percent / 100)), 1)
    chosen = []
    for label, count in zip(classes[order].tolist(), counts.tolist(), strict=True):
        members = np.flatnonzero(labels == label)
        tag = f"labelled images of class {label}"
        chosen.append(members[draws.subset(seed, tag, len(members), count)])
    return np.sort(np.concatenate(chosen))


def _even(sizes: np.ndarray, total: int) -> np.ndarray:
    """`total` in parts that are at most `sizes` and else equal, the first ones larger by one."""
    level = 0
    while level < sizes.max() and np.minimum(sizes, level + 1).sum() <= total:
        level += 1
    counts = np.minimum(sizes, level)
    counts[np.flatnonzero(sizes > level)[: total - counts.sum()]] += 1
    return counts


def _simclr(data: ImageSet, percent: float) -> Subset:
    if percent not in SIMCLR_LISTS:
        raise UserError(
            f"SimCLR has lists of 1 and 10 percent of ImageNet and none of {percent:g}; use "
            "--percent 1 or 10, or --subset balanced"
        )
    if data.listing is None:
        raise UserError(
            f"SimCLR's lists name files of ImageNet and {data.name} has none; use --subset balanced"
        )
    wanted = SIMCLR_LISTS[percent]
    names = read_list(percent, list_folders(data.name, data.listing.folder.parent))
    indices = _positions(data, wanted, names)
    return _subset(data, indices, f"simclr {wanted.name}", wanted.sha256)


def read_list(percent: float, folders: list[Path]) -> np.ndarray:
    """The names on SimCLR's list, bytes (n,): of the first file with its checksum.

    Raises:
        UserError: No folder has it; or only another file under its name.
    """
    wanted = SIMCLR_LISTS[percent]
    others = []
    for folder in folders:
        path = folder / wanted.name
        if path.is_file():
            content = path.read_bytes()
            found = hashlib.sha256(content).hexdigest()
            if found == wanted.sha256:
                return np.array(content.split())
            others.append((path, found))
    if others:
        path, found = others[0]
        raise UserError(
            f"{path} has the SHA-256 {found} and SimCLR's list has {wanted.sha256}, so it names "
            f"other images; {_HOW_TO_GET}"
        )
    raise UserError(
        f"SimCLR's list {wanted.name} is in none of {', '.join(map(str, folders))}; "
        f"{_HOW_TO_GET}, or use --subset balanced"
    )


def _positions(data: ImageSet, wanted: _List, names: np.ndarray) -> np.ndarray:
    """Where the listed images are in the split; the class folder is what precedes the `_`."""
    assert data.listing is not None
    paths = data.listing.paths  # sorted
    relative = np.array([name.partition(b"_")[0] + b"/" + name for name in names.tolist()])
    found = np.searchsorted(paths, relative).clip(max=len(paths) - 1)
    missing = relative[paths[found] != relative]
    if len(missing):
        raise UserError(
            f"{len(missing)} of the {len(names)} images of SimCLR's list {wanted.name} are not in "
            f"{data.listing.folder}, {missing[0].decode()} among them; unpack ImageNet's train "
            "images completely"
        )
    return np.sort(found)
