"""Scenes of several MNIST digits, which a demo detects, segments and classifies without downloads.

Drawn once from the bundled digits, train's from train's and val's from val's, and kept as a folder
that is laid out like COCO 2017 and like VOC2007 at once. A digit's box and mask are exact.
"""

from __future__ import annotations

import json
import shutil
import uuid
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from harness import bundles, draws
from harness.errors import UserError
from harness.files import cache_folder

NAME = "mnist5k-scenes"
IMAGES = {"train": 200, "val": 100}
CLASSES = tuple("0123456789")  # COCO's ids are one more: its 0 is the background
_VERSION = 1  # of what is drawn
_VOC_PARTS = {"train": "trainval", "val": "test"}
# Scenes are wide or tall, as large as COCO's: four quarters of 240 x 320 pixels or 320 x 240, of
# which two to four hold a digit, so that some objects are small, medium and large in COCO's sense.
_CELLS = (2, 2)
_CELL = (240, 320)
_DIGITS = (2, 4)
_SIDES = (48, 240)  # of a digit's 28 x 28 pixels; evenly between them on a logarithmic scale
_SLOTS = 5  # uniforms of each digit: which, side, two places, ink
_QUALITY = 95  # of the JPEGs


class Scene(NamedTuple):
    """One image and what it shows."""

    pixels: np.ndarray  # uint8 (H, W)
    digits: list[int]
    masks: list[np.ndarray]  # bool (H, W) each


def folder() -> Path:
    """Where the scenes lie, drawn now if they aren't there: seconds and 10 MB.

    Raises:
        UserError: The digits are missing or damaged; there is no room for the scenes.
    """
    path = cache_folder() / f"{NAME}-{_VERSION}"
    if path.is_dir():
        return path
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}.partial")
    try:
        for split, count in IMAGES.items():
            _write(partial, split, draw_scenes(split, count))
        partial.rename(path)
    except OSError as error:
        if not path.is_dir():  # else another process drew them at the same moment
            raise UserError(
                f"{path} cannot be written ({error.strerror or error}); let XDG_CACHE_HOME name a"
                " folder with 10 MB of room."
            ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return path


def draw_scenes(split: str, count: int) -> list[Scene]:
    """Scenes of a split's digits, the same every time."""
    digits = bundles.read_mnist5k(split)
    number = list(IMAGES).index(split)
    slots = 2 + np.prod(_CELLS) * (1 + _SLOTS)
    uniforms = draws.uniforms(0, number, np.arange(count), 0, int(slots))
    return [_scene(digits, row) for row in uniforms]


def _scene(digits: bundles.Bundle, row: np.ndarray) -> Scene:
    """A scene out of its uniforms."""
    (tall, many), row = row[:2], row[2:]
    cells, cell = np.array(_CELLS), np.array(_CELL)
    if tall < 0.5:
        cells, cell = cells[::-1], cell[::-1]
    places, row = np.argsort(row[: cells.prod()]), row[cells.prod() :]
    canvas = np.zeros(cells * cell)
    shown, masks = [], []
    for place in places[: _DIGITS[0] + int(many * (_DIGITS[1] - _DIGITS[0] + 1))].tolist():
        which, size, down, right, ink = row[place * _SLOTS : (place + 1) * _SLOTS]
        index = int(which * len(digits.labels))
        side = int(_SIDES[0] * (_SIDES[1] / _SIDES[0]) ** size)
        room = cell - side
        corner = np.array(divmod(place, cells[1])) * cell + (room * [down, right]).astype(int)
        part = tuple(slice(start, start + side) for start in corner.tolist())
        stroke = _resized(digits.pixels[index, 0], side)
        canvas[part] += stroke * (0.6 + 0.4 * ink)
        mask = np.zeros(canvas.shape, dtype=bool)
        mask[part] = stroke > 127
        shown.append(int(digits.labels[index]))
        masks.append(mask)
    return Scene(canvas.round().astype(np.uint8), shown, masks)


def _resized(digit: np.ndarray, side: int) -> np.ndarray:
    """uint8 (28, 28) to (side, side)."""
    from PIL import Image

    return np.asarray(Image.fromarray(digit).resize((side, side), Image.Resampling.BILINEAR))


def _write(root: Path, split: str, scenes: list[Scene]) -> None:
    """A split, in both layouts."""
    from PIL import Image

    voc, lists = root / "JPEGImages", root / "ImageSets" / "Main"
    coco, annotations = root / f"{split}2017", root / "annotations"
    for part in (voc, lists, coco, annotations):
        part.mkdir(parents=True, exist_ok=True)
    names = [f"{split}-{number:03}" for number in range(len(scenes))]
    for name, scene in zip(names, scenes, strict=True):
        file = voc / f"{name}.jpg"
        Image.fromarray(scene.pixels).convert("RGB").save(file, quality=_QUALITY, subsampling=0)
        shutil.copy(file, coco)
    for number, digit in enumerate(CLASSES):
        shows = [1 if number in scene.digits else -1 for scene in scenes]
        lines = [f"{name} {sign:2}\n" for name, sign in zip(names, shows, strict=True)]
        (lists / f"{digit}_{_VOC_PARTS[split]}.txt").write_text("".join(lines))
    content = json.dumps(_instances(names, scenes))
    (annotations / f"instances_{split}2017.json").write_text(content)


def _instances(names: list[str], scenes: list[Scene]) -> dict[str, Any]:
    """COCO's annotations."""
    from pycocotools import mask as rle

    images, objects = [], []
    for number, (name, scene) in enumerate(zip(names, scenes, strict=True)):
        height, width = scene.pixels.shape
        images.append({"id": number, "file_name": f"{name}.jpg", "height": height, "width": width})
        for digit, mask in zip(scene.digits, scene.masks, strict=True):
            code: Any = rle.encode(np.asfortranarray(mask.astype(np.uint8)))
            objects.append(
                {
                    "id": len(objects) + 1,
                    "image_id": number,
                    "category_id": digit + 1,
                    "bbox": rle.toBbox(code).tolist(),
                    "area": int(mask.sum()),
                    "iscrowd": 0,
                    "segmentation": code | {"counts": code["counts"].decode()},
                }
            )
    categories = [{"id": number + 1, "name": name} for number, name in enumerate(CLASSES)]
    return {"images": images, "annotations": objects, "categories": categories}
