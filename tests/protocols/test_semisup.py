from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from harness import finetune
from harness.backbone import build_backbone
from harness.bootstrap import accuracy
from harness.checkpoint import save_backbone
from harness.classifier import Classifier, build_optimizer, set_rates
from harness.command import main
from harness.errors import UserError
from harness.recipe import BackboneSpec
from harness.record import Record
from harness.scale import SCALES
from harness.views import View
from protocols import semisup
from protocols.semisup import SemiSup
from tests.gloo import run_on
from tests.harness.test_finetune import KilledError, TinyBackbone, tuned
from tests.protocols.toys import SIDE, TRANSFORM, PixelBackbone, toy_data, toy_split

TOY = SemiSup(
    dataset="toy",
    percent=20.0,  # 66 images, 11 of each class
    train_view=View(size=SIDE, scale=(0.8, 1.0), jitter_p=0.0, gray_p=0.0),
    transform=TRANSFORM,
    lr=(0.01,),
    head_lr=(0.3,),
    batch_size=22,
    epochs=(10,),
)


def test_a_solvable_toy_gives_100_percent_with_batch_norm_and_without(tmp_path):
    with toy_data():
        for name, backbone in (("pixels", PixelBackbone()), ("bn", TinyBackbone(32))):
            metrics = replace(TOY, epochs=(20,), sync_bn=True).run(backbone, tmp_path / name)
            assert {key: found.value for key, found in metrics.items()} == {
                "semisup_top1": 100.0,
                "semisup_top5": 100.0,
            }


def test_shuffled_labels_give_chance(tmp_path):
    with toy_data(shuffled=1.0, images=1200):
        metrics = TOY.run(TinyBackbone(), tmp_path)
    # Six classes: 16.7 %, the five likeliest 83.3 %, standard deviation 1.1.
    assert 11.0 < metrics["semisup_top1"].value < 22.5
    assert 77.5 < metrics["semisup_top5"].value < 89.0


def test_accuracies_are_those_of_the_predictions_written(tmp_path):
    with toy_data(noise=190, shuffled=0.3):
        metrics = replace(TOY, epochs=(2,)).run(TinyBackbone(), tmp_path)
    with np.load(tmp_path / "predictions.npz") as found:
        hits = found["top5"] == found["labels"][:, None]
        assert found["indices"].tolist() == list(range(330)) and found["top5"].shape == (330, 5)
    assert metrics["semisup_top1"] == accuracy(hits[:, 0])
    assert metrics["semisup_top5"] == accuracy(hits.any(axis=1))
    assert metrics["semisup_top1"].low < metrics["semisup_top1"].value < 90


@pytest.mark.parametrize("killed_at", [2, 9])
def test_a_killed_grid_ends_with_the_same_predictions_as_an_uninterrupted_one(
    tmp_path, monkeypatch, killed_at
):
    protocol = replace(TOY, lr=(0.01, 0.05), head_lr=(0.1, 0.3), epochs=(1, 2), holdout=0.3)
    step, taken = finetune._step, 0

    def killing(*args):
        nonlocal taken
        if taken == killed_at:
            raise KilledError
        taken += 1
        return step(*args)

    with toy_data(noise=190):
        whole = protocol.run(TinyBackbone(), tmp_path / "whole")
        with monkeypatch.context() as patched, pytest.raises(KilledError):
            patched.setattr(finetune, "_step", killing)
            protocol.run(TinyBackbone(), tmp_path / "killed")
        assert protocol.run(TinyBackbone(), tmp_path / "killed") == whole
    with (
        np.load(tmp_path / "whole" / "predictions.npz") as one,
        np.load(tmp_path / "killed" / "predictions.npz") as two,
    ):
        assert np.array_equal(one["top5"], two["top5"])


