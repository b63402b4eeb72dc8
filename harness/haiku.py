"""BYOL's own checkpoints: ResNet weights under haiku's names, brought to torchvision's."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from harness.unpickle import Unknown

_STEM = re.compile(r".*initial_(conv|batchnorm)(?:_1)?(?:/~/.*)?")
_BLOCK = re.compile(
    r".*block_group_(\d+).*/block_(\d+)/~/(shortcut_)?(conv|batchnorm)(?:_(\d+))?.*"
)
_LEAVES = {"w": "weight", "scale": "weight", "b": "bias", "offset": "bias"}
_AVERAGES = {"mean_ema": "running_mean", "var_ema": "running_var"}


def weights(content: Any) -> dict[str, Tensor] | None:
    """The online network's trunk of a BYOL experiment, or None where there is none.

    Args:
        content: A trusted pickle of deepmind-research's `byol/`: {"experiment_state":
            (online_params, target_params, online_state, …)}, each a mapping from module to arrays
            (layout as read by chigur/byol-convert @e527ae6).
    """
    networks = list(_networks(content))
    params = next((n for n in networks if _leaf(n, "initial_conv", "w")), None)
    state = next((n for n in networks if _leaf(n, "mean_ema", "average")), None)
    if params is None or state is None:
        return None
    found = {}
    for module, arrays in params.items():
        for leaf, array in _mapping(arrays).items():
            if not isinstance(array, np.ndarray):
                continue  # of a library that is not installed: the trunk will lack it, loudly
            found[f"{_rename(module)}.{_LEAVES.get(leaf, leaf)}"] = _tensor(array)
    for module, arrays in state.items():
        stem, _, average = module.rpartition("/~/")
        array = _mapping(arrays).get("average")
        if average in _AVERAGES and isinstance(array, np.ndarray):
            found[f"{_rename(stem)}.{_AVERAGES[average]}"] = _tensor(array)
    return found


def _networks(value: Any) -> Iterator[Mapping[str, Any]]:
    """Mappings from a haiku module's path to its arrays, in the order they are stored."""
    if isinstance(value, Unknown):
        yield from _networks([*value.args, value.state])
    elif isinstance(value, Mapping):
        if any(isinstance(key, str) and "/" in key for key in value):
            yield value
        else:
            yield from _networks(list(value.values()))
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _networks(item)


def _leaf(network: Mapping[str, Any], module: str, leaf: str) -> bool:
    return any(path.endswith(module) and leaf in _mapping(a) for path, a in network.items())


def _mapping(value: Any) -> Mapping[str, Any]:
    """The mapping itself, or the one that a haiku mapping of an absent library was built from."""
    while isinstance(value, Unknown):
        value = next((v for v in (*value.args, value.state) if isinstance(v, Mapping)), {})
    return value if isinstance(value, Mapping) else {}


def _rename(module: str) -> str:
    if block := _BLOCK.fullmatch(module):
        layer, index, shortcut, kind, position = block.groups()
        stem = f"layer{int(layer) + 1}.{index}."
        if shortcut:
            return f"{stem}downsample.{0 if kind == 'conv' else 1}"
        return f"{stem}{'conv' if kind == 'conv' else 'bn'}{int(position) + 1}"
    if stem := _STEM.fullmatch(module):
        return "conv1" if stem[1] == "conv" else "bn1"
    for head, name in (
        ("classifier", "fc"),
        ("projector", "projector"),
        ("predictor", "predictor"),
    ):
        if head in module:
            return name
    return module.replace("/", ".")


def _tensor(array: np.ndarray) -> Tensor:
    """HWIO kernels become OIHW, broadcastable (1, 1, 1, c) statistics become (c,)."""
    values = torch.from_numpy(np.array(array))
    if values.dim() != 4:
        return values
    return values.flatten() if values.shape[:3] == (1, 1, 1) else values.permute(3, 2, 0, 1)
