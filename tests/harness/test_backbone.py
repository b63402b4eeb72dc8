import pytest
import torch

from harness.backbone import BACKBONES, build_backbone
from harness.errors import UserError
from harness.multicrop import forward_by_size
from harness.recipe import BackboneSpec, Reading

WIDTHS = {
    "resnet50": 2048,
    "resnet18": 512,
    "resnet18_cifar": 512,
    "resnet_tiny": 128,
    "vit_small_16": 384,
    "vit_tiny_16": 192,
    "vit_tiny_4": 192,
    "vit_demo": 96,
}


def size_of(name: str) -> int:
    return 64 if name.endswith(("16", "50", "18")) else 32


@pytest.mark.parametrize("name", BACKBONES)
def test_every_backbone_maps_images_to_features_of_its_width(name):
    backbone = build_backbone(BackboneSpec(name=name), size_of(name)).eval()
    with torch.inference_mode():
        features = backbone(torch.randn(2, 3, size_of(name), size_of(name)))
    assert features.shape == (2, backbone.dim) == (2, WIDTHS[name])


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


def test_unknown_and_unfit_settings_are_refused():
    with pytest.raises(UserError, match="unknown backbone 'resnet51': choose from resnet50"):
        build_backbone(BackboneSpec(name="resnet51"), 32)
    with pytest.raises(UserError, match=r"drop_path=0\.1 is for ViTs"):
        build_backbone(BackboneSpec(name="resnet18", drop_path=0.1), 32)