def test_the_useful_rate_is_chosen_on_images_held_out_of_the_labelled_ones(tmp_path, capsys):
    with toy_data():
        metrics = replace(TOY, lr=(1e-9, 0.01), head_lr=(1e-9, 0.3)).run(PixelBackbone(), tmp_path)
    said = capsys.readouterr().err
    assert metrics["semisup_top1"].value == 100.0
    assert "lr 1e-09, head 1e-09, 10 epochs: " in said and "chosen: lr 0.01, 10 epochs" in said
    # Two trials without the held-out images, and the chosen one with them.
    assert len(list((tmp_path / "finetune").iterdir())) == 3


def test_held_out_images_are_never_trained_on():
    train = toy_split("train")
    labelled = replace(TOY, percent=50.0)._labelled(train)
    kept, held = TOY._hold_out(train, labelled)
    assert len(held) == 18 and np.bincount(train.labels[held]).tolist() == [3] * 6
    both = np.sort(np.concatenate([kept, held]))
    assert np.array_equal(both, labelled.indices)
    others = replace(TOY, held_out_of="train", holdout=0.2)
    kept, held = others._hold_out(train, labelled)
    assert np.array_equal(kept, labelled.indices)
    assert len(held) == 33 and not np.isin(held, kept).any()
    with pytest.raises(UserError, match=r"holdout=1\.5 is a share of the labelled images"):
        replace(TOY, holdout=1.5)._hold_out(train, labelled)


def test_the_record_says_which_images_are_labelled():
    with toy_data():
        one, other = TOY.data(), replace(TOY, seed=1).data()
    labelled = one["labelled"]
    assert (labelled["images"], labelled["classes"], labelled["list"]) == (66, 6, "balanced")
    assert one["train"] == other["train"] and one["train"]["images"] == 330
    assert len(labelled["checksum"]) == 64
    assert labelled["checksum"] != other["labelled"]["checksum"]


def on_processes(folder: Path) -> dict[str, Any]:
    """Accuracies of a grid, and what `tuned` gives."""
    with toy_data(noise=190, images=331):
        protocol = replace(TOY, sync_bn=True, lr=(0.01, 0.05), head_lr=(0.1, 0.3), epochs=(2,))
        found = protocol.run(TinyBackbone(), folder)
    return {name: found[name].value for name in found} | tuned(folder / "tuned")


def test_two_processes_equal_one_where_batch_norm_is_synchronised(tmp_path):
    alone = on_processes(tmp_path / "alone")
    first, second = run_on(2, on_processes, tmp_path, tmp_path / "pair")
    with (
        np.load(tmp_path / "alone" / "predictions.npz") as one,
        np.load(tmp_path / "pair" / "predictions.npz") as two,
    ):
        assert one["indices"].tolist() == list(range(331))
        for name in one:
            assert np.array_equal(one[name], two[name]), name
    assert 20 < alone["semisup_top1"] < 95
    assert first.keys() == alone.keys()
    for name, value in first.items():
        # Both processes have the same running statistics, without synchronisation too.
        torch.testing.assert_close(value, second[name], rtol=0, atol=0)
        if not name.startswith("sync False"):
            torch.testing.assert_close(value, alone[name], rtol=1e-4, atol=1e-6)
    assert torch.equal(first["sync True top"], alone["sync True top"])
    assert first["sync True top"].shape == (41, 5)
    buffer = "sync False backbone.trunk.1.running_var"
    assert not torch.allclose(first[buffer], alone[buffer], rtol=1e-4)


def rates(variant: str, *epochs: float) -> list[tuple[float, float]]:
    """Learning rates of trunk and head after so many epochs of the longest training."""
    settings = semisup.VARIANTS[variant]
    trial = settings.trials()[-1]
    optimizer = build_optimizer(Classifier(TinyBackbone(), 6, settings), settings, trial)
    found = []
    for epoch in epochs:
        set_rates(optimizer, settings, epoch, trial.epochs)
        groups = optimizer.param_groups
        found.append((groups[0]["lr"], groups[-1]["lr"]))
    return found


