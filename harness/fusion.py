"""Batch norms of a frozen ResNet folded into the convolutions before them.

In eval mode a batch norm is an affine map of each channel, so that a convolution with scaled
weights and a bias does the work of both; what it saves is a pass over every map. Features differ by
fp32 rounding alone.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from itertools import pairwise

from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from harness.backbone import Backbone, ResNet


def fused(backbone: Backbone) -> Backbone:
    """A copy in which convolution and batch norm are one; the backbone itself if it has no such.

    For inference alone: a copy of the weights (4 bytes each) that is not to be saved.

    Args:
        backbone: In eval mode.
    """
    if not marks(backbone):
        return backbone
    twin = copy.deepcopy(backbone)
    for module, conv, norm in list(_pairs(twin)):
        _fold(module, conv, norm)
    return twin


def marks(backbone: Backbone) -> tuple[str, ...]:
    """What tells the features of the fused copy, in their last bits, from the backbone's own."""
    return ("fused conv-bn",) if any(True for _ in _pairs(backbone)) else ()


def _pairs(backbone: Backbone) -> Iterator[tuple[nn.Module, str, str]]:
    """(module, name of its convolution, of the batch norm that alone reads it).

    By the names that torchvision's ResNets and ours have in common; pre-activation ResNets
    normalise before they convolve.
    """
    if not isinstance(backbone, ResNet):
        return
    for module in backbone.trunk.modules():
        children = dict(module.named_children())
        for name, child in children.items():
            if name.startswith("conv") and isinstance(child, nn.Conv2d):
                norm = f"bn{name.removeprefix('conv')}"
                if isinstance(children.get(norm), nn.BatchNorm2d):
                    yield module, name, norm
        if isinstance(module, nn.Sequential):
            for (name, conv), (norm, layer) in pairwise(children.items()):
                if isinstance(conv, nn.Conv2d) and isinstance(layer, nn.BatchNorm2d):
                    yield module, name, norm


def _fold(module: nn.Module, conv_name: str, norm_name: str) -> None:
    conv, norm = getattr(module, conv_name), getattr(module, norm_name)
    conv.weight, conv.bias = fuse_conv_bn_weights(
        conv.weight,
        conv.bias,
        norm.running_mean,
        norm.running_var,
        norm.eps,
        norm.weight,
        norm.bias,
    )
    setattr(module, norm_name, nn.Identity())
