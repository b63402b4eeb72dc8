"""The pre-activation ResNet against timm's, and where S4L's differs from it."""

import pytest
import timm
import torch

from harness.backbone import build_backbone
from harness.errors import UserError
from harness.recipe import BackboneSpec, Reading
from harness.resnets_v2 import PreActivationBottleneck


@pytest.fixture(scope="module")
def backbone():
    torch.manual_seed(0)
    return build_backbone(BackboneSpec(name="resnet50v2"), 64).eval()


def test_features_equal_timms_with_the_same_weights(backbone):
    peer = timm.create_model("resnetv2_50", num_classes=0, stem_type="fixed").eval()
    with torch.no_grad():
        for number, value in enumerate(backbone.trunk.buffers()):
            if value.is_floating_point():
                value.copy_(1 + 0.1 * torch.sin(torch.arange(value.numel()) + number).abs())
    peer.load_state_dict(backbone.trunk.state_dict())
    for module in peer.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.eps = 1e-3
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(backbone(images), peer(images), rtol=1e-4, atol=1e-4)


def test_it_is_a_resnet_50_of_batch_norms_with_tensorflows_constants(backbone):
    assert backbone.dim == 2048
    assert sum(p.numel() for p in backbone.parameters()) == 23_500_352
    norms = [m for m in backbone.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert len(norms) == 16 * 3 + 1
    assert {(m.eps, m.momentum) for m in norms} == {(1e-3, 0.01)}


def test_a_block_whose_last_convolution_is_zero_is_its_shortcut():
    block = PreActivationBottleneck(16, 16, 1)
    torch.nn.init.zeros_(block.conv3.weight)
    x = torch.randn(2, 16, 4, 4)
    assert torch.equal(block(x), x)
    wider = PreActivationBottleneck(16, 32, 2)
    torch.nn.init.zeros_(wider.conv3.weight)
    # its projection is of the normalised input, as in S4L
    expected = wider.downsample(torch.relu(wider.norm1(x)))
    torch.testing.assert_close(wider(x), expected)


def test_the_first_pool_pads_with_zeros(backbone):
    stem = backbone.trunk.stem
    x = -torch.ones(1, 64, 4, 4)
    assert stem.pool(stem.pad(x))[0, 0].tolist() == [[0.0, 0.0], [0.0, -1.0]]


def test_what_it_does_not_offer_is_refused(backbone):
    with pytest.raises(UserError, match="read its pooled feature"):
        backbone(torch.zeros(1, 3, 64, 64), Reading(stage="layer3"))
    with pytest.raises(UserError, match="nothing to zero"):
        build_backbone(BackboneSpec(name="resnet50v2", zero_init_residual=True), 64)
