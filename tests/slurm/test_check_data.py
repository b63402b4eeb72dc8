"""The doctor's check of data sets, on good and on broken ones."""

import hashlib
import json
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from harness import data, inventory, subsets
from harness.errors import UserError
from harness.inventory import Published, order_of
from slurm.check_data import check_data, check_dataset
from tests.slurm.doctor_toys import real, subject


@pytest.fixture
def root(tmp_path, monkeypatch):
    """An empty DATA_ROOT."""
    monkeypatch.setenv("DATA_ROOT", str(tmp_path))
    return tmp_path


def images(folder: Path, *names: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        Image.new("RGB", (8, 8)).save(folder / name)


def fill(folder: Path, classes=("n1", "n2"), val=1) -> None:
    for name in classes:
        images(folder / "train" / name, "a.jpg", "b.png")
        images(folder / "val" / name, *(f"{number}.jpg" for number in range(val)))


def toy(**changes) -> Published:
    known = Published(
        train=4, val=2, classes=2, order=order_of(("n1", "n2")), range="n1 … n2", val_per_class=1
    )
    return replace(known, **changes)


def test_a_whole_data_set_is_counted_and_sampled(root, monkeypatch):
    fill(root / "imagenet")
    monkeypatch.setitem(inventory.PUBLISHED, "imagenet", toy())
    check = check_dataset("imagenet", "2 pretrainings")
    assert check.ok
    assert check.found == "4 + 2 images of 2 classes, 6 files read, for 2 pretrainings"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train": 5}, "train has 4 images, not 5"),
        ({"val": 3, "val_per_class": None}, "val has 2 images, not 3"),
        ({"classes": 3}, "train has 2 classes, not 3"),
        (
            {"order": order_of(("n2", "n1"))},
            "n1 … n2, are not in order the published ones (n1 … n2)",
        ),
        ({"val_per_class": 2}, "val has 1 images of class n1, not 2"),
    ],
)
def test_what_differs_from_the_published_set_is_named(root, monkeypatch, changes, message):
    fill(root / "imagenet")
    monkeypatch.setitem(inventory.PUBLISHED, "imagenet", toy(**changes))
    check = check_dataset("imagenet", "1 evaluation")
    assert not check.ok
    assert message in check.found
    assert check.mend.startswith("unpack imagenet again")


def test_a_missing_data_set_says_how_to_get_it(root):
    check = check_dataset("imagenet", "1 evaluation")
    assert not check.ok
    assert check.mend.startswith("register at image-net.org")


def test_the_command_that_a_missing_imagenet100_prints_links_its_classes(root, monkeypatch):
    fill(root / "imagenet", classes=("n1", "n2", "n3"))
    missing = check_dataset("imagenet100", "1 pretraining")
    assert not missing.ok
    assert missing.mend.startswith("put imagenet100.txt of the GitHub repository HobbitLong/CMC")
    folder = root / "imagenet100"
    folder.mkdir()
    (folder / "imagenet100.txt").write_text("n3\nn1\n")
    command = missing.mend.partition(": ")[2]
    subprocess.run(["bash", "-c", command], cwd=folder, check=True)
    monkeypatch.setitem(inventory.PUBLISHED, "imagenet100", toy(order=order_of(("n1", "n3"))))
    check = check_dataset("imagenet100", "1 pretraining")
    assert (check.ok, check.found) == (
        True,
        "4 + 2 images of 2 classes, 6 files read, for 1 pretraining",
    )
    train = data.open_split("imagenet100", "train")
    assert (train.name, train.classes) == ("imagenet100", ["n1", "n3"])
    assert train.listing is not None
    assert train.listing.paths.tolist() == [b"n1/a.jpg", b"n1/b.png", b"n3/a.jpg", b"n3/b.png"]


def test_an_unreadable_file_is_found(root):
    fill(root / "mine")
    (root / "mine" / "train" / "n2" / "b.png").write_bytes(b"\x89PNG no more")
    check = check_dataset("mine", "1 pretraining")
    assert not check.ok
    assert "n2/b.png is not a readable image" in check.found


def test_a_flat_val_folder_is_no_val_split(root):
    fill(root / "mine")
    images(root / "flat" / "val", "a.jpg")
    images(root / "flat" / "train" / "n1", "a.jpg")
    assert check_dataset("mine", "1 pretraining").ok
    check = check_dataset("flat", "1 pretraining")
    assert not check.ok
    assert "flat/val holds no images in class folders" in check.found


def test_classes_of_one_split_alone_are_named(root):
    fill(root / "mine")
    images(root / "mine" / "val" / "n3", "a.jpg")
    found = check_dataset("mine", "1 pretraining").found
    assert "train and val differ in 1 classes, n3 among them" in found


