"""What lies where a data set should be: images and classes counted, some of the files read.

Only names are listed and nothing is summed up, so that all of ImageNet takes seconds, and nothing
here needs torch. What makes a record's checksum is in harness/data.py.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from harness import bundles, coco, data, scenes, voc
from harness.errors import UserError
from harness.folders import SUFFIXES, decode_pixels

SAMPLED = 32  # files that are read in each split
_THREADS = 16  # folders listed at once: a file server answers slowly, but many at a time
_VOC_CLASSES = (
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa"),
    *("train", "tvmonitor"),
)
# COCO numbers its 80 categories from 1 to 90, with gaps.
_COCO_IDS = tuple(
    str(number) for number in range(1, 91) if number not in (12, 26, 29, 30, 45, 66, 68, 69, 71, 83)
)


@dataclass(frozen=True, kw_only=True)
class Published:
    """What a data set consists of, by those who released it."""

    train: int
    val: int
    order: str  # SHA-256, hex, of the class names in the order of their labels, one a line
    classes: int
    range: str = ""  # the first and the last class, for people
    val_per_class: int | None = None  # where every class has as many images in val


def order_of(classes: Sequence[str]) -> str:
    """SHA-256, hex, of class names in their order."""
    return hashlib.sha256("\n".join(classes).encode()).hexdigest()


PUBLISHED = {
    "imagenet": Published(
        train=1_281_167,
        val=50_000,
        classes=1000,
        order="385e0240499426c022b773be1ae4da780f057b89c9694c7f47199f62746b6edd",
        range="n01440764 … n15075141",
        val_per_class=50,
    ),
    # Classes of imagenet100.txt in HobbitLong/CMC, with all their images.
    "imagenet100": Published(
        train=126_689,
        val=5_000,
        classes=100,
        order="d61d354b64beb3ce2c2c9cf04a874298362dc9fcd589e15ee34c5e4592145746",
        range="n01558993 … n13040303",
        val_per_class=50,
    ),
    # Zhou et al. 2014; how its categories' folders are called is left to those who unpack it.
    "places205": Published(train=2_448_873, val=20_500, classes=205, order="", val_per_class=100),
    "voc07": Published(train=5_011, val=4_952, classes=20, order=order_of(_VOC_CLASSES)),
    "coco": Published(train=118_287, val=5_000, classes=80, order=order_of(_COCO_IDS)),
    "cifar10": Published(
        train=50_000,
        val=10_000,
        classes=10,
        order=order_of(bundles.CIFAR10_CLASSES),
        range="airplane … truck",
    ),
    "mnist5k": Published(train=4_000, val=1_000, classes=10, order=order_of("0123456789")),
    scenes.NAME: Published(
        train=scenes.IMAGES["train"],
        val=scenes.IMAGES["val"],
        classes=10,
        order=order_of([str(number + 1) for number in range(10)]),
    ),
}


@dataclass(frozen=True, kw_only=True)
class Part:
    """One split as it lies there."""

    images: int
    classes: tuple[str, ...]  # in the order of their labels
    per_class: tuple[int, ...] = ()  # images of each class, where every image has one
    files: tuple[Path, ...] = field(default=(), repr=False)  # some of them, spread evenly


def take(dataset: str) -> dict[str, Part]:
    """The splits of a data set by their names.

    Raises:
        UserError: It isn't there, or not as a whole.
    """
    base = _base(dataset)
    if base == "mnist5k":
        return {split: _bundle(bundles.read_mnist5k(split)) for split in ("train", "val")}
    if coco.is_coco(base):
        return {split: _coco(base, split) for split in ("train", "val")}
    folder = data.locate(base)
    assert folder is not None
    if base == "cifar10" and bundles.has_cifar10(folder):
        found = ((split, bundles.read_cifar10(folder, split)) for split in ("train", "val"))
        return {split: _bundle(bundle) for split, bundle in found if bundle is not None}
    if voc.is_voc(folder):
        return {split: _voc(folder, split) for split in ("train", "val")}
    return {split: _folders(folder / split) for split in ("train", "val")}


def problems(dataset: str, parts: dict[str, Part]) -> list[str]:
    """In what a data set differs from what was published, and files that can't be read."""
    train, val = parts["train"], parts["val"]
    found = []
    if set(train.classes) != set(val.classes):
        odd = sorted(set(train.classes) ^ set(val.classes))
        found.append(f"train and val differ in {len(odd)} classes, {odd[0]} among them")
    known = PUBLISHED.get(_base(dataset))
    if known is not None:
        found += _differences(known, train, val)
    for path in (*train.files, *val.files):
        try:
            decode_pixels(path)
        except UserError as error:
            found.append(str(error).rstrip("."))
    return found


