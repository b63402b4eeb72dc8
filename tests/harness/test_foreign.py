"""A checkpoint is loaded whole or refused in one sentence, and nothing in it is executed."""

from __future__ import annotations

import argparse
import os
import pickle
import re
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from harness.backbone import Backbone, build_backbone
from harness.checkpoint import save_backbone
from harness.command import main
from harness.errors import UserError
from harness.foreign import load_checkpoint
from harness.recipe import BackboneSpec

State = dict[str, Tensor]
HEAD = torch.zeros((2, 2))


@pytest.fixture(scope="module")
def resnet() -> Backbone:
    torch.manual_seed(0)
    return build_backbone(BackboneSpec(name="resnet_tiny"), 224)


def write(path: Path, content: Any) -> Path:
    torch.save(content, path)
    return path


def same_weights(one: Backbone, two: Backbone) -> bool:
    ours, theirs = one.trunk.state_dict(), two.trunk.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in ours)


def test_our_own_checkpoint_brings_what_its_trainer_wrote_down(tmp_path, resnet):
    path = tmp_path / "backbone.pt"
    save_backbone(resnet, path, seed=3, seconds=1.5)
    found, info = load_checkpoint(path)
    assert same_weights(found, resnet)
    assert (info.family, info.training) == ("ours", {"seed": 3, "seconds": 1.5})
    assert info.identity == info.sha256
    with pytest.raises(UserError, match="holds a resnet_tiny, not resnet50; leave out --arch"):
        load_checkpoint(path, arch="resnet50")
    with pytest.raises(
        UserError, match="was written by this harness, not by swav; leave out --fam"
    ):
        load_checkpoint(path, family="swav")


def test_counters_that_old_releases_lack_are_reported_missing_and_nothing_else(tmp_path, resnet):
    state = {
        name: value
        for name, value in resnet.trunk.state_dict().items()
        if not name.endswith("num_batches_tracked")
    }
    _, info = load_checkpoint(write(tmp_path / "old.pth", state))
    assert len(info.missing) == 12 and info.matched == len(state) and not info.partial


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_of_another_precision_are_converted_and_the_report_says_so(tmp_path, resnet, kind):
    state = {
        name: value.to(kind) if value.is_floating_point() else value
        for name, value in resnet.trunk.state_dict().items()
    }
    found, info = load_checkpoint(write(tmp_path / "half.pth", state))
    assert f"converted from {str(kind).removeprefix('torch.')} to float32" in info.report()
    for name, value in found.trunk.state_dict().items():
        assert value.dtype in (torch.float32, torch.int64)
        assert torch.equal(value, state[name].to(value.dtype))


SPOILT: dict[str, tuple[Callable[[State], Any], str]] = {
    "a layer is gone": (lambda s: s.pop("layer3.0.bn1.weight"), "it lacks layer3.0.bn1.weight"),
    "a layer is renamed": (
        lambda s: s.update({"layer3.0.norm.weight": s.pop("layer3.0.bn1.weight")}),
        "it lacks layer3.0.bn1.weight; it has unknown layer3.0.norm.weight; use",
    ),
    "an unknown layer": (
        lambda s: s.update({"layer9.weight": HEAD}),
        "it has unknown layer9.weight",
    ),
    "another shape": (
        lambda s: s.update({"bn1.weight": torch.ones(32)}),
        r"it has bn1.weight of shape \(32,\) instead of \(16,\)",
    ),
    "not a number": (
        lambda s: s.update({"bn1.weight": torch.full((16,), torch.nan)}),
        "it has values in bn1.weight that are not finite",
    ),
    "no block": (
        lambda s: [s.pop(k) for k in list(s) if k.startswith("layer4")],
        "whose layers have 1-1-1-0 blocks, which is none of resnet18, ",
    ),
    "no first layer": (
        lambda s: s.pop("conv1.weight"),
        "lacks its trunk's first layer, so that its architecture doesn't show; name it with --arch",
    ),
    "another first layer": (
        lambda s: s.update({"conv1.weight": torch.ones((8, 3, 7, 7))}),
        "whose first layer is 8x3x7x7 and .*; name the closest with --arch",
    ),
    "other names": (
        lambda s: [s.update({"stage." + k: s.pop(k)}) for k in list(s)],
        "holds no known trunk: neither conv1.weight nor patch_embed.proj.weight under any .* but "
        "stage.conv1.weight, .*; convert it to torchvision's or timm's names",
    ),
}


