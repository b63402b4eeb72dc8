from __future__ import annotations

import argparse
import hashlib
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from harness.backbone import Backbone, build_backbone
from harness.checkpoint import save_backbone
from harness.errors import UserError
from harness.foreign import load_checkpoint
from harness.recipe import BackboneSpec

State = dict[str, Tensor]
HEAD = torch.zeros((2, 2))


@pytest.fixture(scope="module")
def resnet() -> Backbone:
    torch.manual_seed(0)
    return build_backbone(BackboneSpec(name="resnet18"), 224)


@pytest.fixture(scope="module")
def vit() -> Backbone:
    torch.manual_seed(0)
    return build_backbone(BackboneSpec(name="vit_tiny_16"), 96)


def under(prefix: str, state: State) -> State:
    return {prefix + name: value for name, value in state.items()}


def write(path: Path, content: Any) -> Path:
    torch.save(content, path)
    return path


def same_weights(one: Backbone, two: Backbone) -> bool:
    ours, theirs = one.trunk.state_dict(), two.trunk.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in ours)


def released(resnet: State) -> dict[str, Any]:
    """What releases look like (section 5 of the facts): content, family, heads dropped."""
    slow = under("module.encoder_k.", {name: value + 1 for name, value in resnet.items()})
    backbone = under("module.backbone.", resnet)
    projector = {"module.projector.0.weight": HEAD}
    return {
        "flat": (resnet, "torchvision", ()),
        "supervised": (resnet | {"fc.weight": HEAD, "fc.bias": HEAD}, "torchvision", ("fc",)),
        "moco": (
            {
                "epoch": 200,
                "arch": "resnet18",
                # The slow copy comes first, as a trap.
                "state_dict": slow
                | under("module.encoder_q.", resnet | {"fc.0.weight": HEAD})
                | {"module.queue": HEAD, "module.queue_ptr": HEAD},
            },
            "moco",
            ("encoder_k", "fc", "queue", "queue_ptr"),
        ),
        "vicreg": (
            {"epoch": 1, "model": backbone | projector, "optimizer": {"state": {}}},
            "vicreg or imsvd",
            ("projector",),
        ),
        "barlow_twins": (
            {"epoch": 1, "model": backbone | projector | {"module.bn.running_mean": HEAD}},
            "barlow_twins",
            ("bn", "projector"),
        ),
        "simsiam": (
            {
                "state_dict": under("module.encoder.", resnet | {"fc.0.weight": HEAD})
                | {"module.predictor.0.weight": HEAD}
            },
            "simsiam",
            ("fc", "predictor"),
        ),
        "swav": (
            under("module.", resnet)
            | {"module.prototypes.weight": HEAD, "module.projection_head.0.weight": HEAD},
            "swav",
            ("projection_head", "prototypes"),
        ),
        "vissl": (
            {
                "classy_state_dict": {
                    "base_model": {"model": {"trunk": under("_feature_blocks.", resnet)}}
                }
            },
            "vissl",
            (),
        ),
    }


@pytest.mark.parametrize(
    "name",
    ["flat", "supervised", "moco", "vicreg", "barlow_twins", "simsiam", "swav", "vissl"],
)
def test_a_release_is_recognised_and_every_weight_arrives(tmp_path, resnet, name):
    content, family, dropped = released(resnet.trunk.state_dict())[name]
    path = write(tmp_path / "released.pth", content)
    found, info = load_checkpoint(path)
    assert same_weights(found, resnet)
    assert (info.arch, info.family, info.unexpected) == ("resnet18", family, dropped)
    assert info.matched == len(resnet.trunk.state_dict()) and info.missing == ()
    assert info.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def test_dinos_full_checkpoint_gives_the_teacher_at_its_image_size(tmp_path, vit):
    state = vit.trunk.state_dict()
    student = {name: value + 1 for name, value in state.items()}
    content = {
        "student": under("module.backbone.", student),
        "teacher": under("backbone.", state) | {"head.mlp.0.weight": HEAD},
        "epoch": 3,
        "args": argparse.Namespace(lr=0.1),
    }
    found, info = load_checkpoint(write(tmp_path / "checkpoint.pth", content))
    assert same_weights(found, vit)
    assert (info.arch, info.family, info.unexpected) == ("vit_tiny_16", "dino", ("head",))
    assert found.image_size == 96


