from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from figures.drawing import save
from figures.gradcam import GradCAM, Unit, grad_cam, highest, make, maps_of, most_used
from harness.backbone import OwnProjector, ResNet, build_backbone
from harness.checkpoint import save_backbone
from harness.errors import UserError
from harness.recipe import BackboneSpec, TrainingSize, resolved
from harness.scale import SCALES, scale_recipe
from methods.imsvd import RESNET50, IMSVDConfig


def linear(weight: torch.Tensor, units: int) -> OwnProjector:
    width, dim = weight.shape
    layer = nn.Linear(dim, width)
    with torch.no_grad():
        layer.weight.copy_(weight)
        layer.bias.zero_()
    return OwnProjector(nn.Sequential(layer).requires_grad_(False), (dim, width), units, 1.0)


def test_a_unit_that_reads_one_channel_lights_up_where_that_channel_does():
    maps = torch.zeros(2, 3, 4, 4)
    maps[0, 1, 2, 3] = 8.0
    maps[1, 0] = 8.0  # another channel, everywhere
    weight = torch.zeros(4, 3)
    weight[3, 1] = 32.0  # variable 1, unit 1
    found = grad_cam(maps, linear(weight, units=2), Unit(1, 1))
    expected = torch.zeros(2, 4, 4)
    expected[0, 2, 3] = 8 * 32 / 16  # d logit / d A = 32 / 16 at each place
    torch.testing.assert_close(found, expected)
    assert grad_cam(maps, linear(weight, units=2), Unit(1, 0)).abs().max() == 0


def test_of_a_linear_projector_it_is_the_weighted_sum_of_channels_without_what_is_negative():
    generator = torch.Generator().manual_seed(0)
    maps = torch.randn(3, 5, 2, 4, generator=generator)
    weight = torch.randn(6, 5, generator=generator)
    found = grad_cam(maps, linear(weight, units=3), Unit(1, 2))
    expected = torch.einsum("c,nchw->nhw", weight[5], maps).clamp(min=0) / 8
    torch.testing.assert_close(found, expected)
    assert (found == 0).any()
    assert (found > 0).any()


def test_the_maps_of_a_trunk_are_those_that_its_feature_averages():
    torch.manual_seed(0)
    backbone = build_backbone(BackboneSpec(name="resnet_tiny"), 32).eval()
    assert isinstance(backbone, ResNet)
    # The sum of all channels: none is negative, so nothing is cut off, and all is in the map.
    backbone.projector = linear(torch.ones(1, backbone.dim), units=1)
    pictures = torch.randint(256, (2, 3, 32, 32), dtype=torch.uint8)
    found = maps_of(backbone, pictures, Unit(0, 0))
    with torch.no_grad():
        features = backbone((pictures / 255 - mean(backbone)) / std(backbone))
    torch.testing.assert_close(found.sum(dim=(1, 2)), features.sum(dim=1))


def mean(backbone):
    return torch.tensor(backbone.pixels.mean).view(3, 1, 1)


def std(backbone):
    return torch.tensor(backbone.pixels.std).view(3, 1, 1)


def test_units_are_chosen_by_their_images_and_images_by_their_probability():
    p = torch.tensor([[0.6, 0.4, 0.0], [0.1, 0.9, 0.0], [0.3, 0.7, 0.0]])[:, None]
    assert most_used(p, 0, 3) == [1, 0]
    assert highest(p, Unit(0, 1), 2).tolist() == [1, 2]
    assert highest(p, Unit(0, 0), 5).tolist() == [0, 2, 1]


def checkpoint(folder: Path) -> Path:
    torch.manual_seed(0)
    backbone = build_backbone(BackboneSpec(name="resnet_tiny"), 32)
    config = IMSVDConfig(projector=(24, 12), units=4)
    method = config.build(backbone, TrainingSize(images=8, classes=2))
    path = folder / "backbone.pt"
    recipe = resolved(scale_recipe(RESNET50, SCALES["demo"])) | {"epochs": 31}
    save_backbone(backbone, path, projector=method.own_projector, recipe=recipe)
    return path


def test_a_checkpoint_becomes_a_figure_with_maps_and_one_without(tmp_path):
    args = {"ckpt": checkpoint(tmp_path), "among": 20, "count": 3}
    drawn = make(GradCAM(**args, units=(0, 3)))
    axes = drawn.figure.axes
    assert [axes[row * 3].get_ylabel() for row in range(4)] == [
        f"variable {variable}\nunit {unit}" for variable in (0, 1) for unit in (0, 3)
    ]
    assert [image.get_array().shape[:2] for image in axes[0].images] == [(32, 32)] * 2
    png, svg = save(drawn, tmp_path)
    assert (png.name, svg.name) == ("gradcam.demo.png", "gradcam.demo.svg")
    assert "mnist5k, 31 epochs: highest of 20 images per unit" in svg.read_text()
    plain = make(GradCAM(**args, units=(0,), overlay=False))
    assert plain.name == "units"
    assert len(plain.figure.axes[0].images) == 1


def test_what_is_not_there_is_refused(tmp_path):
    path = checkpoint(tmp_path)
    with pytest.raises(UserError, match=r"--variables 3 is out of range: they go from 0 to 2"):
        make(GradCAM(ckpt=path, images="mnist5k", variables=(3,)))
    with pytest.raises(UserError, match=r"--units 4 is out of range: they go from 0 to 3"):
        make(GradCAM(ckpt=path, images="mnist5k", units=(4,)))
    bare = tmp_path / "bare.pt"
    save_backbone(build_backbone(BackboneSpec(name="resnet_tiny"), 32), bare)
    with pytest.raises(UserError, match="holds a resnet_tiny without a projector"):
        make(GradCAM(ckpt=bare, images="mnist5k"))
