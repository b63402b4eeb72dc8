"""A data set laid out like COCO, drawn: coloured boxes and discs on gray, some of them crowds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from harness.backbone import Backbone, build_backbone
from harness.detection import DetectorTraining
from harness.recipe import BackboneSpec

CATEGORIES = [{"id": 3, "name": "red box"}, {"id": 7, "name": "green disc"}]
_COLOURS = {3: (220, 40, 40), 7: (40, 200, 60)}


def make_coco(root: Path, *, images: int = 6, val: int = 5, side: int = 64) -> Path:
    """Write train2017/, val2017/ and annotations/; two objects an image, wide and tall ones."""
    (root / "annotations").mkdir(parents=True)
    for split, count, seed in (("train2017", images, 1), ("val2017", val, 2)):
        random = np.random.default_rng(seed)
        folder = root / split
        folder.mkdir()
        listed, annotations = [], []
        for number in range(count):
            # Ids that are in no order and don't start at 1.
            image = {"id": 100 + (number + 2) % count, "file_name": f"{split}-{number}.png"}
            width, height = (side, side * 3 // 4) if number % 3 else (side * 3 // 4, side)
            objects, pixels = _draw(random, width, height)
            Image.fromarray(pixels).save(folder / image["file_name"])
            listed.append(image | {"width": width, "height": height})
            for one in objects:
                annotations.append(one | {"id": len(annotations) + 1, "image_id": image["id"]})
        content = {"images": listed, "annotations": annotations, "categories": CATEGORIES[::-1]}
        (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))
    return root


def _draw(
    random: np.random.Generator, width: int, height: int
) -> tuple[list[dict[str, Any]], np.ndarray]:
    pixels = random.integers(110, 140, (height, width, 3)).astype(np.uint8)
    rows, columns = np.mgrid[:height, :width] + 0.5
    objects = []
    # One object in each half, so that they don't overlap.
    for half, category in enumerate(random.permutation([3, 7]).tolist()):
        size = random.uniform(0.3, 0.45) * min(width, height)
        x = random.uniform(0, width / 2 - size) + half * width / 2
        y = random.uniform(0, height - size)
        if category == 3:
            corners = [(x, y), (x + size, y), (x + size, y + size), (x, y + size)]
            inside = (abs(columns - x - size / 2) < size / 2) & (
                abs(rows - y - size / 2) < size / 2
            )
        else:
            turns = np.linspace(0, 2 * np.pi, 24, endpoint=False)
            middle = np.array([x, y]) + size / 2
            corners = middle + size / 2 * np.stack([np.cos(turns), np.sin(turns)], axis=1)
            inside = np.hypot(columns - middle[0], rows - middle[1]) < size / 2
        pixels[inside] = _COLOURS[category]
        objects.append(
            {
                "category_id": category,
                "segmentation": [np.ravel(corners).tolist()],
                "bbox": [x, y, size, size],
                "area": size**2 * (1 if category == 3 else np.pi / 4),
                "iscrowd": 0,
            }
        )
    return objects, pixels


def change(root: Path, split: str, edit: Any) -> None:
    """Rewrite a split's annotations after `edit(content)`."""
    path = root / "annotations" / f"instances_{split}.json"
    content = json.loads(path.read_text())
    edit(content)
    path.write_text(json.dumps(content))


def ground_truth(annotations: Path) -> list[dict[str, Any]]:
    """All objects but crowds, as detections with score 1."""
    from pycocotools import mask as rle

    content = json.loads(annotations.read_bytes())
    sizes = {image["id"]: (image["height"], image["width"]) for image in content["images"]}
    found = []
    for one in content["annotations"]:
        if not one["iscrowd"]:
            size = sizes[one["image_id"]]
            segmentation: Any = one["segmentation"]
            if isinstance(segmentation, list):
                mask: Any = rle.merge(rle.frPyObjects(segmentation, *size))
                segmentation = mask | {"counts": mask["counts"].decode()}
            kept = {name: one[name] for name in ("image_id", "category_id", "bbox")}
            found.append(kept | {"score": 1.0, "segmentation": segmentation})
    return found


SMALL = DetectorTraining(
    engine="torchvision",
    iterations=4,
    milestones=(3,),
    warmup=2,
    batch_size=2,
    lr=0.01,
    train_sides=(48, 64),
    test_side=64,
    max_side=96,
    train_proposals=(100, 30),
    test_proposals=(100, 20),
    anchors_per_image=32,
    rois_per_image=16,
    detections=5,
    precise_bn=2,
)


class KilledError(Exception):
    pass


def trunk(name: str = "resnet_tiny") -> Backbone:
    torch.manual_seed(0)
    return build_backbone(BackboneSpec(name=name), 64).eval()
