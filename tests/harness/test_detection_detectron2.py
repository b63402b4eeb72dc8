"""detectron2's engine: names of tensors, features, training."""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from harness import detection_data
from harness.coco import open_coco_pair
from harness.detection_keys import from_detectron2, to_detectron2
from harness.errors import UserError
from tests.harness.coco_toy import SMALL, KilledError, make_coco, trunk

needs_detectron2 = pytest.mark.skipif(
    importlib.util.find_spec("detectron2") is None, reason="needs detectron2"
)
# What detectron2 itself warns of.
quiet = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning",
                                   "ignore:torch.meshgrid:UserWarning")  # fmt: skip


@pytest.fixture(autouse=True)
def no_workers(monkeypatch):
    """Images are read in the test's own process; one test compares."""
    monkeypatch.setattr(detection_data, "loader_workers", lambda: 0)


@pytest.fixture(scope="module")
def toy(tmp_path_factory) -> str:
    return str(make_coco(tmp_path_factory.mktemp("coco") / "toy", images=7))


def test_names_are_translated_as_mocos_converter_does():
    # moco 3402035, detection/convert-pretrain-to-detectron2.py.
    pairs = {
        "conv1.weight": "stem.conv1.weight",
        "bn1.running_mean": "stem.conv1.norm.running_mean",
        "layer1.0.conv2.weight": "res2.0.conv2.weight",
        "layer1.0.downsample.0.weight": "res2.0.shortcut.weight",
        "layer2.0.downsample.1.bias": "res3.0.shortcut.norm.bias",
        "layer4.2.bn3.num_batches_tracked": "res5.2.conv3.norm.num_batches_tracked",
    }
    state = {name: torch.tensor(float(number)) for number, name in enumerate(pairs)}
    assert list(to_detectron2(state)) == list(pairs.values())
    for name in ("resnet50", "resnet18"):
        whole = {k: v for k, v in trunk(name).trunk.state_dict().items()}
        there = to_detectron2(whole | {"fc.weight": torch.zeros(1)})
        assert len(there) == len(whole) == {"resnet50": 318, "resnet18": 120}[name]
        back = from_detectron2(there)
        assert list(back) == list(whole) and all(back[k] is whole[k] for k in whole)


@needs_detectron2
@quiet
@pytest.mark.parametrize(
    ("model", "name"), [("fpn", "resnet50"), ("fpn", "resnet18"), ("c4", "resnet50")]
)
def test_a_converted_trunk_gives_the_same_features_bit_for_bit(model, name):
    from detectron2.modeling import build_model

    from harness.detection_detectron2 import config, load_trunk

    backbone = trunk(name)
    with torch.no_grad():  # statistics that a mistaken name would show
        for module in backbone.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.uniform_(-0.1, 0.1)
                module.running_var.uniform_(0.5, 2)
                module.weight.uniform_(0.5, 2)
                module.bias.uniform_(-0.1, 0.1)
    other = build_model(config(backbone, 2, replace(SMALL, model=model))).eval()
    load_trunk(other, backbone)
    images = torch.randn((2, 3, 64, 96))
    with torch.no_grad():
        found = (other.backbone.bottom_up if model == "fpn" else other.backbone)(images)
        maps = dict(backbone.maps(images))
        if model == "c4":
            found["res5"] = other.roi_heads.res5[:3](found["res4"])
    assert set(found) == {"c4": {"res4", "res5"}}.get(model, {"res2", "res3", "res4", "res5"})
    for stage, value in found.items():
        assert value.equal(maps[f"layer{int(stage[3]) - 1}"]), stage


@needs_detectron2
@quiet
@pytest.mark.parametrize("model", ["c4", "fpn"])
def test_detectron2_trains_resumes_and_evaluates(toy, tmp_path, model, capsys, monkeypatch):
    from harness import detection_detectron2
    from harness.detection_detectron2 import fine_tune

    def die(bar: Any) -> None:
        if bar.trainer.iter == 1:
            raise KilledError

    monkeypatch.setattr(detection_detectron2, "loader_workers", lambda: 0)
    train_split, val = open_coco_pair(toy)
    settings = replace(SMALL, model=model, engine="detectron2", iterations=2)
    backbone = trunk("resnet50" if model == "c4" else "resnet18")
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    state = torch.get_rng_state()
    with monkeypatch.context() as patched, pytest.raises(KilledError):
        patched.setattr(detection_detectron2, "SAVE_ITERATIONS", 1)
        patched.setattr(detection_detectron2._Bar, "before_step", die)
        fine_tune(backbone, train_split, settings, tmp_path)
    found = fine_tune(backbone, train_split, settings, tmp_path)(val)
    assert torch.get_rng_state().equal(state)
    assert all(value.equal(before[name]) for name, value in backbone.state_dict().items())
    assert {row["image_id"] for row in found} <= set(val.image_ids.tolist())
    assert {row["category_id"] for row in found} <= {3, 7}
    assert "going on from iteration 1" in capsys.readouterr().err
    # What was trained is not trained again.
    assert fine_tune(backbone, train_split, settings, tmp_path)(val) == found
    assert "going on from iteration 2" in capsys.readouterr().err


@needs_detectron2
@quiet
@pytest.mark.parametrize(("model", "name"), [("c4", "resnet18"), ("fpn", "resnet18_cifar")])
def test_detectron2_has_not_every_trunk(model, name):
    from harness.detection_detectron2 import config

    with pytest.raises(UserError, match=f"no {model} for {name}.*--engine torchvision"):
        config(trunk(name), 2, replace(SMALL, model=model))