@pytest.mark.parametrize("case", SPOILT)
def test_anything_short_of_the_whole_trunk_is_refused(tmp_path, resnet, case):
    spoil, said = SPOILT[case]
    state = OrderedDict(resnet.trunk.state_dict())
    spoil(state)
    with pytest.raises(UserError, match=said):
        load_checkpoint(write(tmp_path / "partial.pth", state))


def test_the_wrong_arch_is_refused(tmp_path, resnet):
    path = write(tmp_path / "tiny.pth", resnet.trunk.state_dict())
    with pytest.raises(UserError, match=r"is not a whole resnet18: it lacks .* and \d+ more diff"):
        load_checkpoint(path, arch="resnet18")
    with pytest.raises(
        UserError, match=r"unknown backbone 'resnet_tine': did you mean resnet_tiny"
    ):
        load_checkpoint(path, arch="resnet_tine")


def test_a_partial_load_keeps_the_same_initial_values_every_time_and_says_so_loudly(
    tmp_path, resnet
):
    state = dict(resnet.trunk.state_dict())
    state |= {"layer2.0.conv1.weight": HEAD, "layer9.weight": HEAD}
    del state["conv1.weight"]
    path = write(tmp_path / "partial.pth", state)
    torch.manual_seed(1)
    one, info = load_checkpoint(path, arch="resnet_tiny", allow_partial=True)
    drawn = torch.rand(1)
    torch.manual_seed(1)
    assert torch.equal(torch.rand(1), drawn)  # nothing else's randomness is touched
    two, _ = load_checkpoint(path, arch="resnet_tiny", allow_partial=True)
    assert same_weights(one, two)
    assert info.partial and info.missing == ("conv1.weight", "layer2.0.conv1.weight")
    assert info.matched == len(resnet.trunk.state_dict()) - 2
    assert torch.equal(one.trunk.layer4[0].conv1.weight, resnet.trunk.layer4[0].conv1.weight)
    assert (
        "WARNING: PARTIAL LOAD: it lacks conv1.weight; it has unknown layer9.weight; it has "
        "layer2.0.conv1.weight of shape (2, 2) instead of (32, 16, 3, 3). 2 of 72 tensors KEEP "
        "THEIR RANDOM INITIAL VALUES"
    ) in info.report()
    with pytest.raises(UserError, match="or load what fits with --allow-partial"):
        load_checkpoint(path, arch="resnet_tiny")


def test_a_whole_trunk_is_not_partial_even_where_that_is_allowed(tmp_path, resnet):
    path = write(tmp_path / "whole.pth", resnet.trunk.state_dict())
    _, info = load_checkpoint(path, allow_partial=True)
    assert not info.partial and "PARTIAL" not in info.report()


class Malicious:
    """An object whose pickle runs a shell command when it is loaded."""

    def __init__(self, witness: Path) -> None:
        self.witness = witness

    def __reduce__(self) -> tuple:
        return os.system, (f"touch {self.witness}",)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:100_000])


def payload(path: Path) -> Malicious:
    return Malicious(path.parent / "ran")


def another_zip(path: Path, _: State) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "hello")


def without_end(path: Path, _: State) -> None:
    content: dict[str, Any] = {}
    content["model"] = content
    torch.save(content, path)


def old(content: Any, path: Path) -> None:
    torch.save(content, path, _use_new_zipfile_serialization=False)


