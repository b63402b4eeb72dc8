"""How releases lay out their checkpoints: containers, prefixes, names of layers, heads."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from harness import haiku
from harness.errors import UserError
from harness.resnets import DEPTHS, PLANS, Plan

State = dict[str, Tensor]

# Where releases keep their weights, nested in any way; the first that is present counts.
_CONTAINERS = (
    ("teacher",),  # DINO's full checkpoints
    ("classy_state_dict", "base_model", "model", "trunk"),  # VISSL
    ("state_dict",),
    ("model",),
    ("model_state_dict",),
    ("resnet",),  # Separius/SimCLRv2-Pytorch
)
_WRAPPERS = ("module.", "_orig_mod.", "model.", "learner.")
# What may stand before a trunk's names, the better one first: DINO's teacher is not to lose to the
# student, MoCo's encoder_q not to its slow copy; neither loser is in this list.
_PREFIXES = (
    *_WRAPPERS,
    "teacher.",
    "teacher_backbone.",
    "encoder_q.",
    "base_encoder.",
    "backbone.",
    "net.",
    "online_encoder.",
    "encoder.",
    "_feature_blocks.",
    "trunk.",
    "f.",
)
# What may stand beside a trunk. Any other name is a reason to refuse the file.
_HEAD = re.compile(
    r"fc|heads?|linear|classifier|neck|proj\w*|pred\w*|prototypes\w*|queue\w*|\w*momentum\w*|"
    r"encoder_[qk]|online_\w+|target_\w+|student\w*|teacher_head|criterion|data_preprocessor|"
    r"bn"  # Barlow Twins' normalisation of its embeddings
)
CONV, PATCHES = "conv1.weight", "patch_embed.proj.weight"
EXPANSION = "avgpool.0.conv1.weight"  # of DISSL's 8,192 features
_PROBES = (CONV, PATCHES)
_LATER_PROBES = ("layer1.0.conv1.weight", "blocks.0.attn.qkv.weight")  # of a trunk without stem
_VITS: dict[tuple[int, ...], str] = {
    # shape of patch_embed.proj.weight
    (384, 3, 16, 16): "vit_small_16",
    (384, 3, 8, 8): "vit_small_8",
    (768, 3, 16, 16): "vit_base_16",
    (768, 3, 8, 8): "vit_base_8",
    (192, 3, 16, 16): "vit_tiny_16",
    (192, 3, 4, 4): "vit_tiny_4",
    (96, 3, 8, 8): "vit_demo",
}


@dataclass(frozen=True, kw_only=True)
class Layout:
    """A trunk in a file, and what stands beside it."""

    container: str  # joined by dots; "" for a flat file
    prefix: str  # of the trunk's names
    dialect: str  # whose names of layers they were: torchvision, timm, sequential, simclr2, haiku
    trunk: State  # under torchvision's or timm's names, without heads
    heads: tuple[str, ...]  # first parts of the names of what is dropped
    unknown: tuple[str, ...]  # tensors that neither belong to a trunk nor to a known head


def find(path: Path, content: Mapping[str, Any]) -> Layout:
    """The one trunk of a checkpoint.

    Raises:
        UserError: There is none under any name that is known.
    """
    container, values = _unwrap(content)
    state = haiku.weights(values) if "experiment_state" in values else None
    if state is not None:
        container = "experiment_state"
    else:
        state = {
            name: value
            for name, value in values.items()
            if isinstance(name, str) and isinstance(value, Tensor) and not value.is_sparse
        }
    found = _search(state, _PROBES) or _search(state, _LATER_PROBES)
    if found is None:
        raise _no_trunk(path, state)
    prefix, dialect, trunk = found
    beside = {_head(name): name for name in state if not name.startswith(prefix)}
    heads = {name.partition(".")[0] for name in trunk if _is_head(name)}
    heads |= {head for head in beside if _HEAD.fullmatch(head)}
    return Layout(
        container=container,
        prefix=prefix,
        dialect="haiku" if container == "experiment_state" else dialect,
        trunk={name: value for name, value in trunk.items() if not _is_head(name)},
        heads=tuple(sorted(heads | set(_siblings(content, container)))),
        unknown=tuple(name for head, name in beside.items() if not _HEAD.fullmatch(head)),
    )


def _unwrap(content: Mapping[str, Any]) -> tuple[str, Mapping[str, Any]]:
    """Path of the innermost container ("" if flat) and what it holds."""
    for keys in _CONTAINERS:
        value: Any = content
        for key in keys:
            value = value.get(key) if isinstance(value, Mapping) else None
        if hasattr(value, "state_dict"):  # a whole module, from a trusted pickle
            value = value.state_dict()
        if isinstance(value, Mapping):
            inner, values = _unwrap(value)
            return ".".join(filter(None, (*keys, inner))), values
    return "", content


def _siblings(content: Mapping[str, Any], container: str) -> Iterator[str]:
    """Names of other mappings of tensors around the container: student, head, heads, loss."""
    level: Any = content
    for key in container.split("."):
        if not isinstance(level, Mapping):
            return
        for name, value in level.items():
            tensors = isinstance(value, Mapping) and any(
                isinstance(v, Tensor) for v in value.values()
            )
            if name != key and tensors:
                yield str(name)
        level = level.get(key)


def _search(
    state: State, probes: tuple[str, ...], prefix: str = ""
) -> tuple[str, str, State] | None:
    """The first nesting of prefixes under which a trunk appears: prefix, dialect, trunk."""
    for dialect, rename in _DIALECTS.items():
        trunk = rename(state)
        if trunk is not None and any(probe in trunk for probe in probes):
            return prefix, dialect, trunk
    for each in _PREFIXES:
        inner = {k[len(each) :]: v for k, v in state.items() if k.startswith(each)}
        found = _search(inner, probes, prefix + each) if inner else None
        if found is not None:
            return found
    return None


def _torchvision(state: State) -> State | None:
    """Also CIFAR's `shortcut` (kuangliu's, IMSVD's) and DISSL's `resizer` (its hubconf.py)."""
    renamed = {}
    for name, value in state.items():
        name = name.replace(".shortcut.", ".downsample.")
        if name.startswith("resizer."):
            name = "avgpool.0." + name.removeprefix("resizer.")
        renamed[name] = value
    return renamed


def _sequential(state: State) -> State | None:
    """nn.Sequential of a ResNet's children, as lightly's examples build their backbone.

    The layers start at 4 with ReLU and max-pool, at 3 without the pool, at 2 without both.
    """
    first = next((i for i in (2, 3, 4) if f"{i}.0.conv1.weight" in state), None)
    if first is None or "0.weight" not in state:
        return None
    names = {"0": "conv1", "1": "bn1"} | {str(first + i): f"layer{i + 1}" for i in range(4)}
    parts = {name: name.partition(".") for name in state}
    return _torchvision(
        {f"{names.get(a, a)}.{rest}": state[name] for name, (a, _, rest) in parts.items()}
    )


_SIMCLR2 = (
    (r"net\.0\.0\.", "conv1."),
    (r"net\.0\.1\.0\.", "bn1."),
    (r"net\.(\d)\.blocks\.(\d+)\.projection\.shortcut\.", r"layer\1.\2.downsample.0."),
    (r"net\.(\d)\.blocks\.(\d+)\.projection\.bn\.0\.", r"layer\1.\2.downsample.1."),
    (r"net\.(\d)\.blocks\.(\d+)\.net\.0\.", r"layer\1.\2.conv1."),
    (r"net\.(\d)\.blocks\.(\d+)\.net\.1\.0\.", r"layer\1.\2.bn1."),
    (r"net\.(\d)\.blocks\.(\d+)\.net\.2\.", r"layer\1.\2.conv2."),
    (r"net\.(\d)\.blocks\.(\d+)\.net\.3\.0\.", r"layer\1.\2.bn2."),
    (r"net\.(\d)\.blocks\.(\d+)\.net\.4\.", r"layer\1.\2.conv3."),
    (r"net\.(\d)\.blocks\.(\d+)\.net\.5\.0\.", r"layer\1.\2.bn3."),
)


def _simclr2(state: State) -> State | None:
    """Separius/SimCLRv2-Pytorch @f4c2f41, the models without selective kernels."""
    if "net.1.blocks.0.net.0.weight" not in state:
        return None
    renamed = {}
    for name, value in state.items():
        for pattern, layer in _SIMCLR2:
            new, hits = re.subn(f"^{pattern}", layer, name)
            if hits:
                name = new
                break
        renamed[name] = value
    return renamed


_DIALECTS = {"torchvision": _torchvision, "sequential": _sequential, "simclr2": _simclr2}


def _head(name: str) -> str:
    """First part of a tensor's name behind its wrappers: which head it belongs to."""
    while (wrapper := next((w for w in _WRAPPERS if name.startswith(w)), None)) is not None:
        name = name.removeprefix(wrapper)
    return name.partition(".")[0]


