"""Names of a ResNet's tensors in torchvision and in detectron2, both ways."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

# moco, detection/convert-pretrain-to-detectron2.py: one substitution after the other.
_BLOCK = re.compile(r"layer(\d)\.(\d+)\.(.+)")
_STAGE = re.compile(r"res(\d)\.(\d+)\.(.+)")
_NORM = re.compile(r"bn(\d)\.(.+)")
_CONV_NORM = re.compile(r"conv(\d)\.norm\.(.+)")


def to_detectron2(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A torchvision ResNet's tensors under detectron2's names; the classifier is left out.

    `layer1.0.bn2.weight` becomes `res2.0.conv2.norm.weight`, `conv1.weight` `stem.conv1.weight`.
    """
    return {
        _to_detectron2(name): value
        for name, value in state.items()
        if name.startswith(("conv1.", "bn1.", "layer"))
    }


def from_detectron2(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of `to_detectron2`, for names that start with `stem.` or `res<n>.`."""
    return {_from_detectron2(name): value for name, value in state.items()}


def _to_detectron2(name: str) -> str:
    block = _BLOCK.fullmatch(name)
    if block is None:
        return f"stem.{_NORM.sub(_norm_of_conv, name)}"
    stage, number, rest = block.groups()
    if rest.startswith("downsample.0."):
        rest = rest.replace("downsample.0.", "shortcut.")
    elif rest.startswith("downsample.1."):
        rest = rest.replace("downsample.1.", "shortcut.norm.")
    else:
        rest = _NORM.sub(_norm_of_conv, rest)
    return f"res{int(stage) + 1}.{number}.{rest}"


def _from_detectron2(name: str) -> str:
    block = _STAGE.fullmatch(name)
    if block is None:
        return _CONV_NORM.sub(_norm, name.removeprefix("stem."))
    stage, number, rest = block.groups()
    if rest.startswith("shortcut.norm."):
        rest = rest.replace("shortcut.norm.", "downsample.1.")
    elif rest.startswith("shortcut."):
        rest = rest.replace("shortcut.", "downsample.0.")
    else:
        rest = _CONV_NORM.sub(_norm, rest)
    return f"layer{int(stage) - 1}.{number}.{rest}"


def _norm_of_conv(match: re.Match[str]) -> str:
    return f"conv{match[1]}.norm.{match[2]}"


def _norm(match: re.Match[str]) -> str:
    return f"bn{match[1]}.{match[2]}"
