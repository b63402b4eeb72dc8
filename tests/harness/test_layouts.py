"""Every layout that was released, written synthetically, gives the trunk it was made from."""

from __future__ import annotations

import argparse
import dataclasses
import pickle
import re
import sys
import types
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from harness.backbone import Backbone, build_backbone
from harness.errors import UserError
from harness.foreign import load_checkpoint
from harness.recipe import BackboneSpec
from harness.resnets import PLANS
from harness.views import IMAGENET_PIXELS, RAW_PIXELS, SWAV_PIXELS

State = dict[str, Tensor]
HEAD = torch.zeros((2, 2))
IMAGES = torch.sin(torch.arange(2 * 3 * 64 * 64).float() * 0.011).reshape(2, 3, 64, 64)


@pytest.fixture(scope="module", autouse=True)
def slim() -> Iterator[None]:
    """A quarter of ResNet-50's channels: layouts are about names, and 25 M weights take seconds.

    The full shapes are held by test_backbone.py.
    """
    narrow = {
        name: dataclasses.replace(plan, channels=16)
        for name, plan in PLANS.items()
        if plan.depth == 50 and plan.channels == 64
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, plan in narrow.items():
            patch.setitem(PLANS, name, plan)
        yield


@pytest.fixture(scope="module")
def trunks(slim: None) -> Callable[[str], Backbone]:
    """Each trunk is built once, with statistics that show whether they arrive."""
    built: dict[str, Backbone] = {}

    def trunk(name: str) -> Backbone:
        if name not in built:
            torch.manual_seed(len(built))
            built[name] = build_backbone(BackboneSpec(name=name), 64).eval()
            for key, value in built[name].trunk.state_dict().items():
                if "running_var" in key:
                    value.uniform_(0.5, 1.5)
                elif value.dim() == 1:
                    value.add_(torch.empty_like(value).uniform_(-0.1, 0.1))
            assert features(built[name]).std(dim=1).min() > 0.01
        return built[name]

    return trunk


def features(backbone: Backbone) -> Tensor:
    side = 64 if backbone.is_vit else 32
    with torch.inference_mode():
        return backbone(IMAGES[..., :side, :side])


def under(prefix: str, state: State) -> State:
    return {prefix + name: value for name, value in state.items()}


def slow(state: State) -> State:
    """Another trunk of the same names: loading it instead would show."""
    return {name: value + 1 for name, value in state.items()}


def heads(*names: str) -> State:
    return dict.fromkeys((f"{name}.0.weight" for name in names), HEAD)


def dino(s: State) -> dict[str, Any]:
    return {
        "student": under("module.backbone.", slow(s)) | heads("module.head"),
        # The ViT's teacher has no `module.`, the ResNet's has it.
        "teacher": under("backbone.", s) | {"head.last_layer.weight_g": HEAD},
        "optimizer": {"state": {}, "param_groups": []},
        "epoch": 3,
        "args": argparse.Namespace(arch="vit_small"),
        "dino_loss": {"center": HEAD},
        "fp16_scaler": None,
    }


def moco(s: State, *fc: str) -> dict[str, Any]:
    # The slow copy comes first, as a trap.
    return {
        "epoch": 200,
        "arch": "resnet50",
        "state_dict": under("module.encoder_k.", slow(s) | heads(*fc))
        | under("module.encoder_q.", s | heads(*fc))
        | {"module.queue": HEAD, "module.queue_ptr": HEAD},
        "optimizer": {"state": {}},
    }


def vissl(s: State) -> dict[str, Any]:
    model = {"trunk": under("_feature_blocks.", s), "heads": heads("0.clf")}
    return {"classy_state_dict": {"base_model": {"model": model}}}


def byol_convert(s: State) -> State:
    """Parameters, then statistics, no counters (chigur/byol-convert @e527ae6, convert.py)."""
    params = {k: v for k, v in s.items() if "running" not in k and "num_batches" not in k}
    fc = {"fc.weight": HEAD, "fc.bias": HEAD}
    return params | fc | {k: v for k, v in s.items() if "running" in k}


def tonylins(s: State) -> dict[str, Any]:
    """The shortcut is registered first (tonylins/simclr-converter @139d3cb, resnet_wider.py)."""
    stem = {k: v for k, v in s.items() if not k.startswith("layer")}
    blocks = {".".join(k.split(".")[:2]) for k in s if k.startswith("layer")}
    for block in sorted(blocks):
        own = {k: v for k, v in s.items() if k.startswith(block + ".")}
        stem |= {k: v for k, v in own.items() if "downsample" in k} | own
    return {"state_dict": stem | {"fc.weight": HEAD, "fc.bias": HEAD}}


def separius(s: State) -> dict[str, Any]:
    """Names of Separius/SimCLRv2-Pytorch @f4c2f41, resnet.py."""
    places = {"conv1": "net.0", "bn1": "net.1.0", "conv2": "net.2", "bn2": "net.3.0"}
    places |= {"conv3": "net.4", "bn3": "net.5.0"}
    places |= {"downsample.0": "projection.shortcut", "downsample.1": "projection.bn.0"}
    renamed = {}
    for name, value in s.items():
        layer, _, rest = name.partition(".")
        if not layer.startswith("layer"):
            stem = "net.0.0" if layer == "conv1" else "net.0.1.0"
            renamed[f"{stem}.{rest}"] = value
            continue
        index, _, rest = rest.partition(".")
        place, _, leaf = rest.rpartition(".")
        renamed[f"net.{layer[5:]}.blocks.{index}.{places[place]}.{leaf}"] = value
    return {"resnet": renamed | {"fc.weight": HEAD, "fc.bias": HEAD}, "head": heads("layers")}


def sequential(s: State, first: int) -> State:
    """nn.Sequential(*children) of a ResNet whose layer1 is child `first`."""
    places = {"conv1": 0, "bn1": 1} | {f"layer{i + 1}": first + i for i in range(4)}
    parts = [(name.partition("."), value) for name, value in s.items()]
    return {f"{places[a]}.{rest}": value for (a, _, rest), value in parts}


def lightning(s: dict[str, Any]) -> dict[str, Any]:
    return {"epoch": 1, "pytorch-lightning_version": "2.0.0", "state_dict": s, "callbacks": {}}


def shortcuts(s: State) -> State:
    return {name.replace("downsample", "shortcut"): value for name, value in s.items()}


def resizer(s: State) -> State:
    return {name.replace("avgpool.0.", "resizer."): value for name, value in s.items()}


# trunk, its file's content, family, heads that are dropped
Case = tuple[str, Callable[[State], dict[str, Any]], str, str]
TINY, R50, CIFAR, VIT = "resnet_tiny", "resnet50", "resnet18_cifar", "vit_demo"
CASES: dict[str, Case] = {
    "torchvision names, flat": (TINY, dict, "torchvision", ""),
    "torchvision, supervised": (TINY, lambda s: s | {"fc.weight": HEAD}, "torchvision", "fc"),
    "timm, supervised": (VIT, lambda s: s | {"head.weight": HEAD}, "timm", "head"),
    "DINO, ViT": (VIT, dict, "timm", ""),
    "DINO, full": (VIT, dino, "dino", "dino_loss head student"),
    "DINO, full ResNet": (
        TINY,
        lambda s: {"student": s, "teacher": under("module.backbone.", s) | heads("module.head")},
        "dino",
        "head student",
    ),
    "VICReg and IMSVD, full": (
        TINY,
        lambda s: {
            "epoch": 1,
            "model": under("module.backbone.", s) | heads("module.projector"),
            "optimizer": {"state": {}},
        },
        "vicreg",
        "projector",
    ),
    "Barlow Twins, full": (
        TINY,
        lambda s: {
            "model": under("module.backbone.", s)
            | heads("module.projector")
            | {"module.bn.running_mean": HEAD}
        },
        "barlow_twins",
        "bn projector",
    ),
    "MoCo v1": (TINY, lambda s: moco(s, "fc"), "moco", "encoder_k fc queue queue_ptr"),
    "MoCo v2 and PCL": (
        TINY,
        lambda s: moco(s, "fc.0", "fc.2"),
        "moco",
        "encoder_k fc queue queue_ptr",
    ),
    "MoCo v3": (
        "vit_small_16_heads12",
        lambda s: {
            "state_dict": under("module.momentum_encoder.", slow(s))
            | under("module.base_encoder.", s | heads("head"))
            | heads("module.predictor")
        },
        "moco_v3",
        "head momentum_encoder predictor",
    ),
    "SimSiam": (
        TINY,
        lambda s: {
            "state_dict": under("module.encoder.", s | heads("fc")) | heads("module.predictor")
        },
        "simsiam",
        "fc predictor",
    ),
    "SwAV, flat": (
        TINY,
        lambda s: (
            under("module.", s)
            | heads("module.projection_head")
            | {"module.prototypes.weight": HEAD}
        ),
        "swav",
        "projection_head prototypes",
    ),
    "SwAV, state_dict": (
        TINY,
        lambda s: {
            "state_dict": under("module.", s)
            | heads("module.projection_head", "module.prototypes.prototypes0")
        },
        "swav",
        "projection_head prototypes",
    ),
    "VISSL": (TINY, vissl, "vissl", "heads"),
    "DISSL": ("resnet50_d8192", resizer, "dissl", ""),
    "CorInfoMax": (TINY, lambda s: under("backbone.", s), "torchvision", ""),
    "CorInfoMax, full": (
        CIFAR,
        lambda s: {
            "epoch": 1,
            "model_state_dict": under("backbone.", s) | heads("projector"),
            "optimizer_state_dict": {"state": {}},
        },
        "corinfomax",
        "projector",
    ),
    "BYOL, chigur": ("resnet50_same", byol_convert, "byol", "fc"),
    "SimCLR, tonylins": (R50, tonylins, "simclr", "fc"),
    "SimCLR, Separius": (R50, separius, "simclr", "fc head"),
    "mmselfsup": (
        TINY,
        lambda s: {
            "meta": {"mmselfsup_version": "1.0"},
            "state_dict": under("backbone.", s) | heads("neck", "head", "target_net"),
        },
        "mmselfsup",
        "head neck target_net",
    ),
    "lightly": (
        TINY,
        lambda s: lightning(
            under("backbone_momentum.", slow(s)) | under("backbone.", s) | heads("projection_head")
        ),
        "lightly",
        "backbone_momentum projection_head",
    ),
    "lightly, nn.Sequential": (
        TINY,
        lambda s: lightning(under("backbone.", sequential(s, 4)) | heads("projection_head")),
        "lightly",
        "projection_head",
    ),
    "lightly, its CIFAR ResNet": (
        CIFAR,
        lambda s: lightning(under("backbone.", sequential(shortcuts(s), 2))),
        "torchvision",
        "",
    ),
    "leftthomas": (
        CIFAR,
        lambda s: under("module.f.", sequential(s, 3)) | heads("module.projector"),
        "torchvision",
        "projector",
    ),
    "solo-learn": (
        TINY,
        lambda s: lightning(
            under("momentum_backbone.", slow(s))
            | under("backbone.", s)
            | heads("projector", "classifier", "momentum_projector")
        ),
        "solo_learn",
        "classifier momentum_backbone momentum_projector projector",
    ),
    "solo-learn, nested on CIFAR": (
        "resnet18_cifar_pad2",
        lambda s: lightning(under("backbone.encoder.", s) | heads("projector", "classifier")),
        "solo_learn",
        "classifier projector",
    ),
    "lucidrains, net": (TINY, lambda s: under("net.", s), "torchvision", ""),
    "lucidrains": (
        TINY,
        lambda s: (
            under("target_encoder.net.", slow(s))
            | under("online_encoder.net.", s)
            | heads("online_encoder.projector", "online_predictor")
        ),
        "byol_pytorch",
        "online_encoder online_predictor target_encoder",
    ),
    "W-MSE": (CIFAR, lambda s: under("model.module.", s) | heads("head"), "w_mse", "head"),
    "IMSVD on CIFAR": (
        CIFAR,
        lambda s: shortcuts(s) | {"linear.weight": HEAD},
        "torchvision",
        "linear",
    ),
    "wrapped by everybody": (
        TINY,
        lambda s: lightning(
            {"state_dict": under("learner.module._orig_mod.model.backbone._orig_mod.", s)}
        ),
        "torchvision",
        "",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_a_released_layout_gives_the_features_of_its_trunk(case, trunks, tmp_path):
    name, content, family, dropped = CASES[case]
    trunk = trunks(name)
    path = tmp_path / "released.pth"
    torch.save(content(trunk.trunk.state_dict()), path)
    found, info = load_checkpoint(path)
    assert torch.equal(features(found), features(trunk))
    assert (info.arch, info.family, info.unexpected) == (name, family, tuple(dropped.split()))
    counters = sum(key.endswith("tracked") for key in trunk.trunk.state_dict())
    assert info.matched + len(info.missing) == len(trunk.trunk.state_dict())
    assert len(info.missing) in (0, counters) and not info.partial
    pixels = {"swav": SWAV_PIXELS, "simclr": RAW_PIXELS}.get(family, IMAGENET_PIXELS)
    assert found.pixels == pixels
    assert f"normalised by mean {pixels.mean} and std {pixels.std}" in info.report()


def test_safetensors_are_read(tmp_path, trunks):
    save_file(trunks(TINY).trunk.state_dict(), tmp_path / "model.safetensors")
    found, info = load_checkpoint(tmp_path / "model.safetensors")
    assert torch.equal(features(found), features(trunks(TINY))) and info.arch == TINY


class Absent:
    """Classes of modules that can be made to be gone: as if they were not installed."""

    def __init__(self) -> None:
        self.modules: list[str] = []

    def add(self, module: str, name: str, kind: Any) -> Any:
        """Give `kind` the name `module.name`, so that pickles look for it there."""
        parts = module.split(".")
        for end in range(1, len(parts) + 1):
            part = ".".join(parts[:end])
            assert part not in sys.modules or part in self.modules
            sys.modules[part] = types.ModuleType(part)
            self.modules.append(part)
        kind.__module__, kind.__qualname__, kind.__name__ = module, name, name
        setattr(sys.modules[module], name, kind)
        return kind

    def forget(self) -> None:
        """Remove them all."""
        while self.modules:
            sys.modules.pop(self.modules.pop(), None)


@pytest.fixture
def absent() -> Iterator[Absent]:
    classes = Absent()
    yield classes
    classes.forget()


class Frozen:
    """Pickles as haiku's frozendict does."""

    def __init__(self, given: dict[str, Any]) -> None:
        self.given = given

    def __reduce__(self) -> tuple:
        return type(self), (self.given,)


def test_npids_pickled_memory_bank_needs_trust_and_is_then_left_out(tmp_path, trunks, absent):
    bank = absent.add("lib.NCEAverage", "NCEAverage", type("NCEAverage", (torch.nn.Module,), {}))()
    bank.register_buffer("memory", HEAD)
    state = trunks(TINY).trunk.state_dict() | {"fc.weight": HEAD, "fc.bias": HEAD}
    content = {"epoch": 200, "state_dict": under("module.", state), "lemniscate": bank}
    torch.save(content, tmp_path / "lemniscate_resnet50_update.pth")
    absent.forget()
    said = r"needs lib\.NCEAverage\.NCEAverage, and loading that may run any code; if you trust"
    with pytest.raises(UserError, match=said):
        load_checkpoint(tmp_path / "lemniscate_resnet50_update.pth")
    found, info = load_checkpoint(tmp_path / "lemniscate_resnet50_update.pth", trust=True)
    assert torch.equal(features(found), features(trunks(TINY)))
    assert (info.family, info.unexpected) == ("npid", ("fc",))


def test_hyper_parameters_of_a_library_that_is_not_installed_need_trust(tmp_path, trunks, absent):
    kind = absent.add("lightning_like.parsing", "AttributeDict", type("_", (dict,), {}))
    state = trunks(TINY).trunk.state_dict()
    content = lightning(under("backbone.", state)) | {"hyper_parameters": kind(lr=0.1)}
    torch.save(content, tmp_path / "last.ckpt")
    absent.forget()
    with pytest.raises(UserError, match=r"needs lightning_like\.parsing\.AttributeDict, and"):
        load_checkpoint(tmp_path / "last.ckpt")
    found, _ = load_checkpoint(tmp_path / "last.ckpt", trust=True)
    assert torch.equal(features(found), features(trunks(TINY)))


def haiku_of(s: State) -> tuple[dict[str, Any], dict[str, Any]]:
    """Params and state as haiku's ResNet-50 names them."""
    params: dict[str, Any] = {}
    state: dict[str, Any] = {}
    for name, value in s.items():
        module, _, leaf = name.rpartition(".")
        hit = re.fullmatch(r"layer(\d)\.(\d)\.(conv|bn|downsample\.)(\d)", module)
        if hit is None:
            path = "res_net50/~/initial_" + module.replace("bn", "batchnorm").rstrip("1")
        else:
            kind = {"conv": "conv", "bn": "batchnorm"}.get(hit[3])
            last = f"{kind}_{int(hit[4]) - 1}"
            if kind is None:
                last = "shortcut_" + ("conv", "batchnorm")[int(hit[4])]
            path = f"res_net50/~/block_group_{int(hit[1]) - 1}/~/block_{hit[2]}/~/{last}"
        array = value.numpy()
        if leaf == "weight" and value.dim() == 4:
            params.setdefault(path, {})["w"] = array.transpose(2, 3, 1, 0)
        elif leaf in ("weight", "bias"):
            side = {"weight": "scale", "bias": "offset"}[leaf]
            params.setdefault(path, {})[side] = array.reshape(1, 1, 1, -1)
        elif leaf.startswith("running"):
            average = {"running_mean": "mean_ema", "running_var": "var_ema"}[leaf]
            array = array.reshape(1, 1, 1, -1)
            state[f"{path}/~/{average}"] = {"hidden": array, "average": array, "counter": 9}
    params["projector/linear"] = {"w": np.zeros((2, 2)), "b": np.zeros(2)}
    params["classifier"] = {"w": np.zeros((2, 2)), "b": np.zeros(2)}
    return params, state


def test_byols_own_pickle_is_read_without_jax_and_haiku(tmp_path, trunks, absent):
    trunk = trunks("resnet50_same")
    frozen = absent.add("haiku._src.data_structures", "frozendict", type("_", (Frozen,), {}))
    experiment = absent.add("byol.byol_experiment", "_ByolExperimentState", type("_", (tuple,), {}))
    params, state = haiku_of(trunk.trunk.state_dict())
    target, _ = haiku_of(slow(trunk.trunk.state_dict()))
    nets = [frozen({k: frozen(v) for k, v in net.items()}) for net in (params, target, state)]
    content = {"experiment_state": experiment([*nets, nets[2], None]), "step": 9, "rng": None}
    path = tmp_path / "pretrain_res50x1.pkl"
    path.write_bytes(pickle.dumps(content, protocol=4))
    absent.forget()
    with pytest.raises(UserError, match="add --trust-checkpoint"):
        load_checkpoint(path)
    found, info = load_checkpoint(path, trust=True)
    assert torch.equal(features(found), features(trunk))
    assert (info.arch, info.family) == ("resnet50_same", "byol")
    assert info.unexpected == ("fc", "projector")
    assert 'pad as TensorFlow\'s "SAME" does' in info.report()


def test_dinos_linear_weights_are_refused_as_a_head_without_trunk(tmp_path):
    content = {
        "epoch": 100,
        "state_dict": {"module.linear.weight": HEAD, "module.linear.bias": HEAD},
    }
    torch.save(content, tmp_path / "dino_linearweights.pth")
    with pytest.raises(UserError, match=r"holds only a head \(module.linear.weight, .*no trunk"):
        load_checkpoint(tmp_path / "dino_linearweights.pth")


def test_two_trunks_of_which_none_is_a_known_copy_are_not_guessed_between(tmp_path, trunks):
    state = trunks(TINY).trunk.state_dict()
    torch.save(under("backbone.", state) | under("encoder.", slow(state)), tmp_path / "x.pth")
    with pytest.raises(UserError, match=r"it has unknown encoder\."):
        load_checkpoint(tmp_path / "x.pth")


@pytest.mark.parametrize(
    ("file", "said"),
    [
        ("swav_800ep.pth", "the file's name looks like swav's: if it is, add --family swav"),
        ("simclr.pth", "looks like simclr's: if it is, add --family simclr"),
        ("resnet.pth", "nothing in it says who trained it: if SwAV, Google's SimCLR or DeepMind's"),
    ],
)
def test_a_file_name_is_a_hint_in_the_report_and_changes_nothing(tmp_path, trunks, file, said):
    torch.save(trunks(TINY).trunk.state_dict(), tmp_path / file)
    found, info = load_checkpoint(tmp_path / file)
    assert said in info.report()
    assert found.pixels == IMAGENET_PIXELS and info.family == "torchvision"


def test_the_user_says_the_family_that_a_stripped_file_does_not_show(tmp_path, trunks):
    path = tmp_path / "stripped.pth"
    torch.save(trunks(TINY).trunk.state_dict(), path)
    found, info = load_checkpoint(path, family="swav")
    assert (found.pixels, info.family, info.arch) == (SWAV_PIXELS, "swav", TINY)
    assert "family swav, as told" in info.report() and "add --family" not in info.report()
    assert torch.equal(features(found), features(trunks(TINY)))
    assert info.identity != load_checkpoint(path)[1].identity
    assert load_checkpoint(path, family="augreg")[0].pixels.mean == (0.5, 0.5, 0.5)
    with pytest.raises(UserError, match=r"unknown family 'swaw': did you mean swav\?"):
        load_checkpoint(path, family="swaw")


def test_byols_padding_comes_with_the_family_or_the_arch(tmp_path, trunks):
    path = tmp_path / "stripped.pth"
    torch.save(trunks("resnet50_same").trunk.state_dict(), path)
    found, info = load_checkpoint(path, family="byol")
    assert info.arch == "resnet50_same" and "SAME" in info.report()
    assert torch.equal(features(found), features(trunks("resnet50_same")))
    info = load_checkpoint(path)[1]
    assert info.arch == "resnet50" and "SAME" not in info.report()
