"""One interface for every trunk: torchvision ResNets, timm ViTs, and tiny ones of both kinds."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from harness.errors import UserError
from harness.recipe import BackboneSpec, Reading
from harness.views import IMAGENET_PIXELS, Pixels

POOLED = Reading()


class Backbone(nn.Module):
    """A trunk without head: images in, one feature vector per image out.

    `trunk` carries the parameter names of its library (torchvision or timm), so that released
    checkpoints load key by key.
    """

    dim: int
    is_vit = False
    pixels: Pixels = IMAGENET_PIXELS  # the normalisation it was trained with
    trunk: Any  # the library's nn.Module, whose attributes no type describes

    def __init__(self, spec: BackboneSpec, image_size: int) -> None:
        super().__init__()
        self.spec = spec
        self.image_size = image_size

    def forward(self, images: Tensor, reading: Reading = POOLED) -> Tensor:
        """Features of a batch.

        Args:
            images: (n, 3, H, W), normalised.
            reading: Which features. ViTs concatenate CLS tokens as DINO's linear protocol does,
                ResNets pool and flatten the map of a stage as VISSL's SVM protocol does; each
                ignores what is meant for the other.

        Returns:
            (n, dim), or for another reading (n, its width).
        """
        raise NotImplementedError

    def teacher(self) -> Self:
        """A frozen copy without stochastic depth: the starting point of an EMA teacher."""
        twin = copy.deepcopy(self).requires_grad_(False)
        module: Any  # timm's DropPath among them
        for module in twin.modules():
            if hasattr(module, "drop_prob"):
                module.drop_prob = 0.0
        return twin


class ResNet(Backbone):
    """A torchvision ResNet up to its global average pool."""

    def __init__(self, spec: BackboneSpec, image_size: int, trunk: Any) -> None:
        super().__init__(spec, image_size)
        self.dim = int(trunk.fc.in_features)
        trunk.fc = nn.Identity()
        self.trunk = trunk

    def forward(self, images: Tensor, reading: Reading = POOLED) -> Tensor:
        """Features (n, dim), or (n, channels x cells) of another stage or pooling."""
        if (reading.stage, reading.pool) == (POOLED.stage, POOLED.pool):
            return self.trunk(images)
        stage = next(x for name, x in self.maps(images) if name == reading.stage)
        if reading.pool is None:
            return stage.mean(dim=(2, 3))
        side, stride, padding = reading.pool
        return F.avg_pool2d(stage, side, stride, padding).flatten(1)

    def maps(self, images: Tensor) -> Iterator[tuple[str, Tensor]]:
        """Name and map (n, channels, h, w) of each stage, from conv1 (after its ReLU) on."""
        trunk = self.trunk
        x = trunk.relu(trunk.bn1(trunk.conv1(images)))
        yield "conv1", x
        x = trunk.maxpool(x)
        for name in ("layer1", "layer2", "layer3", "layer4"):
            x = getattr(trunk, name)(x)
            yield name, x


class ViT(Backbone):
    """A timm vision transformer; its feature is the CLS token after the final norm."""

    is_vit = True

    def __init__(self, spec: BackboneSpec, image_size: int, trunk: Any) -> None:
        super().__init__(spec, image_size)
        self.dim = int(trunk.num_features)
        self.trunk = trunk

    def forward(self, images: Tensor, reading: Reading = POOLED) -> Tensor:
        """CLS tokens (n, last_blocks * dim) for images of any size the patches divide."""
        trunk = self.trunk
        x = trunk.norm_pre(trunk.patch_drop(trunk._pos_embed(trunk.patch_embed(images))))
        read = []
        for position, block in enumerate(trunk.blocks):
            x = block(x)
            if position >= len(trunk.blocks) - reading.last_blocks:
                read.append(trunk.norm(x)[:, 0])
        return torch.cat(read, dim=1)


def _cifar_stem(trunk: Any) -> Any:
    """The 3×3 stride-1 stem without max-pool that the field uses for 32 px images."""
    trunk.conv1 = nn.Conv2d(3, trunk.conv1.out_channels, 3, padding=1, bias=False)
    nn.init.kaiming_normal_(trunk.conv1.weight, mode="fan_out", nonlinearity="relu")
    trunk.maxpool = nn.Identity()
    return trunk


def _tiny_resnet(zero_init_residual: bool) -> Any:
    """ResNet-10 of width 16 with a stride-2 3×3 stem: 4 MMAC at 32 px, for demos on a CPU."""
    from torchvision.models.resnet import BasicBlock
    from torchvision.models.resnet import ResNet as TorchvisionResNet

    class Narrow(TorchvisionResNet):
        """torchvision's ResNet fixes its first width at 64; this one starts at 16."""

        def _make_layer(
            self, block: type, planes: int, blocks: int, stride: int = 1, dilate: bool = False
        ) -> nn.Sequential:
            if planes == 64:
                self.inplanes = 16
            return super()._make_layer(block, planes // 4, blocks, stride, dilate)

    trunk: Any = Narrow(BasicBlock, [1, 1, 1, 1], zero_init_residual=zero_init_residual)
    trunk.conv1 = nn.Conv2d(3, 16, 3, stride=2, padding=1, bias=False)
    nn.init.kaiming_normal_(trunk.conv1.weight, mode="fan_out", nonlinearity="relu")
    trunk.bn1 = nn.BatchNorm2d(16)
    trunk.maxpool = nn.Identity()
    trunk.fc = nn.Linear(128, 1)
    return trunk


# name: timm's model, overrides
_VITS: dict[str, tuple[str, dict[str, Any]]] = {
    "vit_small_16": ("vit_small_patch16_224", {}),
    "vit_tiny_16": ("vit_tiny_patch16_224", {}),
    "vit_tiny_4": ("vit_tiny_patch16_224", {"patch_size": 4}),
    "vit_demo": (
        "vit_tiny_patch16_224",
        {"patch_size": 8, "embed_dim": 96, "depth": 4, "num_heads": 3},
    ),
}
_RESNETS = ("resnet50", "resnet18", "resnet18_cifar", "resnet_tiny")
BACKBONES = (*_RESNETS, *_VITS)


def build_backbone(spec: BackboneSpec, image_size: int) -> Backbone:
    """A freshly initialised trunk, from torch's global generator.

    Args:
        spec: Its name and options.
        image_size: Side of the largest view, pixels: fixes a ViT's grid of position embeddings;
            other sizes interpolate it bicubically.

    Raises:
        UserError: Unknown name.
    """
    if spec.name in _VITS:
        # timm takes five seconds to import, so only ViTs pay for it.
        import timm

        model, overrides = _VITS[spec.name]
        trunk = timm.create_model(
            model,
            img_size=image_size,
            num_classes=0,
            global_pool="token",
            drop_path_rate=spec.drop_path,
            dynamic_img_size=True,
            **overrides,
        )
        return ViT(spec, image_size, trunk)
    if spec.name not in _RESNETS:
        raise UserError(f"unknown backbone {spec.name!r}: choose from {', '.join(BACKBONES)}")
    if spec.drop_path:
        raise UserError(f"drop_path={spec.drop_path} is for ViTs; {spec.name} takes 0")
    if spec.name == "resnet_tiny":
        return ResNet(spec, image_size, _tiny_resnet(spec.zero_init_residual))
    from torchvision import models

    build = models.resnet50 if spec.name == "resnet50" else models.resnet18
    trunk = build(weights=None, zero_init_residual=spec.zero_init_residual)
    return ResNet(spec, image_size, _cifar_stem(trunk) if spec.name.endswith("cifar") else trunk)
