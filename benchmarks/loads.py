"""What a training step computes, holds and sends, counted from the recipes: no timing, no GPU.

Trunks are run on the meta device, forward and backward, under torch's own FLOP counter; heads and
losses are matrix products whose sizes the recipe states. A multiplication and an addition are two
FLOP.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from harness.backbone import build_backbone
from harness.inventory import PUBLISHED
from harness.method import Method
from harness.recipe import BackboneSpec, Recipe, TrainingSize

IMAGES = PUBLISHED["imagenet"].train
_SIZE = 224
_TRAINING = 3  # forward, and backward to inputs and to weights
_FLOAT, _HALF = 4, 2  # bytes


@dataclass(frozen=True, kw_only=True)
class Crop:
    """What one crop costs in a trunk."""

    forward: float  # FLOP
    training: float  # FLOP, forward and backward
    activations: float  # values that the backward pass needs


@dataclass(frozen=True, kw_only=True)
class Step:
    """A training step of one of `world` GPUs that share a recipe's batch."""

    trunk: float  # FLOP
    products: float  # FLOP in heads and loss: large matrix products
    wire: float  # bytes that one GPU sends: gradients, projections, statistics of batch norm
    weights: float  # bytes of weights, their half copies, gradients, momenta, buckets, teacher
    activations: float  # bytes, trunk in half precision and loss in single
    matrix: float  # bytes of one D x D matrix, where the loss has one; else 0


@functools.cache
def crop_load(spec: BackboneSpec, side: int) -> Crop:
    """A crop of `side` pixels through the trunk, counted on two of them (batch norm needs two)."""
    with torch.device("meta"):
        trunk = build_backbone(spec, _SIZE)
        crops = torch.zeros(2, 3, side, side)
    own = {p.untyped_storage()._cdata for p in trunk.parameters()}
    saved: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        saved[tensor.untyped_storage()._cdata] = tensor
        return tensor

    with FlopCounterMode(display=False) as counter:
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            features = trunk(crops)
        forward = counter.get_total_flops()
        features.sum().backward()
    stored = sum(t.untyped_storage().nbytes() for key, t in saved.items() if key not in own)
    return Crop(
        forward=forward / 2,
        training=counter.get_total_flops() / 2,
        activations=stored / _FLOAT / 2,
    )


@functools.cache
def built(recipe: Recipe) -> Method:
    """The recipe's method on the meta device: its parameters, without their memory."""
    with torch.device("meta"):
        return recipe.method.build(
            build_backbone(recipe.backbone, _SIZE), TrainingSize(images=IMAGES, classes=1000)
        )


def embedding(recipe: Recipe) -> int:
    """D of a loss on a D x D matrix or its Gram form; 0 for the others."""
    projector = getattr(recipe.method, "projector", (0,))
    return projector[-1] if _family(recipe) in _PRODUCTS else 0


def step_load(recipe: Recipe, world: int, *, plain: bool) -> Step:
    """One GPU's share of a step.

    Args:
        recipe: At the papers' scale.
        world: GPUs.
        plain: The loss as the released code computes it: the whole D x D matrix on every GPU.
            Otherwise the cheaper exact form, shared out.
    """
    method, images = built(recipe), recipe.batch_size / world
    trainable = [p for p in method.parameters() if p.requires_grad]
    frozen = sum(p.numel() for p in method.parameters()) - sum(p.numel() for p in trainable)
    crops = [crop_load(recipe.backbone, view.size) for view in recipe.views]
    taught = crops[:2] if frozen else []
    head = _head_products(method)
    loss = _loss_flop(recipe, plain=plain) / (1 if plain else world)
    parameters = sum(p.numel() for p in trainable)
    states = 2 if recipe.optim.name in ("adamw", "adam") else 1
    width = embedding(recipe)
    logits = getattr(recipe.method, "prototypes", getattr(recipe.method, "means", 0))
    return Step(
        trunk=images * (sum(c.training for c in crops) + sum(c.forward for c in taught)),
        products=images * head * (_TRAINING * len(crops) + len(taught)) + loss,
        wire=_wire(recipe, method, world, parameters),
        # weight, gradient, the gradients' buckets, momenta; the half copy of autocast
        weights=parameters * (_FLOAT * (3 + states) + _HALF) + frozen * (_FLOAT + _HALF),
        activations=images * sum(c.activations for c in crops) * _HALF
        + images * len(crops) * logits * _FLOAT,
        matrix=width**2 * _FLOAT,
    )


# FLOP of a loss, forward and backward, for N images and D dimensions: by the D x D matrix, and by
# N x N Gram matrices where there is such a form.
_PRODUCTS = {
    "imsvd": (lambda n, d: 6 * n * d * d, None),
    "barlow_twins": (lambda n, d: 6 * n * d * d, lambda n, d: 8 * n * n * d),
    "vicreg": (lambda n, d: 8 * n * d * d, lambda n, d: 8 * n * n * d),
}


def loss_products(family: str, images: int, width: int) -> tuple[float, float]:
    """FLOP by the D x D matrix and by the cheaper exact form."""
    matrix, gram = _PRODUCTS[family]
    whole = matrix(images, width)
    return whole, min(whole, gram(images, width)) if gram else whole


def _loss_flop(recipe: Recipe, *, plain: bool) -> float:
    if not embedding(recipe):
        return 0.0
    whole, cheaper = loss_products(_family(recipe), recipe.batch_size, embedding(recipe))
    return whole if plain else cheaper


def _family(recipe: Recipe) -> str:
    return type(recipe.method).__module__.rpartition(".")[2]


def _head_products(method: Method) -> float:
    """FLOP of a crop through everything trainable behind the trunk, prototypes and means too."""
    trunk = {id(p) for p in method.backbone.parameters()}
    matrices = [
        p for p in method.parameters() if p.requires_grad and p.ndim == 2 and id(p) not in trunk
    ]
    return 2.0 * sum(p.numel() for p in matrices if min(p.shape) > 1)


def _wire(recipe: Recipe, method: Method, world: int, parameters: int) -> float:
    """Bytes that a GPU sends per step, by ring collectives in single precision."""
    share = (world - 1) / world
    gradients = 2 * share * parameters * _FLOAT
    # both views' projections are gathered, and their gradients go back
    projections = 4 * share * recipe.batch_size * embedding(recipe) * _FLOAT
    channels = sum(
        m.num_features for m in method.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)
    )
    # mean, deviation and count of every GPU, gathered; two sums of gradients, reduced
    passes = len({view.size for view in recipe.views}) if len(recipe.views) > 2 else 2
    statistics = passes * channels * _FLOAT * (2 * (world - 1) + 4 * share)
    return gradients + projections + statistics


def steps(recipe: Recipe, epochs: int = 100) -> float:
    """Training steps of that many epochs of ImageNet."""
    return epochs * math.floor(IMAGES / recipe.batch_size)
