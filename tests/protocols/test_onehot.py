from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from harness.backbone import OwnProjector, build_backbone
from harness.checkpoint import load_backbone, save_backbone
from harness.errors import UserError
from harness.recipe import BackboneSpec, TrainingSize, fingerprint
from harness.scale import SCALES
from methods.imsvd import IMSVDConfig, discretise
from protocols import onehot
from protocols.onehot import OneHot
from tests.gloo import run_on
from tests.protocols.toys import TRANSFORM, PixelBackbone, toy_data

TOY = OneHot(dataset="toy", transform=TRANSFORM)
UNITS = 4


def with_logits(rows: torch.Tensor) -> PixelBackbone:
    """A trunk whose projector gives every image the same variables: logits (variables, UNITS)."""
    backbone = PixelBackbone()
    layer = nn.Linear(backbone.dim, rows.numel())
    with torch.no_grad():
        layer.weight.zero_()
        layer.bias.copy_(rows.flatten())
    widths = (backbone.dim, rows.numel())
    backbone.projector = OwnProjector(nn.Sequential(layer), widths, UNITS, temperature=1.0)
    return backbone


def log_of(largest: float) -> torch.Tensor:
    """Logits of one unit of this probability, the others sharing the rest."""
    rest = (1 - largest) / (UNITS - 1)
    return torch.tensor([largest, *(rest,) * (UNITS - 1)]).log()


def shares(backbone: PixelBackbone, folder) -> dict[str, float]:
    with toy_data():
        return {name: found.value for name, found in TOY.run(backbone, folder).items()}


def test_variables_are_counted_by_the_probability_of_their_likeliest_unit(tmp_path):
    rows = torch.stack([log_of(p) for p in (0.999, 0.995, 0.98, 0.91, 0.89, 0.6, 0.3, 0.25)])
    assert shares(with_logits(rows), tmp_path) == {"onehot_90": 50.0, "onehot_99": 25.0}


def test_a_one_hot_code_gives_100_percent_and_a_uniform_one_none(tmp_path):
    assert shares(with_logits(100 * torch.eye(UNITS)), tmp_path / "a") == {
        "onehot_90": 100.0,
        "onehot_99": 100.0,
    }
    assert shares(with_logits(torch.zeros(3, UNITS)), tmp_path / "b") == {
        "onehot_90": 0.0,
        "onehot_99": 0.0,
    }


def test_the_temperature_divides_the_logits(tmp_path):
    backbone = with_logits(torch.stack([log_of(0.95)]))
    assert shares(backbone, tmp_path)["onehot_90"] == 100.0
    backbone.projector = backbone.projector._replace(temperature=4.0)
    assert shares(backbone, tmp_path)["onehot_90"] == 0.0


def test_shares_of_the_images_are_written_and_their_mean_lies_in_its_interval(tmp_path):
    backbone = PixelBackbone()
    torch.manual_seed(0)
    widths = (backbone.dim, 40)
    layers = nn.Sequential(nn.Linear(*widths)).requires_grad_(False)
    layers[0].weight.mul_(20)
    backbone.projector = OwnProjector(layers, widths, UNITS, temperature=1.0)
    with toy_data(noise=190):
        found = TOY.run(backbone, tmp_path)
    with np.load(tmp_path / "predictions.npz") as written:
        per_image = written["onehot_90"]
    assert per_image.shape == (330,)
    value, low, high = found["onehot_90"]
    assert value == pytest.approx(100 * per_image.mean())
    error = 100 * per_image.std() / 330**0.5
    assert (low, high) == pytest.approx((value - 1.96 * error, value + 1.96 * error), abs=0.01)
    assert 0 < low < high < 100


def test_a_trunk_without_a_projector_is_refused(tmp_path):
    with toy_data(), pytest.raises(UserError, match=r"without a projector .* imsvd:RESNET50"):
        TOY.run(PixelBackbone(), tmp_path)


def test_the_projector_of_imsvd_is_kept_beside_its_trunk_and_no_part_of_it(tmp_path):
    torch.manual_seed(0)
    backbone = build_backbone(BackboneSpec(name="resnet_tiny"), 32)
    config = IMSVDConfig(projector=(48, 24), units=8, temperature=0.5)
    method = config.build(backbone, TrainingSize(images=8, classes=2))
    for module in method.projector:
        if isinstance(module, nn.BatchNorm1d):
            module.running_mean.uniform_(-1, 1)
            module.running_var.uniform_(0.5, 2)
    path = tmp_path / "backbone.pt"
    save_backbone(method.evaluated, path, projector=method.own_projector, seed=3)
    loaded, info = load_backbone(path)
    assert info == {"seed": 3}
    assert loaded.state_dict().keys() == backbone.state_dict().keys()
    assert loaded.projector is not None
    assert (loaded.projector.widths, loaded.projector.units) == ((backbone.dim, 48, 24), 8)
    features = torch.randn(5, backbone.dim)
    expected = discretise(method.projector.eval()(features), units=8, temperature=0.5)
    found = loaded.projector.assignments(features)
    torch.testing.assert_close(found, expected.detach(), atol=1e-6, rtol=1e-6)
    assert not any(p.requires_grad for p in loaded.projector.layers.parameters())


def test_a_trunk_without_one_is_written_as_before(tmp_path):
    backbone = build_backbone(BackboneSpec(name="resnet_tiny"), 32)
    save_backbone(backbone, tmp_path / "backbone.pt")
    saved = torch.load(tmp_path / "backbone.pt", weights_only=True)
    assert saved.keys() == {"format", "spec", "image_size", "pixels", "info", "state"}
    assert load_backbone(tmp_path / "backbone.pt")[0].projector is None


def test_the_papers_settings_are_the_two_thresholds_over_train(tmp_path):
    assert [metric.name for metric in onehot.IMSVD.metrics] == ["onehot_90", "onehot_99"]
    assert (onehot.IMSVD.split, onehot.IMSVD.transform.size) == ("train", 224)
    demo = onehot.IMSVD.scaled(SCALES["demo"])
    assert (demo.dataset, demo.transform.size) == ("mnist5k", 32)
    assert fingerprint(demo) != fingerprint(replace(demo, split="val"))


def spread_out(folder: Path) -> dict[str, tuple[float, float | None, float | None]]:
    backbone = PixelBackbone()
    generator = torch.Generator().manual_seed(0)
    widths = (backbone.dim, 40)
    layers = nn.Sequential(nn.Linear(*widths)).requires_grad_(False)
    layers[0].weight.copy_(3 * torch.randn(40, backbone.dim, generator=generator))
    layers[0].bias.zero_()
    backbone.projector = OwnProjector(layers, widths, UNITS, temperature=1.0)
    with toy_data(noise=190, images=331):
        return {name: tuple(found) for name, found in TOY.run(backbone, folder).items()}


def test_one_and_two_processes_agree_on_every_variable(tmp_path):
    alone = spread_out(tmp_path / "alone")
    assert 0 < alone["onehot_99"][0] < alone["onehot_90"][0] < 100
    assert run_on(2, spread_out, tmp_path, tmp_path / "pair") == [alone, alone]
    with (
        np.load(tmp_path / "alone" / "predictions.npz") as one,
        np.load(tmp_path / "pair" / "predictions.npz") as two,
    ):
        assert one["indices"].tolist() == list(range(331))
        assert all(np.array_equal(one[name], two[name]) for name in one)
