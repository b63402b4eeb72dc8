"""Checkpoints released by others: detect, rename keys, load the whole trunk or refuse."""

from __future__ import annotations

import argparse
import hashlib
import math
import pickle
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from harness.backbone import Backbone, build_backbone
from harness.checkpoint import FORMAT, load_backbone
from harness.errors import UserError
from harness.recipe import BackboneSpec

State = dict[str, Tensor]

# How torch's restricted unpickler names what it won't call.
_REFUSED = re.compile(
    r"(?:Unsupported global: GLOBAL|Unsupported class|unrecognized function) (\S+)"
)

# Where releases keep their weights, the first that is present counts; else the file is flat.
_CONTAINERS = (
    "teacher",  # DINO's full checkpoints
    "classy_state_dict.base_model.model.trunk",  # VISSL
    "state_dict",
    "model",
    "model_state_dict",
    "resnet",
)
# Wrappers around the trunk; encoder_k, MoCo's slow copy, is not among them.
_PREFIXES = (
    "module.",
    "_orig_mod.",
    "teacher.",
    "encoder_q.",
    "base_encoder.",
    "backbone.",
    "encoder.",
    "_feature_blocks.",
    "net.",
)
# What a family's images need that a protocol's default transform does not do.
_NOTES = {
    "swav": "SwAV was trained on images divided by (.228, .224, .225); set the transform's std so"
}
_RESNET_PROBE, _VIT_PROBE = "conv1.weight", "patch_embed.proj.weight"
# What may stand beside a trunk. Any other name is a reason to refuse the file.
_HEADS = {
    "fc",
    "head",
    "projector",
    "predictor",
    "projection_head",
    "prediction_head",
    "prototypes",
    "encoder_k",
    "queue",
    "queue_ptr",
    "bn",  # Barlow Twins' normalisation of its embeddings
}
_RESNETS: dict[tuple[tuple[int, ...], bool], str] = {
    # shape of conv1.weight, whether blocks are bottlenecks
    ((64, 3, 7, 7), True): "resnet50",
    ((64, 3, 7, 7), False): "resnet18",
    ((64, 3, 3, 3), False): "resnet18_cifar",
    ((16, 3, 3, 3), False): "resnet_tiny",
}
_VITS: dict[tuple[int, ...], str] = {
    # shape of patch_embed.proj.weight
    (384, 3, 16, 16): "vit_small_16",
    (192, 3, 16, 16): "vit_tiny_16",
    (192, 3, 4, 4): "vit_tiny_4",
    (96, 3, 8, 8): "vit_demo",
}


@dataclass(frozen=True, kw_only=True)
class CheckpointInfo:
    """What was found in a checkpoint's file."""

    path: str
    sha256: str  # of the file
    family: str  # whose release it looks like; "ours" for a backbone.pt of this harness
    arch: str
    matched: int  # tensors of the trunk that were loaded: all of them
    missing: tuple[str, ...] = ()  # counters of old batch norms, which nothing reads
    unexpected: tuple[str, ...] = ()  # names of the heads that were dropped
    training: dict[str, Any] = field(default_factory=dict)  # ours: what its trainer wrote down

    def report(self) -> str:
        """One line for the user."""
        dropped = f" (dropped heads: {', '.join(self.unexpected)})" if self.unexpected else ""
        note = f"; note: {_NOTES[self.family]}" if self.family in _NOTES else ""
        return (
            f"{self.path}: {self.arch}, family {self.family}; {self.matched} tensors matched, "
            f"{len(self.missing)} missing, {len(self.unexpected)} unexpected{dropped}{note}"
        )