def _is_head(name: str) -> bool:
    return _HEAD.fullmatch(name.partition(".")[0]) is not None


def _no_trunk(path: Path, state: State) -> UserError:
    shown = ", ".join(list(state)[:3]) or "no tensors"
    if state and all(_HEAD.fullmatch(_head(name)) for name in state):
        return UserError(
            f"{path} holds only a head ({shown}) and no trunk; give --ckpt the backbone that the "
            "head was trained on"
        )
    return UserError(
        f"{path} holds no known trunk: neither {CONV} nor {PATCHES} under any known prefix, but "
        f"{shown}; convert it to torchvision's or timm's names"
    )


def detect_arch(path: Path, trunk: State) -> str:
    """Name of the backbone, from the shapes of its first layer and the number of its blocks.

    Raises:
        UserError: The first layer is missing, or there is no such backbone.
    """
    probe = next((probe for probe in _PROBES if probe in trunk), None)
    if probe is None:
        raise UserError(
            f"{path} lacks its trunk's first layer, so that its architecture doesn't show; name it "
            "with --arch"
        )
    shape, seen = tuple(trunk[probe].shape), ""
    known = {name: _signature(plan) for name, plan in PLANS.items()}
    if probe == PATCHES:
        known = {name: kernel for kernel, name in _VITS.items()}
        found = next((name for name, kernel in known.items() if kernel == shape), None)
    else:
        blocks = tuple(_blocks(trunk, layer) for layer in range(1, 5))
        seen = f" and whose layers have {'-'.join(map(str, blocks))} blocks"
        bottleneck, wider = "layer1.0.conv3.weight" in trunk, EXPANSION in trunk
        signature = (shape, bottleneck, blocks, wider)
        # Plans that differ in what weights don't show come after the plain one.
        found = next((name for name, plan in known.items() if plan == signature), None)
    if found is None:
        raise UserError(
            f"{path} holds a trunk whose first layer is {'x'.join(map(str, shape))}{seen}, which "
            f"is none of {', '.join(known)}; name the closest with --arch"
        )
    return found


def _signature(plan: Plan) -> tuple[Any, ...]:
    """What a ResNet's weights show of its plan."""
    kernel = 7 if plan.stem == "imagenet" else 3
    first_layer = (plan.channels, 3, kernel, kernel)
    return first_layer, *DEPTHS[plan.depth], plan.wide_output is not None


def _blocks(trunk: State, layer: int) -> int:
    start = f"layer{layer}."
    return len({name.split(".")[1] for name in trunk if name.startswith(start)})


def image_size(trunk: State) -> int:
    """Side of the images that a ViT's position embeddings are made for; 224 for ResNets."""
    if "pos_embed" not in trunk or PATCHES not in trunk:
        return 224
    return math.isqrt(trunk["pos_embed"].shape[1] - 1) * trunk[PATCHES].shape[-1]