def coco_split(folder: Path, split: str, count: int, ids=(1, 2)) -> None:
    names = [f"{split}{number}.jpg" for number in range(count)]
    images(folder / f"{split}2017", *names)
    content = {
        "images": [{"id": n, "file_name": name} for n, name in enumerate(names)],
        "annotations": [],
        "categories": [{"id": number, "name": str(number)} for number in ids],
    }
    (folder / "annotations").mkdir(exist_ok=True)
    (folder / "annotations" / f"instances_{split}2017.json").write_text(json.dumps(content))


def test_coco_is_counted_without_parsing_its_annotations(root, monkeypatch):
    coco_split(root / "coco", "train", 3)
    coco_split(root / "coco", "val", 2)
    known = Published(train=3, val=2, classes=2, order=order_of(("1", "2")))
    monkeypatch.setitem(inventory.PUBLISHED, "coco", known)
    check = check_dataset("coco", "1 evaluation")
    assert check.ok
    assert check.found.startswith("3 + 2 images of 2 classes")
    (root / "coco" / "train2017" / "train1.jpg").unlink()
    check = check_dataset("coco", "1 evaluation")
    assert not check.ok
    assert "lists 3 images and" in check.found


def test_coco_annotations_cut_short_are_found(root):
    coco_split(root / "coco", "train", 1)
    coco_split(root / "coco", "val", 1)
    path = root / "coco" / "annotations" / "instances_val2017.json"
    path.write_text(path.read_text()[:-20])
    check = check_dataset("coco", "1 evaluation")
    assert not check.ok
    assert "is not a file of COCO instances" in check.found


def test_voc_is_looked_for_where_evaluations_look(root, monkeypatch):
    folder = root / "VOC2007"
    for part in ("trainval", "test"):
        images(folder / "JPEGImages", f"{part}.jpg")
        for name in ("cat", "dog"):
            (folder / "ImageSets" / "Main").mkdir(parents=True, exist_ok=True)
            (folder / "ImageSets" / "Main" / f"{name}_{part}.txt").write_text(f"{part} 1\n")
    known = Published(train=1, val=1, classes=2, order=order_of(("cat", "dog")))
    monkeypatch.setitem(inventory.PUBLISHED, "voc07", known)
    assert check_dataset("voc07", "1 evaluation").ok
    (folder / "JPEGImages" / "test.jpg").unlink()
    assert "lacks 1 of the 1 images" in check_dataset("voc07", "1 evaluation").found


def test_the_published_order_of_bundled_digits_and_of_a_tenth_of_them_holds():
    check = check_dataset("mnist5k@400", "1 evaluation")
    assert check.ok
    assert check.found.startswith("4,000 + 1,000 images of 10 classes")


def test_data_sets_are_those_of_the_recipe_and_of_the_protocol(tmp_path):
    table = real("imsvd:RESNET50", "coco_maskrcnn:imsvd_c4")
    assert subject(tmp_path, table).datasets == {
        "imagenet": "1 pretraining",
        "coco": "1 evaluation",
    }


def test_simclrs_lists_are_told_by_their_hash(root, monkeypatch):
    fill(root / "imagenet")
    monkeypatch.setitem(inventory.PUBLISHED, "imagenet", toy())
    content = b"n1_1.JPEG\nn2_7.JPEG\n"
    known = subsets.SIMCLR_LISTS[1.0]._replace(sha256=hashlib.sha256(content).hexdigest())
    monkeypatch.setitem(subsets.SIMCLR_LISTS, 1.0, known)
    asked = subject(root, real("imsvd:RESNET50", "semisup:vicreg_1"))
    missing = list(check_data(asked))
    assert [check.ok for check in missing] == [True, False]
    assert "1percent.txt is in none of" in missing[1].found
    (root / "imagenet" / "1percent.txt").write_bytes(content)
    assert list(check_data(asked))[1].found == "2 images on 1percent.txt"
    (root / "imagenet" / "1percent.txt").write_bytes(content[:-3])
    assert "so it names other images" in list(check_data(asked))[1].found


def test_imagenets_order_is_that_of_its_sorted_synsets():
    from timm.data import ImageNetInfo

    names = ImageNetInfo("imagenet-1k").label_names()
    assert inventory.PUBLISHED["imagenet"].order == order_of(names)
    assert inventory.PUBLISHED["imagenet"].classes == len(names)


def test_cifar10_is_looked_for_in_batches_or_folders(root):
    with pytest.raises(UserError, match="cifar-10-python"):
        data.locate("cifar10")
    (root / "cifar10" / "cifar-10-batches-bin").mkdir(parents=True)
    assert data.locate("cifar10@10000") == root / "cifar10"
