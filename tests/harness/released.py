"""Checkpoints as they are released: content, family and heads of each layout (synthetic)."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

State = dict[str, Tensor]
HEAD = torch.zeros((2, 2))


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
