from __future__ import annotations

import gzip
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from harness.coco import open_coco, open_coco_pair
from harness.coco_eval import _loaded, _matches, average_precision, collect, evaluate
from harness.errors import UserError
from tests.harness.coco_toy import change, ground_truth, make_coco

MINI = Path(os.environ.get("DATA_ROOT", ""), "coco-mini")
needs_mini = pytest.mark.skipif(
    not (MINI / "annotations").is_dir(), reason="needs coco-mini below DATA_ROOT"
)


@pytest.fixture
def toy(tmp_path) -> Path:
    return make_coco(tmp_path / "toy")


def worse(detections: list[dict[str, Any]], seed: int = 0) -> list[dict[str, Any]]:
    """Each detection shifted by up to a third of its box, with a score of its own; some are lost,
    some have another class.
    """
    random = np.random.default_rng(seed)
    kept = []
    for row in detections:
        x, y, width, height = row["bbox"]
        dx, dy = (random.uniform(0, 0.33, 2) * random.integers(0, 2)).tolist()
        score = random.uniform()
        if random.uniform() < 0.9:
            category = 10 - row["category_id"] if random.uniform() < 0.1 else row["category_id"]
            box = [x + dx * width, y + dy * height, width, height]
            kept.append({**row, "bbox": box, "score": score, "category_id": category})
    return kept


def test_a_split_lists_its_images_by_id_with_their_objects(toy, monkeypatch):
    monkeypatch.setenv("DATA_ROOT", str(toy.parent))
    train, val = open_coco_pair("toy")
    assert (len(train), len(val)) == (6, 5)
    assert val.image_ids.tolist() == [100, 101, 102, 103, 104]
    assert val.classes == ["red box", "green disc"] and val.categories.tolist() == [3, 7]
    # The third image of the file has the first id, and is tall.
    assert val.path(0).name == "val2017-3.png" and val.sizes[0].tolist() == [64, 48]
    assert val.load(0).shape == (3, 64, 48)
    assert [sorted(one) for one in val.objects(0)] == [["bbox", "category_id", "segmentation"]] * 2
    assert val.describe() == {
        "checksum": val.checksum, "images": 5, "classes": 2, "objects": 10,
    }  # fmt: skip
    assert open_coco(str(toy), "val").checksum == val.checksum != train.checksum


def test_the_checksum_follows_annotations_and_images(toy):
    before = open_coco(str(toy), "val").checksum
    Image.new("RGB", (64, 48), (1, 2, 3)).save(toy / "val2017" / "val2017-1.png")
    change(toy, "val2017", lambda content: None)  # written anew: read anew
    image = open_coco(str(toy), "val").checksum
    change(toy, "val2017", lambda content: content["annotations"].pop())
    assert len({before, image, open_coco(str(toy), "val").checksum}) == 3


def test_crowds_are_no_targets_and_their_detections_neither_help_nor_harm(toy):
    def make_crowd(content: dict[str, Any]) -> None:
        content["annotations"][0]["iscrowd"] = 1

    everything = ground_truth(toy / "annotations" / "instances_val2017.json")
    change(toy, "val2017", make_crowd)
    val = open_coco(str(toy), "val")
    assert val.objects_per_image.sum() == 9 and len(val.objects(2)) == 1
    without = ground_truth(val.annotations)
    assert len(without) == 9
    for detections in (everything, without):
        assert evaluate(val, detections)["bbox_ap"].value == pytest.approx(100)
    # The same detection where there is no crowd is a false positive, the best-scored one here.
    elsewhere = [row | {"score": 0.9} for row in without]
    elsewhere.append(everything[0] | {"image_id": 101, "bbox": [0, 0, 5, 5]})
    assert 80 < evaluate(val, elsewhere)["bbox_ap"].value < 95


def test_what_is_missing_or_damaged_is_named(toy, monkeypatch):
    monkeypatch.delenv("DATA_ROOT", raising=False)
    with pytest.raises(UserError, match="DATA_ROOT is not set"):
        open_coco("coco", "val")
    monkeypatch.setenv("DATA_ROOT", str(toy.parent))
    with pytest.raises(UserError, match=r"needs val2017 and annotations/.*cocodataset\.org"):
        open_coco("coco", "val")
    Image.new("RGB", (9, 9)).save(toy / "val2017" / "val2017-0.png")
    with pytest.raises(UserError, match=r"val2017-0.png is 9 x 9 pixels and .* says 48 x 64"):
        open_coco("toy", "val").load(2)
    change(toy, "val2017", lambda content: content["categories"].pop())
    with pytest.raises(UserError, match="2 categories in train and 1 in val"):
        open_coco_pair("toy")
    (toy / "val2017" / "val2017-4.png").unlink()
    change(toy, "val2017", lambda content: content["annotations"].pop())
    with pytest.raises(UserError, match=r"val2017-4.png is missing"):
        open_coco("toy", "val")
    change(toy, "train2017", lambda content: content["images"].append(content["images"][0]))
    with pytest.raises(UserError, match=r"lists an image id twice"):
        open_coco("toy", "train")
    (toy / "annotations" / "instances_val2017.json").write_text("<html>")
    with pytest.raises(UserError, match=r"not a file of COCO instances \(JSONDecodeError"):
        open_coco("toy", "val")


