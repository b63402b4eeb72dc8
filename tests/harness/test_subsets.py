from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from harness import subsets
from harness.data import open_split
from harness.errors import UserError
from harness.subsets import SIMCLR_LISTS, balanced, labelled_subset
from tests.protocols.toys import toy_split

LISTED = ["n02_7.JPEG", "n01_3.JPEG", "n03_1.JPEG", "n01_12.JPEG"]
LIST = "".join(f"{name}\n" for name in LISTED)


@pytest.fixture
def imagenet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """DATA_ROOT with an `imagenet` of three classes, whose 1 % list is `LIST`."""
    for split, numbers in (("train", (1, 3, 7, 12)), ("val", (1,))):
        for wnid in ("n01", "n02", "n03"):
            folder = tmp_path / "imagenet" / split / wnid
            folder.mkdir(parents=True)
            for number in numbers:
                (folder / f"{wnid}_{number}.JPEG").write_bytes(b"never decoded")
    monkeypatch.setenv("DATA_ROOT", str(tmp_path))
    known = subsets._List("1percent.txt", hashlib.sha256(LIST.encode()).hexdigest())
    monkeypatch.setitem(subsets.SIMCLR_LISTS, 1.0, known)
    return tmp_path


def put(folder: Path, text: str = LIST) -> None:
    folder.mkdir(exist_ok=True)
    (folder / "1percent.txt").write_text(text)


def test_simclr_lists_are_known_by_the_checksums_of_the_released_files():
    assert {percent: tuple(known) for percent, known in SIMCLR_LISTS.items()} == {
        1.0: (
            "1percent.txt",
            "71e82a48ba78252683ae334c4d019ebd5c6e855b9599c1389fbe83eb9549cf17",
        ),
        10.0: (
            "10percent.txt",
            "6d09de11e7bdaf5b1f3b1f249b6183695f97310cdd20f0c03e7235b6b9392091",
        ),
    }


@pytest.mark.parametrize("place", ["imagenet_subsets", "imagenet", "elsewhere"])
def test_a_list_is_found_at_each_of_its_places_and_names_the_images(imagenet, place):
    data = open_split("imagenet", "train")
    if place == "elsewhere":
        (imagenet / "imagenet").rename(imagenet / "elsewhere")
        data = replace(open_split(str(imagenet / "elsewhere"), "train"), name="imagenet")
    put(imagenet / place)
    subset = labelled_subset(data, 1.0, "auto", seed=0)
    assert data.listing is not None
    names = [data.listing.path(index).name for index in subset.indices]
    assert names == sorted(LISTED) and np.all(np.diff(subset.indices) > 0)
    assert subset.describe() == {
        "checksum": hashlib.sha256(LIST.encode()).hexdigest(),
        "images": 4,
        "classes": 3,
        "list": "simclr 1percent.txt",
    }


def test_a_list_with_another_checksum_is_refused_and_told_apart(imagenet):
    put(imagenet / "imagenet_subsets", LIST.replace("\n", "\r\n"))
    found = hashlib.sha256(LIST.replace("\n", "\r\n").encode()).hexdigest()
    said = f"imagenet_subsets/1percent.txt has the SHA-256 {found} and SimCLR's list has"
    with pytest.raises(UserError, match=said) as error:
        labelled_subset(open_split("imagenet", "train"), 1.0, "simclr", seed=0)
    assert "GitHub repository google-research/simclr, folder imagenet_subsets" in str(error.value)
    put(imagenet / "imagenet")  # the right one, further on
    assert len(labelled_subset(open_split("imagenet", "train"), 1.0, "simclr", 0).indices) == 4


def test_a_list_that_is_nowhere_is_asked_for_with_the_places_and_the_way_out(imagenet):
    said = r"1percent.txt is in none of .*/imagenet_subsets, .*/imagenet; copy it as it is from"
    with pytest.raises(UserError, match=said):
        labelled_subset(open_split("imagenet", "train"), 1.0, "auto", seed=0)


def test_every_listed_image_has_to_be_there(imagenet):
    put(imagenet / "imagenet")
    (imagenet / "imagenet" / "train" / "n01" / "n01_12.JPEG").unlink()
    (imagenet / "imagenet" / "train" / "n03" / "n03_1.JPEG").unlink()
    said = "2 of the 4 images of SimCLR's list 1percent.txt are not in .*, n03/n03_1.JPEG among"
    with pytest.raises(UserError, match=said):
        labelled_subset(open_split("imagenet", "train"), 1.0, "auto", seed=0)


@pytest.mark.parametrize(
    ("percent", "kind", "said"),
    [
        (5.0, "simclr", "none of 5; use --percent 1 or 10, or --subset balanced"),
        (1.0, "simclr", "toy has none; use --subset balanced"),
        (0.0, "balanced", "percent=0 of the train images can't be labelled"),
        (101.0, "auto", "percent=101 of the train images can't be labelled"),
    ],
)
def test_what_cannot_be_labelled_is_refused_in_one_sentence(percent, kind, said):
    with pytest.raises(UserError, match=said):
        labelled_subset(toy_split("train"), percent, kind, seed=0)


def test_draws_give_every_class_the_same_number_give_or_take_one():
    # As many images as SimCLR's 1 % list, in classes as unequal as ImageNet's.
    labels = np.repeat(np.arange(1000), np.linspace(732, 1830, 1000).astype(int))
    chosen = balanced(labels, 1.0, seed=0)
    assert len(labels) == 1_280_505 and len(chosen) == 12_805
    assert np.bincount(np.bincount(labels[chosen])).tolist() == [0] * 12 + [195, 805]


@pytest.mark.parametrize("seed", range(5))
def test_one_percent_is_part_of_ten_percent_of_the_same_seed(seed):
    labels = np.repeat(np.arange(7), [30, 40, 50, 60, 70, 80, 90])
    smaller = np.array([], dtype=np.int64)
    for percent in (0.5, 1.0, 2.0, 3.0, 10.0, 33.0, 100.0):
        larger = balanced(labels, percent, seed)
        assert np.isin(smaller, larger).all() and np.unique(larger).size == len(larger)
        smaller = larger
    assert len(smaller) == 420


def test_every_class_gives_at_least_one_image_and_at_most_all_it_has():
    labels = np.repeat([0, 1, 2], [100, 98, 2])
    assert np.bincount(labels[balanced(labels, 0.1, 0)]).tolist() == [1, 1, 1]
    assert np.bincount(labels[balanced(labels, 15.0, 0)]).tolist() == [14, 14, 2]


def test_five_seeds_draw_independently_and_always_the_same():
    labels = np.arange(5000) % 10
    drawn = [balanced(labels, 10.0, seed) for seed in range(5)]
    for first in range(5):
        assert np.array_equal(balanced(labels, 10.0, first), drawn[first])
        for second in range(first):
            # 500 of 5,000 twice: 50 shared ones, standard deviation 6.4.
            assert 18 < np.isin(drawn[first], drawn[second]).sum() < 82
    # Stateless draws: these positions never change.
    assert drawn[0][:6].tolist() == [9, 16, 38, 40, 41, 45]


def test_a_drawn_subset_is_described_by_the_checksum_of_its_positions():
    data = toy_split("train")
    subset = labelled_subset(data, 10.0, "auto", seed=3)
    text = "".join(f"{index}\n" for index in balanced(data.labels, 10.0, 3))
    assert subset.describe() == {
        "checksum": hashlib.sha256(text.encode()).hexdigest(),
        "images": 33,
        "classes": 6,
        "list": "balanced",
    }