def sha256_of_file(path: Path) -> str:
    """Hex digest of a file of any size."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def load_checkpoint(
    path: Path, *, arch: str | None = None, trust: bool = False
) -> tuple[Backbone, CheckpointInfo]:
    """A trunk from a file of ours or of others, every one of its weights from the file.

    Args:
        path: backbone.pt, a PyTorch checkpoint, or safetensors.
        arch: Name of the backbone, where the file doesn't show it.
        trust: Load pickles that may run any code.

    Raises:
        UserError: No such file, not a checkpoint, an untrusted pickle, no known trunk in it, or a
            trunk that doesn't match completely.
    """
    if not path.is_file():
        raise UserError(f"there is no checkpoint at {path}; give --ckpt the path of a file")
    digest, content = sha256_of_file(path), _read(path, trust)
    if content.get("format") == FORMAT:
        backbone, training = _load_ours(path)
        if arch not in (None, backbone.spec.name):
            raise UserError(f"{path} holds a {backbone.spec.name}, not {arch}; leave out --arch")
        info = CheckpointInfo(
            path=str(path),
            sha256=digest,
            family="ours",
            arch=backbone.spec.name,
            matched=len(backbone.trunk.state_dict()),
            training=training,
        )
        return backbone, info
    container, flat = _unwrap(content)
    trunk, beside = _strip(path, flat)
    dropped = {name for name in trunk if name.partition(".")[0] in _HEADS}
    trunk = {name: value for name, value in trunk.items() if name not in dropped}
    arch = arch or _detect(path, trunk)
    backbone = build_backbone(BackboneSpec(name=arch), _image_size(trunk))
    missing = _load_whole(path, backbone, trunk, beside)
    info = CheckpointInfo(
        path=str(path),
        sha256=digest,
        family=_family(container, flat),
        arch=arch,
        matched=len(trunk),
        missing=missing,
        unexpected=tuple(sorted({_head(name) for name in dropped | set(beside)})),
    )
    return backbone.eval(), info


def _load_ours(path: Path) -> tuple[Backbone, dict[str, Any]]:
    try:
        return load_backbone(path)
    except (RuntimeError, TypeError, KeyError) as error:
        raise UserError(
            f"{path} comes from a version of this harness with other backbones; pretrain again"
        ) from error


def _read(path: Path, trust: bool) -> Mapping[str, Any]:
    """Content of the file, without running code from it unless trusted."""
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return load_file(path)
        except SafetensorError as error:
            raise UserError(
                f"{path} is not a whole safetensors file ({error}); get it again"
            ) from error
    try:
        # DINO and others keep their command line, an argparse.Namespace of plain values.
        with torch.serialization.safe_globals([argparse.Namespace]):
            content = torch.load(path, map_location="cpu", weights_only=not trust)
    except pickle.UnpicklingError as error:
        needs = _REFUSED.search(str(error))
        if needs is None:
            raise UserError(
                f"{path} is not a PyTorch checkpoint or is damaged; get it again"
            ) from error
        raise UserError(
            f"{path} is a pickle that needs {needs[1]}, and loading that may run any code; if you "
            "trust where it comes from, add --trust-checkpoint"
        ) from error
    except (RuntimeError, EOFError, ImportError, AttributeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(
            f"{path} cannot be read as a PyTorch checkpoint ({reason}); get it again"
        ) from error
    if not isinstance(content, Mapping):
        raise UserError(
            f"{path} holds a {type(content).__name__} where weights by name are needed; save its "
            "state_dict() instead"
        )
    return content


def _unwrap(content: Mapping[str, Any]) -> tuple[str, State]:
    """Name of the container ("" if flat) and its tensors by name."""
    for container in _CONTAINERS:
        value: Any = content
        for key in container.split("."):
            value = value.get(key) if isinstance(value, Mapping) else None
        if isinstance(value, Mapping):
            return container, _tensors(value)
    return "", _tensors(content)


def _tensors(values: Mapping[str, Any]) -> State:
    return {name: value for name, value in values.items() if isinstance(value, Tensor)}


def _strip(path: Path, state: State) -> tuple[State, State]:
    """The trunk under its library's names, and the tensors that lie outside of its prefixes."""
    found = _search(state)
    if found is None:
        shown = ", ".join(list(state)[:3]) or "no tensors"
        raise UserError(
            f"{path} holds no known trunk: neither {_RESNET_PROBE} nor {_VIT_PROBE} under any "
            f"known prefix, but {shown}; convert it to torchvision's or timm's names"
        )
    prefix, trunk = found
    beside = {name: value for name, value in state.items() if not name.startswith(prefix)}
    return trunk, beside


