import re
from pathlib import Path

import pytest
import torch
from torch import nn

from harness.backbone import BACKBONES, build_backbone
from harness.errors import UserError
from harness.layouts import detect_arch, image_size
from harness.multicrop import forward_by_size, forward_crops
from harness.recipe import BackboneSpec, Reading
from harness.resnets import SameConv2d, SameMaxPool2d

WIDTHS = {
    "resnet18": 512,
    "resnet34": 512,
    "resnet50": 2048,
    "resnet101": 2048,
    "resnet152": 2048,
    "resnet200": 2048,
    "resnet50_w2": 4096,
    "resnet50_w4": 8192,
    "resnet50_w5": 10240,
    "resnet101_w2": 4096,
    "resnet152_w2": 4096,
    "resnet200_w2": 4096,
    "resnet50_same": 2048,
    "resnet200_w2_same": 4096,
    "resnet50_d8192": 8192,
    "resnet18_cifar": 512,
    "resnet34_cifar": 512,
    "resnet50_cifar": 2048,
    "resnet18_cifar_pad2": 512,
    "resnet50_cifar_pad2": 2048,
    "resnet18_cifar_pool": 512,
    "resnet_tiny": 128,
    "resnet50v2": 2048,
    "vit_small_16": 384,
    "vit_small_8": 384,
    "vit_base_16": 768,
    "vit_base_8": 768,
    "vit_small_16_heads12": 384,
    "vit_tiny_16": 192,
    "vit_tiny_4": 192,
    "vit_demo": 96,
}
RUN = ("resnet18_cifar", "resnet_tiny", "resnet50_same", "vit_tiny_4", "vit_demo")


@pytest.mark.parametrize("name", BACKBONES)
def test_every_backbone_maps_images_to_features_of_its_width(name):
    with torch.device("cpu" if name in RUN else "meta"):  # meta: shapes without arithmetic
        backbone = build_backbone(BackboneSpec(name=name), 32).eval()
        features = backbone(torch.randn(2, 3, 32, 32))
    assert features.shape == (2, backbone.dim) == (2, WIDTHS[name])
    if name == "resnet50v2":
        return  # nobody releases one: S4L's are TensorFlow's
    # Released weights are looked for under the trunk's names and the first layer's shape.
    state = backbone.trunk.state_dict()
    plain = re.sub("_same|_pad2|_pool|_heads12", "", name)
    assert detect_arch(Path("x.pth"), state) == plain
    assert image_size(state) == (32 if backbone.is_vit else 224)


def by_formula(trunk: nn.Module) -> None:
    """Weights that any version of torch gives alike."""
    for i, (name, value) in enumerate(sorted(trunk.state_dict().items())):
        if not value.is_floating_point():
            continue
        ramp = torch.arange(value.numel()) * (37 + i) % 1009
        wave = (ramp / 504.5 - 1).reshape(value.shape)
        if value.dim() > 1:
            value.copy_(wave * (2 / value[0].numel()) ** 0.5)
        elif name.endswith("weight"):
            value.copy_(1 + 0.2 * wave)
        else:
            value.copy_(1 + 0.5 * wave if name.endswith("running_var") else 0.1 * wave)


# Features 0, 1, 100 and the last of one 64 px image, with the weights above, by the code of
# chigur/byol-convert @e527ae6 (resnet.py), YannDubs/Invariant-Self-Supervised-Learning @d4548c4
# (hub/resnet_dim.py); torchvision's padding would give .239552, 0., .001071, .22285.
GOLDEN = {
    "resnet50_same": (0.254657, 0.0, 0.0, 0.22231),
    "resnet50_d8192": (0.058619, 0.031947, 0.191004, 0.185656),
}


@pytest.mark.parametrize("name", GOLDEN)
def test_padding_and_expansion_equal_the_authors_code(name):
    backbone = build_backbone(BackboneSpec(name=name), 64).eval()
    by_formula(backbone.trunk)
    ramp = torch.arange(3 * 64 * 64, dtype=torch.float64)
    with torch.inference_mode():
        features = backbone(torch.sin(ramp * 0.011).reshape(1, 3, 64, 64).float())[0]
    expected = torch.tensor(GOLDEN[name])
    torch.testing.assert_close(features[[0, 1, 100, -1]], expected, atol=2e-5, rtol=0)


def test_padding_as_tensorflows_puts_the_odd_pixel_last():
    conv = SameConv2d(1, 1, 3, stride=2, bias=False)
    torch.nn.init.ones_(conv.weight)
    image = torch.arange(16.0).reshape(1, 1, 4, 4)
    # Windows start at 0 and 2, and reach one beyond the border on the right and below.
    assert conv(image).flatten().tolist() == [45.0, 39.0, 66.0, 50.0]
    assert SameMaxPool2d()(image - 20).flatten().tolist() == [-10.0, -9.0, -6.0, -5.0]


