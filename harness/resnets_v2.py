"""Pre-activation ResNets ("v2", He et al. 2016) with batch norm, as S4L runs them.

Written from s4l @8f1cf05, models/resnet.py; the names are timm's resnetv2_50's. The stride is in
the 3×3 convolution, and the padding of the first max-pool is zeros: what it pads has no ReLU yet.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

LAYERS = {"resnet50v2": (3, 4, 6, 3)}


class PreActivationBottleneck(nn.Module):
    """Norm and ReLU before each of three convolutions; the shortcut is projected after the first.

    Source: s4l @8f1cf05, models/resnet.py, bottleneck_v2.
    """

    def __init__(self, width_in: int, width_out: int, stride: int) -> None:
        super().__init__()
        middle = width_out // 4
        self.norm1 = _norm(width_in)
        self.conv1 = nn.Conv2d(width_in, middle, 1, bias=False)
        self.norm2 = _norm(middle)
        self.conv2 = nn.Conv2d(middle, middle, 3, stride=stride, padding=1, bias=False)
        self.norm3 = _norm(middle)
        self.conv3 = nn.Conv2d(middle, width_out, 1, bias=False)
        self.downsample: nn.Module | None = None
        if stride > 1 or width_in != width_out:
            projection = nn.Conv2d(width_in, width_out, 1, stride=stride, bias=False)
            self.downsample = nn.Sequential()
            self.downsample.add_module("conv", projection)

    def forward(self, x: Tensor) -> Tensor:
        """(n, width_in, h, w) → (n, width_out, h / stride, w / stride)."""
        out = torch.relu(self.norm1(x))
        shortcut = x if self.downsample is None else self.downsample(out)
        out = self.conv1(out)
        out = self.conv2(torch.relu(self.norm2(out)))
        return self.conv3(torch.relu(self.norm3(out))) + shortcut


class PreActivationResNet(nn.Module):
    """Stem, four stages, norm, ReLU, mean over the map."""

    def __init__(self, layers: tuple[int, ...]) -> None:
        super().__init__()
        self.stem = nn.Sequential()
        self.stem.add_module("conv", nn.Conv2d(3, 64, 7, stride=2, padding=3, bias=False))
        self.stem.add_module("pad", nn.ConstantPad2d(1, 0.0))
        self.stem.add_module("pool", nn.MaxPool2d(3, stride=2))
        width, stages = 64, []
        for number, blocks in enumerate(layers):
            wider = 256 << number
            stage: Any = nn.Module()
            strides = [1 if number == 0 else 2] + [1] * (blocks - 1)
            widths = [width] + [wider] * (blocks - 1)
            stage.blocks = nn.Sequential(
                *map(PreActivationBottleneck, widths, [wider] * blocks, strides)
            )
            stages.append(stage)
            width = wider
        self.stages = nn.ModuleList(stages)
        self.norm = _norm(width)
        self.num_features = width
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.xavier_uniform_(module.weight)  # TensorFlow's default

    def forward(self, images: Tensor) -> Tensor:
        """(n, 3, H, W) → (n, num_features)."""
        x = self.stem(images)
        stage: Any
        for stage in self.stages:
            x = stage.blocks(x)
        return torch.relu(self.norm(x)).mean(dim=(2, 3))


def _norm(width: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(width, eps=1e-3, momentum=0.01)  # TensorFlow's defaults