def test_the_variants_carry_the_settings_of_their_sources():
    def settings(name: str) -> tuple:
        v = semisup.VARIANTS[name]
        return (v.lr, v.head_lr or v.lr, v.epochs, v.batch_size, v.schedule)

    grid = (0.005, 0.01, 0.02, 0.05, 0.1)
    assert {name: settings(name) for name in semisup.VARIANTS} == {
        "swav_1": ((0.02,), (5.0,), (20,), 256, "steps"),
        "swav_10": ((0.01,), (0.2,), (20,), 256, "steps"),
        "barlow_twins_code_1": ((0.005,), (0.5,), (20,), 256, "cosine"),
        "barlow_twins_code_10": ((0.005,), (0.5,), (20,), 256, "cosine"),
        "barlow_twins_paper_1": ((0.002,), (0.5,), (20,), 256, "steps"),
        "barlow_twins_paper_10": ((0.002,), (0.5,), (20,), 256, "steps"),
        "vicreg_1": ((0.03,), (0.08,), (20,), 256, "cosine"),
        "vicreg_10": ((0.01,), (0.1,), (20,), 256, "cosine"),
        "byol_1": (grid, grid, (30, 50), 1024, "cosine_by_step"),
        "byol_10": (grid, grid, (30, 50), 1024, "cosine_by_step"),
        "simclr_v1_1": ((0.8,), (0.8,), (60,), 4096, "cosine_by_step"),
        "simclr_v1_10": ((0.8,), (0.8,), (30,), 4096, "cosine_by_step"),
        "simclr_v2_1": ((0.16,), (0.16,), (60,), 1024, "cosine_by_step"),
        "simclr_v2_10": ((0.16,), (0.16,), (30,), 1024, "cosine_by_step"),
        "corinfomax_1": ((0.005,), (10.0,), (20,), 256, "steps"),
        "corinfomax_10": ((0.005,), (20.0,), (20,), 256, "steps"),
        "pirl_1": ((0.01,), (0.01,), (70,), 256, "steps"),
        "pirl_10": ((0.01,), (0.01,), (70,), 256, "steps"),
        "npid_1": ((0.01,), (0.01,), (70,), 256, "steps"),
        "npid_10": ((0.01,), (0.01,), (70,), 256, "steps"),
        "svib_1": ((0.8,), (0.8,), (60,), 4096, "cosine_by_step"),
        "svib_10": ((0.8,), (0.8,), (30,), 4096, "cosine_by_step"),
    }
    for name, variant in semisup.VARIANTS.items():
        method = name.rpartition("_")[0]
        assert variant.percent == float(name.rpartition("_")[2])
        decay = 1e-4 if method == "npid" else 0.0
        assert (variant.weight_decay, variant.momentum, variant.seed) == (decay, 0.9, 0)
        assert (variant.dataset, variant.subset) == ("imagenet", "auto")
        google = method in ("byol", "simclr_v1", "simclr_v2", "svib")
        assert variant.sync_bn == (google or method == "swav")
        assert variant.nesterov == (method in ("byol", "simclr_v1", "svib", "pirl"))
        assert variant.optimizer == ("lars" if method == "simclr_v2" else "sgd")
        assert variant.transform.interpolation == ("bicubic" if google else "bilinear")
        view = variant.train_view
        assert view.interpolation == variant.transform.interpolation
        assert (view.size, view.scale, view.flip_p) == (224, (0.08, 1.0), 0.5)
        assert (view.jitter_p, view.gray_p, view.blur_p) == (0.0, 0.0, 0.0)
    starts = {name: v.head_init for name, v in semisup.VARIANTS.items() if v.head_init != "normal"}
    assert starts == {
        "swav_1": "torch",
        "swav_10": "torch",
        **{f"{m}_{p}": "zeros" for m in ("simclr_v1", "simclr_v2", "svib") for p in (1, 10)},
    }
    # 10,009 of 1,281,167 train images.
    byol = semisup.BYOL_1
    assert byol.held_out_of == "train" and round(byol.holdout * 1_281_167) == 9993


