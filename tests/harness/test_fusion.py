from __future__ import annotations

import pytest
import torch
from torch import nn

from harness.backbone import build_backbone
from harness.features import BATCH_SIZE, digest, embed, extract, frozen
from harness.fusion import fused, marks
from harness.recipe import BackboneSpec, Reading
from tests.protocols.toys import TRANSFORM, PixelBackbone, toy_split


def trained(name: str, size: int = 32):
    """A backbone whose batch norms are as far from the identity as after a training."""
    torch.manual_seed(0)
    backbone = build_backbone(BackboneSpec(name=name), size).eval()
    for module in backbone.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.3)
            nn.init.normal_(module.running_mean, std=0.3)
            nn.init.uniform_(module.running_var, 0.3, 2.0)
    return backbone


def norms(backbone) -> int:
    return sum(isinstance(module, nn.BatchNorm2d) for module in backbone.modules())


@pytest.mark.parametrize(
    ("name", "folded"),
    [
        ("resnet_tiny", 12),
        ("resnet18", 20),
        ("resnet50", 53),
        ("resnet50_same", 53),
        ("resnet50_d8192", 56),
    ],
)
@torch.no_grad()
def test_every_batch_norm_of_a_resnet_is_folded_and_features_agree_within_rounding(name, folded):
    backbone = trained(name)
    twin = fused(backbone)
    assert (norms(backbone), norms(twin)) == (folded, 0)
    images = torch.randn(2, 3, 32, 32)
    plain = backbone(images)
    assert plain.std() > 0.01
    torch.testing.assert_close(twin(images), plain, rtol=1e-5, atol=1e-5 * plain.abs().max().item())
    # Nothing but rounding: in double precision as much less.
    exact = backbone.double()(images.double())
    error = (fused(backbone)(images.double()) - exact).abs().max()
    assert error < 1e-13 * exact.abs().max()


@torch.no_grad()
def test_maps_of_every_stage_agree_within_rounding():
    backbone = trained("resnet18")
    images = torch.randn(2, 3, 64, 64)
    for stage in ("conv1", "layer2", "layer4"):
        reading = Reading(stage=stage)
        plain, folded = backbone(images, reading), fused(backbone)(images, reading)
        torch.testing.assert_close(folded, plain, rtol=1e-5, atol=1e-5 * plain.abs().max().item())


def test_the_backbone_itself_stays_as_it_is():
    backbone = trained("resnet_tiny")
    before = digest(backbone)
    extract(backbone, toy_split("train", images=8), TRANSFORM)
    assert digest(backbone) == before and norms(backbone) == 12


@pytest.mark.parametrize("name", ["resnet50v2", "vit_demo"])
def test_what_has_no_convolution_before_a_batch_norm_is_not_copied(name):
    backbone = build_backbone(BackboneSpec(name=name), 32)
    assert fused(backbone) is backbone and marks(backbone) == ()
    assert fused(PixelBackbone()).dim == 64 and marks(PixelBackbone()) == ()


def test_extracted_features_are_those_of_the_fused_backbone_to_the_last_bit(monkeypatch):
    monkeypatch.setenv("FEATURE_CACHE_GB", "0")
    backbone, data = trained("resnet_tiny", 8), toy_split("train", images=BATCH_SIZE)
    found = extract(backbone, data, TRANSFORM).values
    seen = []
    backbone.trunk.conv1.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    extract(backbone, data, TRANSFORM)
    with frozen(backbone):
        assert torch.equal(embed(fused(backbone), seen[0]), found)
        plain = embed(backbone, seen[0])
    torch.testing.assert_close(found, plain, rtol=1e-5, atol=1e-5 * plain.abs().max().item())