def test_the_layers_of_a_widened_resnet_are_read_stage_by_stage():
    with torch.device("meta"):
        backbone = build_backbone(BackboneSpec(name="resnet50_w2"), 64)
        shapes = {name: tuple(x.shape[1:]) for name, x in backbone.maps(torch.randn(1, 3, 64, 64))}
    assert shapes == {
        "conv1": (128, 32, 32),
        "layer1": (512, 16, 16),
        "layer2": (1024, 8, 8),
        "layer3": (2048, 4, 4),
        "layer4": (4096, 2, 2),
    }


def test_torchvisions_and_timms_weights_load_key_by_key():
    import timm
    from torchvision.models import resnet18

    images = torch.randn(2, 3, 64, 64)
    ours = build_backbone(BackboneSpec(name="resnet18"), 64).eval()
    theirs = resnet18(weights=None).eval()
    theirs.fc = torch.nn.Identity()
    ours.trunk.load_state_dict(theirs.state_dict())
    assert torch.equal(ours(images), theirs(images))
    ours = build_backbone(BackboneSpec(name="vit_tiny_16"), 64).eval()
    theirs = timm.create_model("vit_tiny_patch16_224", img_size=64, num_classes=0).eval()
    ours.trunk.load_state_dict(theirs.state_dict())
    torch.testing.assert_close(ours(images), theirs(images))


def test_a_vit_takes_crops_of_another_size():
    backbone = build_backbone(BackboneSpec(name="vit_demo"), 32).eval()
    assert backbone(torch.randn(2, 3, 16, 16)).shape == (2, 96)


def test_the_last_cls_tokens_come_in_order_each_through_the_final_norm():
    backbone = build_backbone(BackboneSpec(name="vit_demo"), 32).eval()
    images = torch.randn(2, 3, 32, 32)
    features = backbone(images, Reading(last_blocks=4))
    assert features.shape == (2, 4 * 96)
    assert torch.equal(features[:, -96:], backbone(images))
    normalised = features.view(2, 4, 96)
    torch.testing.assert_close(normalised.mean(-1), torch.zeros(2, 4), atol=1e-5, rtol=0)


def test_the_teacher_has_the_same_weights_without_gradients_and_stochastic_depth():
    backbone = build_backbone(BackboneSpec(name="vit_demo", drop_path=0.9), 32).train()
    teacher = backbone.teacher()
    images = torch.randn(4, 3, 32, 32)
    assert not any(p.requires_grad for p in teacher.parameters())
    assert torch.equal(teacher.train()(images), backbone.eval()(images))
    torch.manual_seed(0)
    assert not torch.equal(backbone.train()(images), teacher(images))


def test_zero_initialised_residuals_make_every_block_the_identity_branch():
    backbone = build_backbone(BackboneSpec(name="resnet50", zero_init_residual=True), 64)
    assert backbone.trunk.layer1[0].bn3.weight.abs().max() == 0


def test_crops_of_one_size_go_through_in_one_call():
    calls = []

    class Mean(torch.nn.Module):
        def forward(self, images):
            calls.append(tuple(images.shape))
            return images.mean(dim=(2, 3))

    views = [torch.full((2, 3, side, side), float(i)) for i, side in enumerate((8, 8, 4, 4, 4))]
    rows = forward_by_size(Mean(), views)
    assert calls == [(4, 3, 8, 8), (6, 3, 4, 4)]
    assert rows.shape == (5, 2, 3)
    assert rows[:, 0, 0].tolist() == [0, 1, 2, 3, 4]


def test_a_heads_batch_norm_sees_crops_of_all_sizes_together():
    class Mean(torch.nn.Module):
        def forward(self, images):
            return images.mean(dim=(2, 3))

    views = [torch.zeros(2, 3, 8, 8), torch.ones(2, 3, 4, 4)]
    rows = forward_crops(Mean(), torch.nn.BatchNorm1d(3, eps=1e-12), views)
    assert rows[:, 0, 0].tolist() == pytest.approx([-1, 1])  # each size by itself would give 0


def test_unknown_and_unfit_settings_are_refused():
    with pytest.raises(UserError, match="unknown backbone 'resnet51': did you mean resnet"):
        build_backbone(BackboneSpec(name="resnet51"), 32)
    with pytest.raises(UserError, match=r"drop_path=0\.1 is for ViTs"):
        build_backbone(BackboneSpec(name="resnet18", drop_path=0.1), 32)
