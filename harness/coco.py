"""COCO's instance annotations: images with their objects."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from harness.data import Split, find_folder
from harness.errors import UserError
from harness.folders import decode

if TYPE_CHECKING:
    from torch import Tensor

HOW_TO_GET = (
    "download train2017.zip, val2017.zip and annotations_trainval2017.zip from cocodataset.org and"
    " unpack them there"
)


@dataclass(frozen=True, kw_only=True, eq=False)
class CocoSplit:
    """One split; positions count its images in ascending order of their ids.

    Attributes:
        name: Of the data set, as it was given.
        split: "train" or "val".
        images: Folder of the image files.
        annotations: File that lists images and objects.
        checksum: SHA-256, hex, of the annotation file and of the names and sizes in bytes of the
            images.
        classes: Class names in ascending order of the category ids.
        categories: int64 (classes,): those ids.
        image_ids: int64 (n,).
        sizes: int64 (n, 2): height and width.
        objects_per_image: int64 (n,), crowds not counted.
    """

    name: str
    split: str
    images: Path
    annotations: Path
    checksum: str
    classes: list[str]
    categories: np.ndarray
    image_ids: np.ndarray
    sizes: np.ndarray
    objects_per_image: np.ndarray
    # Packed, since a million Python objects would be copied into every worker that reads them.
    files: np.ndarray = field(repr=False)  # bytes (n,): names
    packed: np.ndarray = field(repr=False)  # uint8: JSON of each image's objects, end to end
    ends: np.ndarray = field(repr=False)  # int64 (n + 1,): where each one starts and ends

    def __len__(self) -> int:
        """Number of images."""
        return len(self.image_ids)

    def path(self, position: int) -> Path:
        """File of an image."""
        return self.images / os.fsdecode(bytes(self.files[position]))

    def load(self, position: int) -> Tensor:
        """An image as uint8 (3, H, W).

        Raises:
            UserError: It cannot be decoded, or is not of the size that the annotations say.
        """
        image = decode(self.path(position))
        if tuple(image.shape[1:]) != tuple(self.sizes[position].tolist()):
            height, width = self.sizes[position].tolist()
            raise UserError(
                f"{self.path(position)} is {image.shape[2]} x {image.shape[1]} pixels and "
                f"{self.annotations} says {width} x {height}; restore the file"
            )
        return image

    def objects(self, position: int) -> list[dict[str, Any]]:
        """Objects of an image (bbox, segmentation, category_id); crowds are left out."""
        start, end = self.ends[position : position + 2].tolist()
        return json.loads(self.packed[start:end].tobytes())

    def describe(self) -> dict[str, Any]:
        """What a record says of the split."""
        return {
            "checksum": self.checksum,
            "images": len(self),
            "classes": len(self.classes),
            "objects": int(self.objects_per_image.sum()),
        }


def open_coco(dataset: str, split: Split) -> CocoSplit:
    """Open a split of COCO 2017, or of a data set laid out like it.

    Args:
        dataset: A folder with `train2017/`, `val2017/` and `annotations/instances_*.json`, by its
            path or by its name below DATA_ROOT (`coco`); or the bundled `mnist5k-scenes`.
        split: "train" or "val".

    Raises:
        UserError: Something of it is missing or damaged.
    """
    images, annotations = locate(dataset, split)
    stamp = annotations.stat()
    return _read(dataset, split, images, annotations, (stamp.st_mtime_ns, stamp.st_size))


def is_coco(dataset: str) -> bool:
    """Whether a data set is COCO, or a folder laid out like it."""
    try:
        find_folder(dataset, ("annotations",), HOW_TO_GET)
    except UserError:
        return dataset == "coco"
    return True


def locate(dataset: str, split: str) -> tuple[Path, Path]:
    """Folder of the images and file of the annotations of a split.

    Raises:
        UserError: One of them isn't there.
    """
    wanted = (f"{split}2017", f"annotations/instances_{split}2017.json")
    folder = find_folder(dataset, wanted, HOW_TO_GET)
    return folder / wanted[0], folder / wanted[1]


def open_coco_pair(dataset: str) -> tuple[CocoSplit, CocoSplit]:
    """The train and val splits.

    Raises:
        UserError: Something is missing, or they don't have the same categories.
    """
    train, val = open_coco(dataset, "train"), open_coco(dataset, "val")
    if train.categories.tolist() != val.categories.tolist():
        raise UserError(
            f"data set {dataset!r} has {len(train.classes)} categories in train and "
            f"{len(val.classes)} in val, or other ids; give both files the same categories"
        )
    return train, val


@lru_cache(maxsize=2)  # a run and its record ask for the same two splits
def _read(
    dataset: str, split: str, images: Path, annotations: Path, _: tuple[int, int]
) -> CocoSplit:
    content = annotations.read_bytes()
    try:
        found = json.loads(content)
        categories = sorted((int(c["id"]), str(c["name"])) for c in found["categories"])
        listed = sorted(found["images"], key=lambda image: image["id"])
        sizes = [(int(image["height"]), int(image["width"])) for image in listed]
        files = [os.fsencode(image["file_name"]) for image in listed]
        objects = _by_image([int(image["id"]) for image in listed], found["annotations"])
    except (ValueError, LookupError, TypeError) as error:
        raise UserError(
            f"{annotations} is not a file of COCO instances ({type(error).__name__}: {error}); "
            "restore it"
        ) from error
    if not listed or len(objects) < len(listed):
        problem = "an image id twice" if listed else "no images"
        raise UserError(f"{annotations} lists {problem}; restore it")
    texts = [json.dumps(of_image).encode() for of_image in objects]
    return CocoSplit(
        name=dataset,
        split=split,
        images=images,
        annotations=annotations,
        checksum=_checksum(content, images, files),
        classes=[name for _, name in categories],
        categories=np.array([number for number, _ in categories], dtype=np.int64),
        image_ids=np.array([image["id"] for image in listed], dtype=np.int64),
        sizes=np.array(sizes, dtype=np.int64),
        objects_per_image=np.array([len(of_image) for of_image in objects], dtype=np.int64),
        files=np.array(files),
        packed=np.frombuffer(b"".join(texts), dtype=np.uint8),
        ends=np.cumsum([0, *map(len, texts)]),
    )


def _by_image(ids: list[int], annotations: list[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """What training needs of each image's objects; crowds are no training targets."""
    objects: dict[int, list[dict[str, Any]]] = {number: [] for number in ids}
    for one in annotations:
        if not one.get("iscrowd", 0):
            kept = {name: one[name] for name in ("bbox", "segmentation", "category_id")}
            objects[int(one["image_id"])].append(kept)
    return list(objects.values())


def _checksum(content: bytes, images: Path, files: Sequence[bytes]) -> str:
    with os.scandir(images) as entries:
        sizes = {os.fsencode(entry.name): entry.stat().st_size for entry in entries}
    digest = hashlib.sha256(content)
    for name in sorted(files):
        if name not in sizes:
            raise UserError(f"{images / os.fsdecode(name)} is missing; {HOW_TO_GET}")
        digest.update(name + f"\0{sizes[name]}\n".encode())
    return digest.hexdigest()