@needs_mini
def test_the_ground_truth_fed_back_gives_100_for_boxes_and_masks():
    val = open_coco(str(MINI), "val")
    assert (len(val), len(val.classes), int(val.objects_per_image.sum())) == (100, 80, 707)
    found = evaluate(val, ground_truth(val.annotations))
    assert len(found) == 12
    for estimate in found.values():
        assert estimate.value == pytest.approx(100, abs=1e-9)
    assert found["segm_ap75"].low == found["segm_ap75"].high == pytest.approx(100)


@needs_mini
def test_the_ground_truth_under_shuffled_labels_gives_chance():
    val = open_coco(str(MINI), "val")
    rows = ground_truth(val.annotations)
    shuffled = np.random.default_rng(0).permutation([row["category_id"] for row in rows])
    rows = [
        row | {"category_id": category, "score": (number % 97) / 97}
        for number, (row, category) in enumerate(zip(rows, shuffled.tolist(), strict=True))
    ]
    assert evaluate(val, rows)["bbox_ap50"].value < 8


def test_an_area_range_without_objects_has_no_metric(toy):
    val = open_coco(str(toy), "val")
    found = evaluate(val, ground_truth(val.annotations))
    # 64 px images hold small objects only.
    assert sorted(found) == sorted(
        f"{kind}_{stat}" for kind in ("bbox", "segm") for stat in ("ap", "ap50", "ap75", "aps")
    )


def test_no_detections_at_all_are_an_ap_of_0(toy):
    found = evaluate(open_coco(str(toy), "val"), [])
    assert found["bbox_ap"] == (0, 0, 0) and found["segm_aps"] == (0, None, None)


def measured(annotations: Path, detections: list[dict[str, Any]]) -> COCOeval:
    truth = COCO(str(annotations))
    done = COCOeval(truth, _loaded(truth, detections, "bbox"), "bbox")
    done.evaluate()
    done.accumulate()
    done.summarize()
    return done


def test_an_image_that_counts_twice_equals_one_that_is_there_twice(tmp_path):
    root = make_coco(tmp_path, val=12)
    path = root / "annotations" / "instances_val2017.json"
    detections = worse(ground_truth(path))
    once = measured(path, detections)
    weights = np.random.default_rng(1).integers(0, 3, 12)
    classes = list(_matches(once))
    every = average_precision(classes, np.ones((1, 12), dtype=int))[0]
    assert every.mean() == pytest.approx(100 * once.stats[0], abs=1e-9)
    assert every[[0, 5]] == pytest.approx(100 * once.stats[1:3], abs=1e-9)
    assert 5 < every.mean() < 80

    copies: list[dict[str, Any]] = []

    def repeat(content: dict[str, Any]) -> None:
        objects, images = content["annotations"], sorted(content["images"], key=lambda i: i["id"])
        content["images"], content["annotations"] = [], []
        for image, weight in zip(images, weights.tolist(), strict=True):
            for copy in range(weight):
                number = {"image_id": image["id"] + 1000 * copy}
                content["images"].append(image | {"id": number["image_id"]})
                mine = [one | number for one in objects if one["image_id"] == image["id"]]
                content["annotations"] += mine
                copies.extend(d | number for d in detections if d["image_id"] == image["id"])
        for place, one in enumerate(content["annotations"]):
            one["id"] = place + 1

    change(root, "val2017", repeat)
    repeated = measured(path, copies)
    weighted = average_precision(classes, weights[None])[0]
    assert weighted.mean() == pytest.approx(100 * repeated.stats[0], abs=1e-9)
    assert abs(weighted.mean() - every.mean()) > 1


def test_intervals_hold_the_value_and_are_the_same_every_time(tmp_path):
    val = open_coco(str(make_coco(tmp_path, val=12)), "val")
    detections = worse(ground_truth(val.annotations))
    found = evaluate(val, detections)
    for name in ("bbox_ap", "bbox_ap50", "bbox_ap75"):
        value, low, high = found[name]
        assert low is not None and high is not None and low < value < high
    assert evaluate(val, detections) == found


def test_results_are_a_coco_file_in_the_order_of_the_images(toy, tmp_path):
    val = open_coco(str(toy), "val")
    detections = worse(ground_truth(val.annotations))
    rows = collect(detections[::-1], val, tmp_path / "one.json.gz")
    assert [row["image_id"] for row in rows] == sorted(row["image_id"] for row in detections)
    by_score = sorted(detections, key=lambda row: row["score"])
    assert sorted(rows, key=lambda row: row["score"]) == by_score
    collect(detections[::-1], val, tmp_path / "two.json.gz")
    content = (tmp_path / "one.json.gz").read_bytes()
    assert content == (tmp_path / "two.json.gz").read_bytes()
    assert json.loads(gzip.decompress(content)) == rows
    assert collect([], val, tmp_path / "none.json.gz") == []
    fewer = replace(val, image_ids=val.image_ids[:2])
    first = [row for row in detections if row["image_id"] < 102]
    assert len(collect(first, fewer, tmp_path / "few.json.gz")) == len(first)
