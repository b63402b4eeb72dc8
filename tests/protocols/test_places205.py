from __future__ import annotations

from dataclasses import replace

from harness.scale import SCALES
from protocols import places205
from tests.protocols.toys import LINEAR_TOY, PixelBackbone, toy_data


def test_the_variants_carry_the_papers_settings():
    shown = {
        name: (v.lr, v.batch_size, v.weight_decay, v.epochs, v.milestones)
        for name, v in places205.VARIANTS.items()
    }
    assert shown == {
        "imsvd": ((0.01,), 256, 5e-4, 14, (5, 10)),
        "barlow_twins": ((0.01,), 256, 5e-4, 14, (5, 10)),
        "vicreg": ((0.003,), 256, 1e-4, 28, (4, 8, 12)),
    }
    assert all(v.schedule == "steps" and v.drop == 0.1 for v in places205.VARIANTS.values())


def test_scenes_that_pixels_tell_apart_give_100_and_shuffled_labels_chance(tmp_path):
    settings = {
        name: getattr(LINEAR_TOY, name)
        for name in ("transform", "train_view", "lr", "batch_size", "epochs", "holdout")
    }
    protocol = replace(places205.IMSVD, **settings, milestones=(8, 10))
    with toy_data():
        solved = protocol.run(PixelBackbone(), tmp_path / "toy")
    assert {name: found.value for name, found in solved.items()} == {
        "places205_top1": 100.0,
        "places205_top5": 100.0,
    }
    with toy_data(shuffled=1.0):
        chance = protocol.run(PixelBackbone(), tmp_path / "shuffled")
    assert abs(chance["places205_top1"].value - 100 / 6) < 8
    low, high = chance["places205_top1"].low, chance["places205_top1"].high
    assert low is not None and high is not None and low < 100 / 6 < high


def test_another_scale_looks_at_its_own_images():
    small = places205.IMSVD.scaled(SCALES["demo"])
    assert (small.dataset, small.schedule) == ("mnist5k", "cosine")
