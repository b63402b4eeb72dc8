from dataclasses import replace

import pytest
import torch

from baselines.untrained import RESNET50, VIT_SMALL
from harness import train
from harness.backbone import build_backbone
from harness.checkpoint import load_backbone
from harness.errors import UserError
from harness.scale import SCALES, scale_recipe


@pytest.mark.parametrize("recipe", [RESNET50, VIT_SMALL], ids=["resnet", "vit"])
def test_the_trunk_is_the_initialisation_of_the_seed(recipe, tmp_path):
    small = scale_recipe(recipe, SCALES["demo"])
    loaded, info = load_backbone(train.pretrain(small, 3, tmp_path))
    again, _ = load_backbone(train.pretrain(small, 3, tmp_path / "again"))
    other, _ = load_backbone(train.pretrain(small, 4, tmp_path))
    torch.manual_seed(train.draws.torch_seed(3, 0))
    expected = build_backbone(small.backbone, 32).trunk.state_dict()
    differing = 0
    for name, value in loaded.trunk.state_dict().items():
        assert torch.equal(value, expected[name]) and torch.equal(
            value, again.trunk.state_dict()[name]
        )
        differing += not torch.equal(value, other.trunk.state_dict()[name])
    assert differing and loaded.classifier is None and info["recipe"]["epochs"] == 0


def test_training_it_is_refused_with_the_way_out(tmp_path):
    small = replace(scale_recipe(RESNET50, SCALES["demo"]), epochs=2)
    with pytest.raises(UserError, match="asked to train for 2 epochs; leave it at 0"):
        train.pretrain(small, 0, tmp_path)


def test_both_recipes_have_no_epochs_at_any_scale():
    for recipe in (RESNET50, VIT_SMALL):
        assert {scale_recipe(recipe, scale).epochs for scale in SCALES.values()} == {0}
