"""The bundled scenes of digits: what they show, in COCO's layout and in VOC's."""

import numpy as np
import pytest

from harness import bundles, coco_eval, inventory, scenes
from harness.coco import open_coco, open_coco_pair
from harness.data import locate, open_split
from harness.errors import UserError
from harness.scale import SCALES
from protocols.coco_maskrcnn import VARIANTS
from protocols.voc07_svm import VISSL
from tests.harness.coco_toy import ground_truth


@pytest.fixture(scope="module", autouse=True)
def folder(tmp_path_factory):
    """The scenes, drawn into a cache of the tests' own, without DATA_ROOT."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        patch.delenv("DATA_ROOT", raising=False)
        yield scenes.folder()


def test_a_scene_holds_two_to_four_digits_in_places_of_their_own():
    for scene in scenes.draw_scenes("train", 50):
        assert scene.pixels.shape in ((480, 640), (640, 480))
        assert 2 <= len(scene.digits) <= 4
        assert np.sum(scene.masks, axis=0).max() == 1
        for mask in scene.masks:
            assert 100 < mask.sum() < 240**2 and scene.pixels[mask].mean() > 100
        assert scene.pixels[~np.any(scene.masks, axis=0)].mean() < 15


def test_val_is_drawn_from_vals_digits_and_twice_the_same(monkeypatch):
    first, again = (scenes.draw_scenes("val", 3) for _ in range(2))
    for a, b in zip(first, again, strict=True):
        assert np.array_equal(a.pixels, b.pixels) and a.digits == b.digits
    asked, read = [], bundles.read_mnist5k
    monkeypatch.setattr(bundles, "read_mnist5k", lambda split: asked.append(split) or read(split))
    scenes.draw_scenes("val", 1)
    assert asked == ["val"]
    assert not np.array_equal(scenes.draw_scenes("train", 1)[0].pixels, first[0].pixels)


def test_cocos_and_vocs_layout_tell_the_same_digits():
    for split, count in (("train", 200), ("val", 100)):
        boxes, labels = open_coco(scenes.NAME, split), open_split(scenes.NAME, split)
        assert len(boxes) == len(labels) == count
        assert boxes.classes == labels.classes == list("0123456789")
        for position, row in enumerate(labels.labels):
            shown = {one["category_id"] - 1 for one in boxes.objects(position)}
            assert shown == set(np.flatnonzero(row == 1).tolist())
            assert (boxes.load(position) == labels.load(position)).all()
        assert (labels.labels == 1).sum(axis=0).min() >= count // 10  # of each digit


def test_the_annotations_detected_as_they_are_have_an_average_precision_of_100(folder):
    val = open_coco(scenes.NAME, "val")
    found = coco_eval.evaluate(val, ground_truth(folder / "annotations/instances_val2017.json"))
    # Of small, medium and large objects, too.
    assert {estimate.value for estimate in found.values()} == {100.0} and len(found) == 12


def test_the_demo_needs_no_data_of_ones_own():
    demo = SCALES["demo"]
    detection, svm = VARIANTS["moco_fpn"].scaled(demo), VISSL.scaled(demo)
    assert detection.dataset == svm.dataset == scenes.NAME
    assert VISSL.scaled(SCALES["cifar10"]).dataset == "voc07"
    assert [len(split) for split in open_coco_pair(scenes.NAME)] == [200, 100]


def test_the_doctor_counts_them():
    parts = inventory.take(scenes.NAME)
    assert inventory.problems(scenes.NAME, parts) == []
    assert inventory.describe(parts) == "200 + 100 images of 10 classes, 64 files read"


def test_two_processes_that_draw_at_once_both_find_them(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    inner = []

    def draw(split, count, draw=scenes.draw_scenes):
        if not inner:  # another process is done first
            inner.append(True)
            inner.append(scenes.folder())
        return draw(split, count)

    monkeypatch.setattr(scenes, "draw_scenes", draw)
    assert scenes.folder() == inner[1] == locate(scenes.NAME)
    assert [path.name for path in (tmp_path / "ssl-reproduce").iterdir()] == ["mnist5k-scenes-1"]


def test_drawing_that_is_cut_short_leaves_nothing_that_looks_whole(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))

    def fail(split, count, draw=scenes.draw_scenes):
        if split == "val":
            raise OSError(28, "No space left on device")
        return draw(split, count)

    with monkeypatch.context() as patch:
        patch.setattr(scenes, "draw_scenes", fail)
        with pytest.raises(
            UserError, match=r"-1 cannot be written \(No space left on device\); let"
        ):
            scenes.folder()
    assert list((tmp_path / "ssl-reproduce").iterdir()) == []
    assert len(open_coco(scenes.NAME, "train")) == 200
