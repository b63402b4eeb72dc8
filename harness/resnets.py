"""ResNets as they were released: torchvision's names, at other widths, stems and paddings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

DEPTHS: dict[int, tuple[bool, tuple[int, int, int, int]]] = {
    # depth: whether blocks are bottlenecks, blocks of each layer
    10: (False, (1, 1, 1, 1)),
    18: (False, (2, 2, 2, 2)),
    34: (False, (3, 4, 6, 3)),
    50: (True, (3, 4, 6, 3)),
    101: (True, (3, 4, 23, 3)),
    152: (True, (3, 8, 36, 3)),
    200: (True, (3, 24, 36, 3)),
}


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What tells one ResNet from another."""

    depth: int
    channels: int = 64  # of the first layer; all others scale with it
    stem: Literal["imagenet", "cifar", "cifar_pad2", "cifar_pool", "tiny"] = "imagenet"
    same: bool = False  # TensorFlow's "SAME" padding where the stride is 2
    wide_output: int | None = None  # channels of DISSL's extra block before the average pool


PLANS: dict[str, Plan] = {
    "resnet18": Plan(depth=18),
    "resnet34": Plan(depth=34),
    "resnet50": Plan(depth=50),
    "resnet101": Plan(depth=101),
    "resnet152": Plan(depth=152),
    "resnet200": Plan(depth=200),
    # All channels doubled, as SwAV, SimCLR, BYOL and VICReg do it; not torchvision's wide_resnet.
    "resnet50_w2": Plan(depth=50, channels=128),
    "resnet50_w4": Plan(depth=50, channels=256),
    "resnet50_w5": Plan(depth=50, channels=320),
    "resnet101_w2": Plan(depth=101, channels=128),
    "resnet152_w2": Plan(depth=152, channels=128),
    "resnet200_w2": Plan(depth=200, channels=128),
    "resnet50_same": Plan(depth=50, same=True),  # BYOL
    "resnet200_w2_same": Plan(depth=200, channels=128, same=True),
    "resnet50_d8192": Plan(depth=50, wide_output=8192),  # DISSL
    "resnet18_cifar": Plan(depth=18, stem="cifar"),
    "resnet34_cifar": Plan(depth=34, stem="cifar"),
    "resnet50_cifar": Plan(depth=50, stem="cifar"),
    "resnet18_cifar_pad2": Plan(depth=18, stem="cifar_pad2"),  # solo-learn @9187ea3
    "resnet50_cifar_pad2": Plan(depth=50, stem="cifar_pad2"),
    "resnet18_cifar_pool": Plan(depth=18, stem="cifar_pool"),  # W-MSE @d9662c8, STL-10 and Tiny
    "resnet_tiny": Plan(depth=10, channels=16, stem="tiny"),
}