@pytest.mark.parametrize(
    ("variant", "epochs", "expected"),
    [
        (
            "swav_1",
            (0, 11.9, 12, 15.9, 16),
            [(0.02, 5), (0.02, 5), (0.004, 1), (0.004, 1), (0.0008, 0.2)],
        ),
        ("swav_10", (0, 12, 16), [(0.01, 0.2), (0.002, 0.04), (0.0004, 0.008)]),
        (
            "barlow_twins_code_1",
            (0, 0.9, 10, 10.9, 15),
            [(0.005, 0.5)] * 2
            + [(0.0025, 0.25)] * 2
            + [(0.0025 * (1 - math.sqrt(0.5)), 0.25 * (1 - math.sqrt(0.5)))],
        ),
        ("barlow_twins_paper_10", (0, 12, 16), [(0.002, 0.5), (0.0004, 0.1), (0.00008, 0.02)]),
        ("vicreg_1", (0, 10), [(0.03, 0.08), (0.015, 0.04)]),
        ("vicreg_10", (0, 10), [(0.01, 0.1), (0.005, 0.05)]),
        ("byol_1", (0, 25, 50), [(0.1, 0.1), (0.05, 0.05), (0, 0)]),
        ("simclr_v1_1", (0, 30, 60), [(0.8, 0.8), (0.4, 0.4), (0, 0)]),
        ("simclr_v1_10", (0, 15), [(0.8, 0.8), (0.4, 0.4)]),
        ("simclr_v2_1", (0, 30), [(0.16, 0.16), (0.08, 0.08)]),
        (
            "corinfomax_10",
            (4.9, 5, 10, 15),
            [(0.005, 20), (0.001, 2), (0.0002, 0.2), (0.00004, 0.02)],
        ),
        ("pirl_1", (29.9, 30, 69), [(0.01, 0.01), (0.001, 0.001), (0.001, 0.001)]),
    ],
)
def test_schedules_of_the_variants(variant, epochs, expected):
    for found, wanted in zip(rates(variant, *epochs), expected, strict=True):
        assert found == pytest.approx(wanted, rel=1e-9, abs=1e-15)


def test_another_scale_draws_the_same_share_of_its_data_set_and_takes_one_pair_of_rates():
    scale = SCALES["demo"]
    for name, variant in semisup.VARIANTS.items():
        demo = variant.scaled(scale)
        assert (demo.dataset, demo.subset, demo.percent) == ("mnist5k", "balanced", variant.percent)
        assert demo.train_view.size == demo.transform.size == scale.image_size
        assert len(demo.trials()) == 1 and demo.optimizer == "sgd" and demo.batch_size == 32, name
    assert semisup.BYOL_1.scaled(scale).epochs == (50,)


def test_the_command_line_goes_from_a_checkpoint_to_a_record(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    save_backbone(build_backbone(BackboneSpec(name="resnet_tiny"), 28), tmp_path / "backbone.pt")
    options = ["--ckpt", "backbone.pt", "--scale", "demo", "--variant", "swav_10", "--epochs", "3"]
    main("semisup", options)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[2:4]] == ["semisup_top1", "semisup_top5"]
    (path,) = (tmp_path / "evaluations").glob("*.json")
    record = Record.load(path)
    assert record.protocol["class"] == "protocols.semisup.SemiSup"
    assert record.data["labelled"]["images"] == 400 and record.data["labelled"]["classes"] == 10
    # Three epochs on 400 digits; 10 % would be chance.
    assert 30 < record.metrics["semisup_top1"] < record.metrics["semisup_top5"] <= 100
    low, high = record.intervals["semisup_top1"]
    assert low < record.metrics["semisup_top1"] < high
