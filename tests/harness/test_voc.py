from __future__ import annotations

import hashlib
import os
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from harness.data import open_split
from harness.errors import UserError
from harness.features import open_pair

LISTS = {
    "cat_trainval": "000012  1\n000005 -1\n000007  0\n",
    "train_trainval": "000005  1\n000007 -1\n000012 -1\n",
    "cat_test": "000001 1\n000002 -1\n",
    "train_test": "000001 -1\n000002 0\n",
}


@pytest.fixture
def root(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("DATA_ROOT", str(tmp_path))
    return tmp_path


def write_voc(folder: Path) -> Path:
    """Five images of two classes, one of them called `train`."""
    for part in ("ImageSets/Main", "JPEGImages"):
        (folder / part).mkdir(parents=True)
    for name, text in LISTS.items():
        (folder / "ImageSets" / "Main" / f"{name}.txt").write_text(text)
    (folder / "ImageSets" / "Main" / "trainval.txt").write_text("000005\n000007\n000012\n")
    for number in (1, 2, 5, 7, 12):
        pixels = np.full((6, 8, 3), 10 * number, dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "JPEGImages" / f"{number:06d}.jpg")
    return folder


def test_train_is_trainval_val_is_test_and_labels_are_the_lists(root):
    write_voc(root / "VOCdevkit" / "VOC2007")
    train, test = open_split("voc07", "train"), open_split("voc07", "val")
    assert train.classes == test.classes == ["cat", "train"]
    assert train.labels.dtype == np.int64
    # In the order of the images' names.
    assert train.labels.tolist() == [[-1, 1], [0, -1], [1, -1]]
    assert test.labels.tolist() == [[1, -1], [-1, 0]]
    assert [int(train.load(row).float().mean().round()) for row in range(3)] == [50, 70, 120]
    assert train.describe() == {"checksum": train.checksum, "images": 3, "classes": 2}


@pytest.mark.parametrize("place", ["VOCdevkit/VOC2007", "VOC2007", "voc07", "."])
def test_voc07_is_found_in_the_usual_places(root, place):
    write_voc(root / place)
    assert len(open_split("voc07", "val")) == 2


def test_any_folder_of_that_layout_is_a_data_set_by_name_and_by_path(root):
    write_voc(root / "mini")
    by_name, by_path = open_split("mini", "train"), open_split(str(root / "mini"), "train")
    assert by_name.checksum == by_path.checksum and len(by_name) == 3


def test_the_checksum_is_over_classes_names_sizes_and_labels(root):
    folder = write_voc(root / "mini")
    size = [(folder / f"JPEGImages/{n:06d}.jpg").stat().st_size for n in (1, 2)]
    text = f"cat\0train000001\0{size[0]}\0[1, -1]\n000002\0{size[1]}\0[-1, 0]\n"
    before = open_split("mini", "val").checksum
    assert before == hashlib.sha256(text.encode()).hexdigest()
    (folder / "ImageSets/Main/cat_test.txt").write_text("000001 1\n000002 1\n")
    assert open_split("mini", "val").checksum != before


def test_missing_and_damaged_files_are_named(root):
    with pytest.raises(UserError, match=r"'voc07' needs .*VOCdevkit/VOC2007.*VOCtest_06-Nov-2007"):
        open_split("voc07", "train")
    folder = write_voc(root / "mini")
    lists = folder / "ImageSets" / "Main"
    (lists / "cat_test.txt").write_text("000001 1\n000002 2\n")
    with pytest.raises(UserError, match=r"line 2 of .*cat_test.txt is '000002 2', not an image's"):
        open_split("mini", "val")
    (lists / "cat_test.txt").write_text("000001 1\n000003 1\n")
    with pytest.raises(UserError, match=r"do not list the same images \(000002\)"):
        open_split("mini", "val")
    (lists / "cat_test.txt").write_text("\n")
    with pytest.raises(UserError, match=r"cat_test.txt lists no images"):
        open_split("mini", "val")
    for name in ("cat_test.txt", "train_test.txt"):
        (lists / name).unlink()
    with pytest.raises(UserError, match=r"no lists <class>_test.txt; unpack VOCtest_06-Nov-2007"):
        open_split("mini", "val")
    (folder / "JPEGImages" / "000007.jpg").unlink()
    with pytest.raises(UserError, match=r"lacks 1 of the 3 images listed, 000007.jpg first"):
        open_split("mini", "train")


def test_protocols_of_one_label_an_image_refuse_it(root):
    write_voc(root / "mini")
    with pytest.raises(UserError, match=r"'mini' has several labels an image"):
        open_pair("mini")


def objects(path: Path) -> dict[str, bool]:
    """Whether an image shows more than difficult objects of each class in it."""
    found: dict[str, bool] = {}
    for item in ElementTree.parse(path).iter("object"):
        name = item.findtext("name", "")
        found[name] = found.get(name, False) or item.findtext("difficult") == "0"
    return found


@pytest.mark.skipif(
    not Path(os.environ.get("DATA_ROOT", ""), "voc2007-mini", "Annotations").is_dir(),
    reason="needs voc2007-mini below DATA_ROOT",
)
def test_the_labels_of_real_images_are_what_their_annotations_say():
    for split, images in (("train", 388), ("val", 403)):
        data = open_split("voc2007-mini", split)
        assert len(data) == images and len(data.classes) == 20
        assert data.listing is not None
        for row in range(images):
            path = data.listing.path(row)
            shown = objects(path.parents[1] / "Annotations" / f"{path.stem}.xml")
            expected = [(1 if shown[name] else 0) if name in shown else -1 for name in data.classes]
            assert data.labels[row].tolist() == expected, path.name
