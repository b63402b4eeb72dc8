from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from harness.backbone import OwnClassifier, build_backbone
from harness.checkpoint import load_backbone, save_backbone
from harness.command import main
from harness.data import open_split
from harness.errors import UserError
from harness.recipe import BackboneSpec
from harness.scale import SCALES
from protocols import classifier
from protocols.classifier import NetworkClassifier
from tests.gloo import run_on
from tests.protocols.toys import CLASSES, TRANSFORM, PixelBackbone, toy_data, toy_split

TOY = NetworkClassifier(dataset="toy", transform=TRANSFORM)


def with_classifier(classes: int = CLASSES) -> PixelBackbone:
    """A trunk whose classifier picks the class with the most similar mean feature."""
    backbone = PixelBackbone()
    clean = toy_split("train", noise=0)
    pixels = clean.images[: max(classes, CLASSES)].float() / 255
    mean, std = (torch.tensor(x).view(3, 1, 1) for x in (backbone.pixels.mean, backbone.pixels.std))
    with torch.no_grad():
        centres = backbone((pixels - mean) / std)[:classes]
    backbone.classifier = OwnClassifier(centres, -centres.square().sum(dim=1) / 2)
    return backbone


def test_a_solvable_toy_gives_100_percent(tmp_path):
    with toy_data():
        found = TOY.run(with_classifier(), tmp_path)
    assert {name: x.value for name, x in found.items()} == {
        "classifier_top1": 100.0,
        "classifier_top5": 100.0,
    }


def test_shuffled_labels_give_chance(tmp_path):
    with toy_data(shuffled=1.0, images=1200):
        found = TOY.run(with_classifier(), tmp_path)
    # Six classes: 16.7 %, the five likeliest 83.3 %, standard deviation 1.1.
    assert 11.0 < found["classifier_top1"].value < 22.5
    assert 77.5 < found["classifier_top5"].value < 89.0


def test_a_bias_that_outweighs_all_else_decides_alone(tmp_path):
    backbone = with_classifier()
    weight, bias = backbone.classifier
    backbone.classifier = OwnClassifier(weight, bias + 1e6 * (torch.arange(CLASSES) == 2))
    with toy_data():
        found = TOY.run(backbone, tmp_path)
    with np.load(tmp_path / "predictions.npz") as predictions:
        assert (predictions["top5"][:, 0] == 2).all()
    assert found["classifier_top1"].value == pytest.approx(100 * 55 / 330)


def test_a_trunk_without_classifier_is_told_the_way_out(tmp_path):
    with toy_data(), pytest.raises(UserError, match=r"use protocols/linear\.py"):
        TOY.run(PixelBackbone(), tmp_path)


def test_a_classifier_of_other_classes_is_refused(tmp_path):
    with toy_data(), pytest.raises(UserError, match="knows 4 classes and data set 'toy' has 6"):
        TOY.run(with_classifier(4), tmp_path)


def noisy(folder: Path) -> dict[str, float]:
    with toy_data(noise=190, images=331, shuffled=0.3):
        found = TOY.run(with_classifier(), folder)
    return {name: estimate.value for name, estimate in found.items()}


def test_one_and_two_processes_agree_on_every_sample(tmp_path):
    alone = noisy(tmp_path / "alone")
    assert run_on(2, noisy, tmp_path, tmp_path / "pair") == [alone, alone]
    with (
        np.load(tmp_path / "alone" / "predictions.npz") as one,
        np.load(tmp_path / "pair" / "predictions.npz") as two,
    ):
        assert one["indices"].tolist() == list(range(331))
        assert all(np.array_equal(one[name], two[name]) for name in one)
    assert 20 < alone["classifier_top1"] < 95


def test_a_classifier_is_kept_in_backbone_pt_and_is_no_part_of_the_trunk(tmp_path):
    backbone, layer = build_backbone(BackboneSpec(name="resnet_tiny"), 32), nn.Linear(128, 3)
    save_backbone(backbone, tmp_path / "backbone.pt", classifier=layer, seed=1)
    loaded, info = load_backbone(tmp_path / "backbone.pt")
    assert torch.equal(loaded.classifier.weight, layer.weight)
    assert torch.equal(loaded.classifier.bias, layer.bias)
    assert not loaded.classifier.weight.requires_grad and info == {"seed": 1}
    assert loaded.state_dict().keys() == backbone.state_dict().keys()
    save_backbone(backbone, tmp_path / "old.pt")
    assert load_backbone(tmp_path / "old.pt")[0].classifier is None


def test_the_command_line_measures_the_classifier_of_a_checkpoint(tmp_path, capsys):
    backbone = build_backbone(BackboneSpec(name="resnet_tiny"), 32)
    layer = nn.Linear(128, 10)
    nn.init.zeros_(layer.weight)
    with torch.no_grad():
        layer.bias.copy_(torch.arange(10.0))
    path = tmp_path / "backbone.pt"
    save_backbone(backbone, path, classifier=layer)
    arguments = ["--scale", "demo", "--out", str(tmp_path / "out"), "--json"]
    main("classifier", ["--ckpt", str(path), *arguments])
    metrics = json.loads(capsys.readouterr().out)["metrics"]
    # The bias puts 9 first, and 9 to 5 among the five.
    digits = open_split("mnist5k", "val").labels
    assert metrics["classifier_top1"] == pytest.approx(100 * (digits == 9).mean())
    assert metrics["classifier_top5"] == pytest.approx(100 * (digits >= 5).mean())


def test_another_scale_changes_data_set_and_image_size_alone():
    demo = classifier.CENTER_CROP.scaled(SCALES["demo"])
    assert (demo.dataset, demo.transform.resize, demo.transform.size) == ("mnist5k", 32, 32)
    assert classifier.CENTER_CROP.transform.interpolation == "bilinear"
    assert (classifier.CENTER_CROP.transform.resize, demo.transform.interpolation) == (
        256,
        "bilinear",
    )
