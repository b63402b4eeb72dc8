"""COCO's own evaluation of detections, with intervals over images."""

from __future__ import annotations

import contextlib
import gzip
import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from harness import dist
from harness.bootstrap import between, samples
from harness.coco import CocoSplit
from harness.detection import KINDS, STATS, Kind
from harness.features import gather_numbers
from harness.files import write_atomically
from harness.protocol import Estimate

if TYPE_CHECKING:
    from pycocotools.cocoeval import COCOeval

_DRAWS = 200  # of the bootstrap; each goes through every detection of every class
_TOGETHER = 20  # draws at a time
_RECALLS = np.linspace(0, 1, 101)
_THRESHOLDS = {"ap": slice(None), "ap50": slice(0, 1), "ap75": slice(5, 6)}


def detections(
    image_id: int, boxes: np.ndarray, scores: np.ndarray, categories: np.ndarray, masks: np.ndarray
) -> list[dict[str, Any]]:
    """Detections of an image as COCO's results files have them.

    Args:
        image_id: The image's.
        boxes: (n, 4): x1, y1, x2, y2 in its pixels.
        scores: (n,).
        categories: int (n,): category ids.
        masks: bool (n, H, W).
    """
    from pycocotools import mask as rle

    encoded: Any = rle.encode(np.asfortranarray(masks.astype(np.uint8).transpose(1, 2, 0)))
    corners = boxes.astype(np.float64)
    corners[:, 2:] -= corners[:, :2]
    return [
        {
            "image_id": image_id,
            "category_id": int(category),
            "bbox": [round(x, 3) for x in box],
            "score": round(float(score), 7),
            "segmentation": {"size": list(mask["size"]), "counts": mask["counts"].decode()},
        }
        for category, box, score, mask in zip(
            categories, corners.tolist(), scores, encoded, strict=True
        )
    ]


def collect(results: list[dict[str, Any]], split: CocoSplit, path: Path) -> list[dict[str, Any]]:
    """All processes' detections in the order of the split's images; also written to `path`.

    Args:
        results: This process's, each image's best first.
        split: Whose images they are of.
        path: Of a COCO results file, gzipped; the same detections give the same bytes. Only the
            main process writes.
    """
    lines = "".join(json.dumps(row) + "\n" for row in results) + "\n"
    mine = torch.frombuffer(bytearray(lines.encode()), dtype=torch.uint8)
    text = gather_numbers(mine).numpy().tobytes().decode()
    rows = [json.loads(line) for line in text.splitlines() if line]
    places = {number: place for place, number in enumerate(split.image_ids.tolist())}
    rows.sort(key=lambda row: places[row["image_id"]])
    if dist.is_main():
        content = json.dumps(rows, separators=(",", ":")).encode()
        write_atomically(path, gzip.compress(content, mtime=0))
    dist.barrier()
    return rows


def evaluate(split: CocoSplit, results: list[dict[str, Any]]) -> dict[str, Estimate]:
    """COCO's AP of boxes and masks in percent, by the names of `detection.METRICS`.

    pycocotools decides, with its defaults: IoU .5 to .95, 100 detections an image, crowds ignored.
    Where val has no object of an area range, COCO's -1, the metric is absent. The first three of
    each kind have an interval over images drawn with replacement.

    Args:
        split: With the ground truth.
        results: Of `detections`, for any of its images.
    """
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    found: dict[str, Estimate] = {}
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools reports on its progress
        truth = COCO(str(split.annotations))
        for kind in KINDS:
            measured = COCOeval(truth, _loaded(truth, results, kind), kind)
            measured.evaluate()
            measured.accumulate()
            measured.summarize()
            found |= _estimates(measured, kind)
    return found


def _loaded(truth: Any, results: list[dict[str, Any]], kind: Kind) -> Any:
    """The detections as pycocotools wants them."""
    from pycocotools.coco import COCO

    if not results:
        empty: Any = COCO()
        empty.dataset = {**truth.dataset, "annotations": []}
        empty.createIndex()
        return empty
    # With a box beside the mask, pycocotools takes the box's area for the object's.
    other = "bbox" if kind == "segm" else "segmentation"
    return truth.loadRes(
        [{name: value for name, value in row.items() if name != other} for row in results]
    )