LFS = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n"
WRITERS: dict[str, Callable[[Path, State], Any]] = {
    "payload": lambda p, s: torch.save({"state_dict": s, "extra": payload(p)}, p),
    "payload, old format": lambda p, s: old({"state_dict": s, "extra": payload(p)}, p),
    "payload, newer protocol": lambda p, s: torch.save(payload(p), p, pickle_protocol=4),
    "payload, plain pickle": lambda p, _: p.write_bytes(pickle.dumps(payload(p), protocol=4)),
    "payload, plain and old": lambda p, _: p.write_bytes(pickle.dumps(payload(p), protocol=2)),
    "truncated": lambda p, s: (torch.save(s, p), cut(p)),
    "truncated, old format": lambda p, s: (old(s, p), cut(p)),
    "truncated safetensors": lambda p, s: (save_file(s, p), cut(p)),
    "web page": lambda p, _: p.write_text("\n<!DOCTYPE html><html>404 Not Found</html>"),
    "LFS pointer": lambda p, _: p.write_text(LFS),
    "empty": lambda p, _: p.touch(),
    "folder": lambda p, _: p.mkdir(),
    "noise": lambda p, _: p.write_bytes(b"\x93not a checkpoint" * 10),
    "another zip": another_zip,
    "tensor": lambda p, _: torch.save(torch.zeros(3), p),
    "without end": without_end,
    "nothing": lambda p, _: None,
}
DAMAGED = r"is not a PyTorch checkpoint or is damaged \(.+\); get it again"
HOSTILE = {
    "payload": r"is a pickle that needs \w+\.system, and .* add --trust-checkpoint",
    "payload, old format": r"is a pickle that needs \w+\.system, and .* add --trust-checkpoint",
    "payload, newer protocol": "is a pickle of a newer protocol .* add --trust-checkpoint",
    "payload, plain pickle": "is a plain pickle, not torch's, and .* add --trust-checkpoint",
    "payload, plain and old": r"is a (plain )?pickle.*, and .* add --trust-checkpoint",
    "truncated": DAMAGED,
    "truncated, old format": DAMAGED,
    "truncated safetensors": r"is not a whole safetensors file \(.*\); get it again",
    "web page": "is an HTML or XML page, which is what a failed download leaves; get it again",
    "LFS pointer": "is a Git LFS pointer, not what it points to; get it again",
    "empty": "is empty; get it again",
    "folder": "is a folder; give --ckpt the path of a checkpoint's file",
    "noise": DAMAGED,
    "another zip": DAMAGED,
    "tensor": r"holds a Tensor where weights by name are needed; save its state_dict\(\) instead",
    "without end": "is nested without end; get it again",
    "nothing": "is no checkpoint at .*; give --ckpt the path of a file",
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_file_gives_one_sentence_and_status_2_and_runs_nothing(
    tmp_path, resnet, kind, capsys
):
    path = tmp_path / ("x.safetensors" if "safetensors" in kind else "x.pth")
    WRITERS[kind](path, resnet.trunk.state_dict())
    with pytest.raises(SystemExit) as ended:
        main("knn", ["--ckpt", str(path), "--out", str(tmp_path / "out")])
    said = capsys.readouterr()
    assert ended.value.code == 2 and said.out == ""
    assert re.fullmatch(rf"error: (\S+|there) {HOSTILE[kind]}\n", said.err)
    assert not (tmp_path / "ran").exists() and not (tmp_path / "out").exists()


def test_a_trusted_pickle_is_loaded_whatever_it_runs(tmp_path, resnet):
    WRITERS["payload"](tmp_path / "x.pth", resnet.trunk.state_dict())
    found, _ = load_checkpoint(tmp_path / "x.pth", trust=True)
    assert same_weights(found, resnet) and (tmp_path / "ran").exists()


def test_a_whole_model_that_was_pickled_needs_trust(tmp_path, resnet):
    path = write(tmp_path / "model.pth", {"model": resnet.trunk.layer1})
    with pytest.raises(UserError, match="add --trust-checkpoint"):
        load_checkpoint(path)
    with pytest.raises(UserError, match=r"holds no known trunk: .* but 0\.conv1\.weight"):
        load_checkpoint(path, trust=True)


def test_a_namespace_of_plain_values_needs_no_trust(tmp_path, resnet):
    content = {"state_dict": resnet.trunk.state_dict(), "args": argparse.Namespace(lr=0.1)}
    assert same_weights(load_checkpoint(write(tmp_path / "x.pth", content))[0], resnet)
