"""One interface for every trunk: torchvision ResNets, timm ViTs, and tiny ones of both kinds."""

from __future__ import annotations

import copy
import difflib
from collections.abc import Iterator
from typing import Any, NamedTuple, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from harness import resnets, resnets_v2
from harness.errors import UserError
from harness.recipe import BackboneSpec, Reading
from harness.views import IMAGENET_PIXELS, Pixels

POOLED = Reading()


class OwnClassifier(NamedTuple):
    """The linear classifier that a trunk was trained with; no part of it that could be trained."""

    weight: Tensor  # (classes, dim)
    bias: Tensor  # (classes,)


class OwnProjector(NamedTuple):
    """The projector that a trunk was trained with, where an evaluation reads its discrete output.

    A tuple, so that it is no part of the trunk: not of its weights, its digest, its teacher.
    """

    layers: nn.Sequential  # as harness.heads.mlp makes it of …
    widths: tuple[int, ...]  # … the trunk's width and the layers'
    units: int  # values of each discrete variable
    temperature: float  # of the softmax over them

    def assignments(self, features: Tensor) -> Tensor:
        """Soft assignments (n, variables, units) of features (n, dim); rows sum to 1."""
        z = self.layers(features).float().unflatten(1, (-1, self.units))
        return (z / self.temperature).softmax(dim=2)


class Backbone(nn.Module):
    """A trunk without head: images in, one feature vector per image out.

    `trunk` carries the parameter names of its library (torchvision or timm), so that released
    checkpoints load key by key.
    """

    dim: int
    is_vit = False
    pixels: Pixels = IMAGENET_PIXELS  # the normalisation it was trained with
    trunk: Any  # the library's nn.Module, whose attributes no type describes
    classifier: OwnClassifier | None = None  # of a network that classifies by itself
    projector: OwnProjector | None = None  # of one whose discrete variables are looked at

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

        Raises:
            UserError: The reading's pooling is larger than the map.
        """
        raise NotImplementedError

    def compile_trunk(self) -> None:
        """Have torch.compile make the trunk's kernels at its first use, names left as they are."""
        self.trunk.compile()

    def recompute(self) -> None:
        """Keep less between forward and backward pass, and compute it again.

        Raises:
            UserError: The trunk has batch norm, which would count each batch twice.
        """
        raise UserError(
            f"--recompute is for ViTs: the batch norms of a {self.spec.name} would count each batch"
            " twice; leave it out and use more processes where memory is short"
        )

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
        height, width = stage.shape[2:]
        if side > min(height, width) + 2 * padding:
            raise UserError(
                f"an average pooling of {side} x {side} does not fit the {height} x {width} map of"
                f" {reading.stage}; use larger images or the mean of the map."
            )
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


class PreActivation(Backbone):
    """A pre-activation ResNet up to its global average pool."""

    def __init__(self, spec: BackboneSpec, image_size: int) -> None:
        super().__init__(spec, image_size)
        self.trunk = resnets_v2.PreActivationResNet(resnets_v2.LAYERS[spec.name])
        self.dim = self.trunk.num_features

    def forward(self, images: Tensor, reading: Reading = POOLED) -> Tensor:
        """Features (n, dim), after the last norm and ReLU.

        Raises:
            UserError: Another reading is asked for.
        """
        if (reading.stage, reading.pool) != (POOLED.stage, POOLED.pool):
            raise UserError(
                f"the maps of a {self.spec.name} are not offered; read its pooled feature"
            )
        return self.trunk(images)


class ViT(Backbone):
    """A timm vision transformer; its feature is the CLS token after the final norm."""

    is_vit = True

    def __init__(self, spec: BackboneSpec, image_size: int, trunk: Any) -> None:
        super().__init__(spec, image_size)
        self.dim = int(trunk.num_features)
        self.trunk = trunk
        self._recomputes = False

    def compile_trunk(self) -> None:
        """Block by block: the blocks are alike, so that one compilation serves them all."""
        for block in self.trunk.blocks:
            block.compile()

    def recompute(self) -> None:
        """Keep the input of each block, and compute the block again in the backward pass."""
        self._recomputes = True

    def forward(self, images: Tensor, reading: Reading = POOLED) -> Tensor:
        """CLS tokens (n, last_blocks * dim) for images of any size the patches divide."""
        trunk = self.trunk
        x = trunk.norm_pre(trunk.patch_drop(trunk._pos_embed(trunk.patch_embed(images))))
        read = []
        for position, block in enumerate(trunk.blocks):
            x = checkpoint(block, x, use_reentrant=False) if self._recomputes else block(x)
            if position >= len(trunk.blocks) - reading.last_blocks:
                read.append(trunk.norm(x)[:, 0])
        return torch.cat(read, dim=1)


# name: timm's model, overrides
_VITS: dict[str, tuple[str, dict[str, Any]]] = {
    "vit_small_16": ("vit_small_patch16_224", {}),
    "vit_small_8": ("vit_small_patch8_224", {}),
    "vit_base_16": ("vit_base_patch16_224", {}),
    "vit_base_8": ("vit_base_patch8_224", {}),
    # MoCo v3's ViT-S has twice the heads of everybody else's; its weights don't show it.
    "vit_small_16_heads12": ("vit_small_patch16_224", {"num_heads": 12}),
    "vit_tiny_16": ("vit_tiny_patch16_224", {}),
    "vit_tiny_4": ("vit_tiny_patch16_224", {"patch_size": 4}),
    "vit_demo": (
        "vit_tiny_patch16_224",
        {"patch_size": 8, "embed_dim": 96, "depth": 4, "num_heads": 3},
    ),
}
BACKBONES = (*resnets.PLANS, *resnets_v2.LAYERS, *_VITS)


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
    if spec.name not in BACKBONES:
        close = difflib.get_close_matches(spec.name, BACKBONES, n=1)
        hint = f"did you mean {close[0]}? " if close else ""
        raise UserError(f"unknown backbone {spec.name!r}: {hint}Known: {', '.join(BACKBONES)}")
    if spec.drop_path:
        raise UserError(f"drop_path={spec.drop_path} is for ViTs; {spec.name} takes 0")
    if spec.name in resnets_v2.LAYERS:
        if spec.zero_init_residual:
            raise UserError(
                f"zero_init_residual has nothing to zero in a {spec.name}; leave it out"
            )
        return PreActivation(spec, image_size)
    plan = resnets.PLANS[spec.name]
    trunk = resnets.build(plan, zero_init_residual=spec.zero_init_residual)
    return ResNet(spec, image_size, trunk)