def test_resnet_50_and_the_cifar_stem_are_told_from_their_shapes(tmp_path):
    for arch in ("resnet50", "resnet18_cifar", "vit_small_16"):
        backbone = build_backbone(BackboneSpec(name=arch), 224)
        found, info = load_checkpoint(write(tmp_path / "x.pth", backbone.trunk.state_dict()))
        assert info.arch == arch and same_weights(found, backbone)


def test_safetensors_are_read(tmp_path, resnet):
    save_file(resnet.trunk.state_dict(), tmp_path / "model.safetensors")
    found, info = load_checkpoint(tmp_path / "model.safetensors")
    assert same_weights(found, resnet) and info.arch == "resnet18"


def test_our_own_checkpoint_brings_what_its_trainer_wrote_down(tmp_path, resnet):
    save_backbone(resnet, tmp_path / "backbone.pt", seed=3, seconds=1.5)
    found, info = load_checkpoint(tmp_path / "backbone.pt")
    assert same_weights(found, resnet)
    assert (info.family, info.training) == ("ours", {"seed": 3, "seconds": 1.5})


def test_counters_that_old_releases_lack_are_reported_missing_and_nothing_else(tmp_path, resnet):
    state = {
        name: value
        for name, value in resnet.trunk.state_dict().items()
        if not name.endswith("num_batches_tracked")
    }
    _, info = load_checkpoint(write(tmp_path / "old.pth", state))
    assert len(info.missing) == 20 and info.matched == len(state)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda s: s.pop("layer3.1.bn1.weight"), "it lacks layer3.1.bn1.weight"),
        (lambda s: s.update({"layer9.weight": HEAD}), "it has unknown layer9.weight"),
        (
            lambda s: s.update({"bn1.weight": torch.ones(32)}),
            r"it has bn1.weight of shape \(32,\) instead of \(64,\)",
        ),
        (lambda s: s.pop("conv1.weight"), "holds no known trunk"),
        (
            lambda s: s.update({"conv1.weight": torch.ones((8, 3, 7, 7))}),
            "whose first layer is 8x3x7x7, which is none of",
        ),
    ],
)
def test_anything_short_of_the_whole_trunk_is_refused(tmp_path, resnet, spoil, said):
    state = OrderedDict(resnet.trunk.state_dict())
    spoil(state)
    with pytest.raises(UserError, match=said):
        load_checkpoint(write(tmp_path / "partial.pth", state))


def test_the_wrong_arch_is_refused(tmp_path, resnet):
    path = write(tmp_path / "r18.pth", resnet.trunk.state_dict())
    with pytest.raises(UserError, match="is not a whole resnet50: it lacks"):
        load_checkpoint(path, arch="resnet50")
    save_backbone(resnet, tmp_path / "backbone.pt")
    with pytest.raises(UserError, match="holds a resnet18, not resnet50; leave out --arch"):
        load_checkpoint(tmp_path / "backbone.pt", arch="resnet50")


class Sneaky:
    """An object whose pickle runs a function of its own choice when loaded."""

    def __reduce__(self) -> tuple:
        return (print, ("run by the pickle",))


def test_a_pickle_that_could_run_code_is_refused_until_trusted(tmp_path, resnet, capsys):
    content = {"state_dict": resnet.trunk.state_dict(), "extra": Sneaky()}
    path = write(tmp_path / "pickle.pth", content)
    with pytest.raises(UserError, match=r"needs [\w.]*print, .* add --trust-checkpoint"):
        load_checkpoint(path)
    assert "run by" not in capsys.readouterr().out
    found, _ = load_checkpoint(path, trust=True)
    assert same_weights(found, resnet)
    assert "run by" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["noise.pth", "noise.safetensors"])
def test_a_damaged_file_is_refused_in_one_sentence(tmp_path, name):
    (tmp_path / name).write_bytes(b"\x93not a checkpoint" * 10)
    with pytest.raises(UserError, match="get it again"):
        load_checkpoint(tmp_path / name)


def test_a_truncated_checkpoint_is_refused_in_one_sentence(tmp_path, resnet):
    path = write(tmp_path / "cut.pth", resnet.trunk.state_dict())
    path.write_bytes(path.read_bytes()[:100_000])
    with pytest.raises(UserError, match="get it again"):
        load_checkpoint(path)


def test_a_missing_file_and_a_bare_tensor_are_refused(tmp_path):
    with pytest.raises(UserError, match="there is no checkpoint at"):
        load_checkpoint(tmp_path / "none.pth")
    with pytest.raises(UserError, match=r"holds a Tensor where weights by name are needed"):
        load_checkpoint(write(tmp_path / "tensor.pth", torch.zeros(3)))