def describe(parts: dict[str, Part]) -> str:
    """Images and classes in a line: "1,281,167 + 50,000 images of 1000 classes, 64 files read"."""
    counts = " + ".join(f"{part.images:,}" for part in parts.values())
    read = sum(len(part.files) for part in parts.values())
    about = f", {read} files read" if read else ""
    return f"{counts} images of {len(parts['train'].classes)} classes{about}"


def _base(dataset: str) -> str:
    """The data set that `NAME@10000` is drawn from."""
    name, at, count = dataset.rpartition("@")
    return name if at and count.isdigit() else dataset


def _differences(known: Published, train: Part, val: Part) -> Iterator[str]:
    for split, part, wanted in (("train", train, known.train), ("val", val, known.val)):
        if part.images != wanted:
            yield f"{split} has {part.images:,} images, not {wanted:,}"
    if len(train.classes) != known.classes:
        yield f"train has {len(train.classes)} classes, not {known.classes}"
    elif known.order and order_of(train.classes) != known.order:
        usual = f" ({known.range})" if known.range else ""
        found = f"{train.classes[0]} … {train.classes[-1]}"
        yield f"the classes, {found}, are not in order the published ones{usual}"
    each = known.val_per_class
    # not strict: images of several classes are not counted class by class
    odd = [(n, c) for n, c in zip(val.classes, val.per_class, strict=False) if each and c != each]
    if odd and val.images == known.val:
        yield f"val has {odd[0][1]} images of class {odd[0][0]}, not {each}"


def _bundle(bundle: bundles.Bundle) -> Part:
    return Part(images=len(bundle.labels), classes=bundle.classes)


def _voc(folder: Path, split: str) -> Part:
    listing = voc.list_voc(folder, split)
    paths = [listing.path(index) for index in _spread(len(listing.paths))]
    classes = tuple(listing.classes)
    return Part(images=len(listing.paths), classes=classes, files=tuple(paths))


def _folders(root: Path) -> Part:
    """A split of one folder per class."""
    with os.scandir(root) as entries:
        classes = sorted(entry.name for entry in entries if entry.is_dir())
    with ThreadPoolExecutor(_THREADS) as pool:
        found = list(pool.map(lambda name: _images(root / name), classes))
    paths = [path for names in found for path in names]
    if not paths:
        raise UserError(
            f"{root} holds no images in class folders; put them into {root}/<class>/ (ImageNet's "
            "val comes flat and is sorted by a script such as valprep.sh)."
        )
    return Part(
        images=len(paths),
        classes=tuple(classes),
        per_class=tuple(len(names) for names in found),
        files=tuple(Path(paths[index]) for index in _spread(len(paths))),
    )


def _images(folder: Path) -> list[str]:
    """Paths of the images below a class folder, as harness/folders.py lists them, in order."""
    found, pending = [], [str(folder)]
    while pending:
        with os.scandir(pending.pop()) as entries:
            for entry in entries:
                if entry.is_dir():
                    pending.append(entry.path)
                elif entry.name.lower().endswith(SUFFIXES):
                    found.append(entry.path)
    return sorted(found)


def _coco(dataset: str, split: str) -> Part:
    """A split of COCO; its annotations are searched, since parsing 450 MB takes half a minute."""
    images, annotations = coco.locate(dataset, split)
    content = annotations.read_bytes()
    start = content.rfind(b'"categories"')
    try:
        section = content[content.index(b"[", max(start, 0)) :]
        text = section.decode(errors="replace")
        ids = sorted(int(one["id"]) for one in json.JSONDecoder().raw_decode(text)[0])
    except (ValueError, LookupError, TypeError) as error:
        raise UserError(
            f"{annotations} is not a file of COCO instances; {coco.HOW_TO_GET}."
        ) from error
    files = _images(images)
    listed = content.count(b'"file_name"')
    if listed != len(files):
        raise UserError(
            f"{annotations} lists {listed:,} images and {images} has {len(files):,}; "
            f"{coco.HOW_TO_GET}."
        )
    return Part(
        images=listed,
        classes=tuple(map(str, ids)),
        files=tuple(Path(files[index]) for index in _spread(len(files))),
    )


def _spread(count: int) -> list[int]:
    """Places of the files to read, the same at every call."""
    sampled = min(SAMPLED, count)
    return [place * count // sampled for place in range(sampled)]