def _estimates(measured: COCOeval, kind: Kind) -> dict[str, Estimate]:
    images = len(measured.params.imgIds)
    weights = [np.bincount(drawn, minlength=images) for drawn in samples(images, _DRAWS)]
    drawn = average_precision(list(_matches(measured)), np.stack(weights))
    found = {}
    # COCO's recalls follow the precisions.
    for stat, value in zip(STATS, measured.stats[: len(STATS)], strict=True):
        if value < 0:
            continue
        estimate = Estimate(100 * float(value))
        if stat in _THRESHOLDS:
            estimate = between(estimate.value, drawn[:, _THRESHOLDS[stat]].mean(axis=1))
        found[f"{kind}_{stat}"] = estimate
    return found


@dataclass(frozen=True, kw_only=True)
class _Matches:
    """How a class's D detections were matched, best score first, at T IoU thresholds."""

    hits: np.ndarray  # bool (T, D): true positives
    misses: np.ndarray  # bool (T, D): false positives; neither: ignored, as in crowds
    images: np.ndarray  # int (D,): positions of their images
    objects: np.ndarray  # int (images,): of the class, those that count


def _matches(measured: COCOeval) -> Iterator[_Matches]:
    """What COCOeval matched, class by class, for objects of all areas."""
    params = measured.params
    count, areas = len(params.imgIds), len(params.areaRng)
    for number in range(len(params.catIds)):
        start = number * areas * count  # of the first area range, "all"
        of_class = {
            position: one
            for position, one in enumerate(measured.evalImgs[start : start + count])
            if one is not None
        }
        objects = np.zeros(count)
        for position, one in of_class.items():
            objects[position] = np.sum(np.asarray(one["gtIgnore"]) == 0)
        if not objects.any():
            continue
        scores = np.concatenate([one["dtScores"] for one in of_class.values()])
        order = np.argsort(-scores, kind="stable")
        matched = np.hstack([one["dtMatches"] for one in of_class.values()])[:, order] > 0
        counted = np.hstack([one["dtIgnore"] for one in of_class.values()])[:, order] == 0
        found = [len(one["dtScores"]) for one in of_class.values()]
        yield _Matches(
            hits=matched & counted,
            misses=~matched & counted,
            images=np.repeat(list(of_class), found)[order],
            objects=objects,
        )


def average_precision(classes: Sequence[_Matches], weights: np.ndarray) -> np.ndarray:
    """COCO's AP in percent where image i counts `weights[draw, i]` times.

    Args:
        classes: Matches of each class.
        weights: (draws, images), not negative.

    Returns:
        (draws, T): mean over classes that have objects and over 101 recalls; NaN without any.
    """
    sums = np.zeros((len(weights), len(classes[0].hits)))
    counts = np.zeros((len(weights), 1))
    for one in classes:
        for start in range(0, len(weights), _TOGETHER):
            part = slice(start, start + _TOGETHER)
            totals = weights[part] @ one.objects
            shown = totals > 0
            found = _of_class(one, weights[part][shown], totals[shown])
            sums[part][shown] += found
            counts[part][shown] += 1
    with np.errstate(invalid="ignore"):
        return 100 * sums / counts


def _of_class(one: _Matches, weights: np.ndarray, totals: np.ndarray) -> np.ndarray:
    """AP (draws, T) in [0, 1] of a class of which each draw has objects."""
    weight = weights[:, None, one.images]  # of each detection
    true = np.cumsum(one.hits * weight, axis=2, dtype=np.float64)
    false = np.cumsum(one.misses * weight, axis=2, dtype=np.float64)
    precision = true / np.maximum(true + false, np.spacing(1))
    precision = np.maximum.accumulate(precision[..., ::-1], axis=2)[..., ::-1]
    # How many of the recalls each detection is the first to reach: they are read off there.
    reached = np.searchsorted(_RECALLS, true / totals[:, None, None], side="right")
    return (np.diff(reached, prepend=0) * precision).sum(axis=2) / len(_RECALLS)