def _search(state: State, prefix: str = "") -> tuple[str, State] | None:
    """The first nesting of prefixes under which a probe key appears, and what is there."""
    if _RESNET_PROBE in state or _VIT_PROBE in state:
        return prefix, state
    for each in _PREFIXES:
        inner = {k[len(each) :]: v for k, v in state.items() if k.startswith(each)}
        found = _search(inner, prefix + each) if inner else None
        if found is not None:
            return found
    return None


def _head(name: str) -> str:
    """First part of a tensor's name behind its wrappers: which head it belongs to."""
    for prefix in ("module.", "_orig_mod.", "model."):
        name = name.removeprefix(prefix)
    return name.partition(".")[0]


def _detect(path: Path, trunk: State) -> str:
    """Name of the backbone, from the shapes of its first layer and its blocks."""
    if _VIT_PROBE in trunk:
        shape = tuple(trunk[_VIT_PROBE].shape)
        known = _VITS.get(shape)
    else:
        shape = tuple(trunk[_RESNET_PROBE].shape)
        known = _RESNETS.get((shape, "layer1.0.conv3.weight" in trunk))
    if known is None:
        raise UserError(
            f"{path} holds a trunk whose first layer is {'x'.join(map(str, shape))}, which is none "
            f"of {', '.join([*_RESNETS.values(), *_VITS.values()])}; name the closest with --arch"
        )
    return known


def _image_size(trunk: State) -> int:
    """Side of the images that a ViT's position embeddings are made for; 224 for ResNets."""
    if "pos_embed" not in trunk or _VIT_PROBE not in trunk:
        return 224
    return math.isqrt(trunk["pos_embed"].shape[1] - 1) * trunk[_VIT_PROBE].shape[-1]


def _load_whole(path: Path, backbone: Backbone, trunk: State, beside: State) -> tuple[str, ...]:
    """Load every tensor of the trunk or raise; returns the missing counters of batch norms."""
    wanted = backbone.trunk.state_dict()
    counters = {name for name in wanted if name.endswith("num_batches_tracked")}
    absent = sorted(wanted.keys() - trunk.keys())
    problems = [f"lacks {name}" for name in absent if name not in counters]
    problems += [f"has unknown {name}" for name in sorted(trunk.keys() - wanted.keys())]
    problems += [f"has unknown {name}" for name in beside if _head(name) not in _HEADS]
    problems += [
        f"has {name} of shape {tuple(trunk[name].shape)} instead of {tuple(value.shape)}"
        for name, value in wanted.items()
        if name in trunk and trunk[name].shape != value.shape
    ]
    if problems:
        more = f" and {len(problems) - 3} more differences" if len(problems) > 3 else ""
        raise UserError(
            f"{path} is not a whole {backbone.spec.name}: it {'; it '.join(problems[:3])}{more}; "
            "use another checkpoint or another --arch"
        )
    backbone.trunk.load_state_dict(wanted | trunk)
    return tuple(absent)


def _family(container: str, state: State) -> str:
    """Whose release it looks like (for the reader; nothing is decided by it)."""
    parts = {part for name in state for part in name.split(".")[:3]}
    signs = (
        ("dino", container == "teacher"),
        ("vissl", container.startswith("classy")),
        ("moco", "encoder_q" in parts),
        ("swav", "prototypes" in parts),
        ("simsiam", "predictor" in parts and "encoder" in parts),
        ("barlow_twins", "projector" in parts and "bn" in parts),
        ("vicreg or imsvd", "projector" in parts),
        ("timm", "patch_embed" in parts),
    )
    return next((family for family, found in signs if found), "torchvision")
