from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import reproduce
from harness.record import Record
from results.explain import differences, explain

PROTOCOL = {
    "class": "protocols.knn.KNN",
    "version": 1,
    "dataset": "imagenet",
    "transform": {"class": "harness.views.CenterCrop", "interpolation": "bicubic", "size": 224},
    "k": [20],
}


def record(folder: Path, name: str, hits: list[bool], **changes) -> Path:
    """A record whose ten predictions are right where `hits` says so."""
    labels = np.arange(10)
    found = np.where(hits, labels, -1)
    np.savez(folder / f"{name}.npz", indices=labels, labels=labels, knn_20=found)
    values = {
        "key": name,
        "slot": name,
        "recipe": None,
        "protocol": PROTOCOL,
        "seed": 0,
        "metrics": {"knn_20": 100 * float(np.mean(hits))},
        "intervals": {"knn_20": [10.0, 90.0]},
        "checkpoint": {"path": "a.pth", "sha256": "aa", "arch": "resnet50", "family": "dino"},
        "data": {"val": {"checksum": "v", "images": 10, "classes": 10}},
        "predictions": str(folder / f"{name}.npz"),
        "environment": {"commit": "c1", "versions": {"torch": "2.14"}, "host": "n1"},
    }
    return Record(**(values | changes)).save(folder)


def test_every_difference_is_named_with_what_it_does_the_weightiest_first(tmp_path):
    bilinear = PROTOCOL | {"transform": PROTOCOL["transform"] | {"interpolation": "bilinear"}}
    a = record(tmp_path, "a", [True] * 8 + [False] * 2)
    b = record(
        tmp_path,
        "b",
        [True] * 6 + [False] * 4,
        protocol=bilinear,
        data={"val": {"checksum": "w", "images": 10, "classes": 10}},
        environment={"commit": "c2", "versions": {"torch": "2.15"}, "host": "n2"},
    )
    named = differences(Record.load(a), Record.load(b))
    assert [d.name for d in named] == [
        "protocol.transform.interpolation",
        "data.val.checksum",
        "environment.commit",
        "environment.versions.torch",
        "environment.host",
        "predictions",
    ]
    found = {d.name: (d.first, d.second, d.effect.partition(":")[0]) for d in named[:-1]}
    assert found == {
        "protocol.transform.interpolation": ("bicubic", "bilinear", "moves the number"),
        "data.val.checksum": ("v", "w", "other images"),
        "environment.commit": ("c1", "c2", "may move it"),
        "environment.versions.torch": ("2.14", "2.15", "last digits"),
        "environment.host": ("n1", "n2", "nothing"),
    }


def test_the_same_images_are_compared_pair_by_pair(tmp_path):
    a = record(tmp_path, "a", [True] * 8 + [False] * 2)
    b = record(tmp_path, "b", [False] * 6 + [True] * 3 + [False])
    shown = explain(a, b)
    # Only A: 6 images, only B: 1; of 7 coin tosses at most 1 or at least 6: 16/128.
    assert "only A right: 6, only B: 1 (p = 0.12)" in shown
    assert "80.00 (10.00 - 90.00)" in shown and "-50.00" in shown


def test_equal_records_have_nothing_to_explain(tmp_path):
    a = record(tmp_path, "a", [True] * 10)
    assert "right on the same images" in explain(a, a)
    assert explain(a, a).endswith("the records say nothing that would explain a difference")


def test_predictions_that_are_gone_only_leave_the_pairs_out(tmp_path):
    a = record(tmp_path, "a", [True] * 10)
    b = record(tmp_path, "b", [True] * 9 + [False])
    (tmp_path / "b.npz").unlink()
    assert "-10.00" in explain(a, b) and "only A" not in explain(a, b)


@pytest.mark.parametrize(
    ("content", "said"), [(None, "cannot be read"), ("{}", "is not a record"), ("<html>", "is not")]
)
def test_what_is_no_record_is_one_sentence_and_status_2(tmp_path, capsys, content, said):
    a = record(tmp_path, "a", [True] * 10)
    other = tmp_path / "other.json"
    if content is not None:
        other.write_text(content)
    assert reproduce.main(["explain", str(a), str(other)]) == 2
    error = capsys.readouterr().err
    assert said in error and len(error.splitlines()) == 1


def test_the_command_prints_the_explanation(tmp_path, capsys):
    a = record(tmp_path, "a", [True] * 10)
    assert reproduce.main(["explain", str(a), str(a)]) == 0
    assert "knn_20" in capsys.readouterr().out
