import pytest
import torch

from harness import checkpoint
from harness.backbone import build_backbone
from harness.errors import UserError
from harness.recipe import BackboneSpec


def test_the_last_two_training_checkpoints_are_kept(tmp_path):
    for step in range(4):
        checkpoint.save_training(tmp_path, step, {"step": step})
    assert sorted(path.name[:14] for path in tmp_path.iterdir()) == [
        "step-000000002",
        "step-000000003",
    ]
    state, path = checkpoint.load_training(tmp_path)
    assert state == {"step": 3} and path.name.startswith("step-000000003")


def test_a_truncated_checkpoint_is_passed_over_and_named(tmp_path, capsys):
    checkpoint.save_training(tmp_path, 1, {"step": 1})
    last = checkpoint.save_training(tmp_path, 2, {"step": 2})
    last.write_bytes(last.read_bytes()[:100])
    assert checkpoint.load_training(tmp_path)[0] == {"step": 1}
    assert f"checkpoint {last} is damaged" in capsys.readouterr().err


def test_no_checkpoint_at_all_is_none(tmp_path):
    assert checkpoint.load_training(tmp_path) is None


@pytest.mark.parametrize("name", ["resnet_tiny", "vit_demo"])
def test_a_saved_backbone_gives_the_same_features(name, tmp_path):
    backbone = build_backbone(BackboneSpec(name=name), 32).eval()
    checkpoint.save_backbone(backbone, tmp_path / "backbone.pt", seed=3)
    loaded, info = checkpoint.load_backbone(tmp_path / "backbone.pt")
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(loaded(images), backbone(images))
    assert info == {"seed": 3}


def test_a_file_that_is_no_backbone_is_refused_by_name(tmp_path):
    path = tmp_path / "other.pt"
    torch.save({"state_dict": {}}, path)
    with pytest.raises(UserError, match=r"other\.pt is not a backbone\.pt of this harness"):
        checkpoint.load_backbone(path)
    path.write_bytes(b"rubbish")
    with pytest.raises(UserError, match=r"other\.pt cannot be read as a checkpoint"):
        checkpoint.load_backbone(path)