def build(plan: Plan, *, zero_init_residual: bool) -> Any:
    """A torchvision ResNet to that plan, initialised from torch's global generator."""
    from torchvision import models

    if plan.depth in (18, 34, 50, 101, 152) and plan.channels == 64:
        trunk = getattr(models, f"resnet{plan.depth}")(
            weights=None, zero_init_residual=zero_init_residual
        )
    else:
        trunk = _of_width(plan, zero_init_residual)
    if plan.stem != "imagenet":
        _small_stem(trunk, plan.stem)
    if plan.channels != 64:
        trunk.fc = nn.Linear(trunk.fc.in_features * plan.channels // 64, 1)
    if plan.same:
        _pad_as_tensorflow(trunk)
    if plan.wide_output is not None:
        expansion = Expansion(trunk.fc.in_features, plan.wide_output)
        trunk.avgpool = nn.Sequential(expansion, trunk.avgpool)
        trunk.fc = nn.Linear(plan.wide_output, 1)
    return trunk


def _of_width(plan: Plan, zero_init_residual: bool) -> Any:
    """A ResNet whose every width is in proportion to `channels`; torchvision fixes them."""
    from torchvision.models.resnet import BasicBlock, Bottleneck
    from torchvision.models.resnet import ResNet as TorchvisionResNet

    bottleneck, blocks = DEPTHS[plan.depth]

    class Scaled(TorchvisionResNet):
        """Its layers, scaled while they are made."""

        def _make_layer(
            self, block: type, planes: int, blocks: int, stride: int = 1, dilate: bool = False
        ) -> nn.Sequential:
            if planes == 64:
                self.inplanes = plan.channels
            return super()._make_layer(block, planes * plan.channels // 64, blocks, stride, dilate)

    block: Any = Bottleneck if bottleneck else BasicBlock
    trunk: Any = Scaled(block, list(blocks), zero_init_residual=zero_init_residual)
    if plan.stem == "imagenet" and plan.channels != 64:
        trunk.conv1 = nn.Conv2d(3, plan.channels, 7, stride=2, padding=3, bias=False)
        nn.init.kaiming_normal_(trunk.conv1.weight, mode="fan_out", nonlinearity="relu")
        trunk.bn1 = nn.BatchNorm2d(plan.channels)
    return trunk


def _small_stem(trunk: Any, stem: str) -> None:
    """3×3 stems for small images: CIFAR's of stride 1, and the demo's of stride 2.

    The field's is without max-pool; W-MSE keeps it for images of 64 px and more, and solo-learn
    pads by 2. Weights don't show which.
    """
    channels = trunk.layer1[0].conv1.in_channels
    stride, padding = (2 if stem == "tiny" else 1), (2 if stem == "cifar_pad2" else 1)
    trunk.conv1 = nn.Conv2d(3, channels, 3, stride=stride, padding=padding, bias=False)
    nn.init.kaiming_normal_(trunk.conv1.weight, mode="fan_out", nonlinearity="relu")
    if stem == "tiny":
        trunk.bn1 = nn.BatchNorm2d(channels)
    if stem != "cifar_pool":
        trunk.maxpool = nn.Identity()


class SameConv2d(nn.Conv2d):
    """A convolution with TensorFlow's "SAME" padding: the odd pixel goes to the right and below."""

    def forward(self, input: Tensor) -> Tensor:
        """(n, channels, h, w) → (n, out_channels, ceil(h / stride), ceil(w / stride))."""
        return super().forward(_pad_same(input, self.kernel_size[0], self.stride[0], 0.0))


class SameMaxPool2d(nn.Module):
    """3×3 max-pool of stride 2 with TensorFlow's "SAME" padding."""

    def forward(self, x: Tensor) -> Tensor:
        """(n, channels, h, w) → (n, channels, ceil(h / 2), ceil(w / 2))."""
        return F.max_pool2d(_pad_same(x, 3, 2, float("-inf")), 3, stride=2)


def _pad_same(x: Tensor, side: int, stride: int, value: float) -> Tensor:
    height, width = (max((-(-n // stride) - 1) * stride + side - n, 0) for n in x.shape[-2:])
    padding = (width // 2, width - width // 2, height // 2, height - height // 2)
    return F.pad(x, padding, value=value)


def _pad_as_tensorflow(trunk: Any) -> None:
    """Replace what pads otherwise: at stride 1 and for 1×1 both libraries agree."""
    trunk.maxpool = SameMaxPool2d()
    for name, conv in list(trunk.named_modules()):
        if not isinstance(conv, nn.Conv2d) or conv.stride == (1, 1) or conv.kernel_size == (1, 1):
            continue
        side, stride = conv.kernel_size[0], conv.stride[0]
        twin = SameConv2d(conv.in_channels, conv.out_channels, side, stride=stride, bias=False)
        twin.weight = conv.weight
        parent, _, child = name.rpartition(".")
        setattr(trunk.get_submodule(parent), child, twin)


class Expansion(nn.Module):
    """DISSL's block before the average pool: a bottleneck to more channels.

    Its input, repeated to that many channels, is added (DISSL @d4548c4, hub/resnet_dim.py).
    """

    def __init__(self, given: int, channels: int, hidden: int = 512) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(given, hidden, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(hidden)
        self.conv2 = nn.Conv2d(hidden, hidden, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(hidden)
        self.conv3 = nn.Conv2d(hidden, channels, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(channels)
        self.repeats = channels // given

    def forward(self, x: Tensor) -> Tensor:
        """(n, given, h, w) → (n, channels, h, w)."""
        out = torch.relu(self.bn1(self.conv1(x)))
        out = torch.relu(self.bn2(self.conv2(out)))
        return torch.relu(self.bn3(self.conv3(out)) + x.repeat(1, self.repeats, 1, 1))
