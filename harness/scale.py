"""Scale: one function from the papers' recipes to runs that fit a smaller machine.

`paper` is the identity. Every other scale keeps the plan and the code path and shrinks what runs:
data set, backbone, crops, heads, epochs. Tables say in their heading which scale they show.
"""

from __future__ import annotations

import difflib
import math
import os
import sys
from dataclasses import dataclass, replace
from pathlib import Path

from harness import scenes
from harness.errors import UserError
from harness.protocol import EvalProtocol
from harness.recipe import BackboneSpec, MethodConfig, Optim, Recipe
from harness.views import shrink_views


@dataclass(frozen=True, kw_only=True)
class Scale:
    """What a scale puts in the place of the papers' ImageNet settings."""

    name: str
    about: str  # one line for headings and --help
    dataset: str = "imagenet"
    several: str = "voc07"  # data set of images that show several classes
    image_size: int = 224
    crop_sizes: dict[int, int] | None = None  # paper's crop side → this scale's
    local_crops: int = 10  # at most
    backbones: dict[str, str] | None = None  # paper's backbone → this scale's
    convnet_optim: Optim | None = None
    teacher_optim: Optim | None = None  # of convnets that learn from an EMA teacher
    vit_optim: Optim | None = None
    batch_size: int = 0
    epoch_factor: float = 1.0
    width: int = 1 << 30  # widest projector layer
    prototypes: int = 1 << 30  # most prototypes or means
    teacher_momentum: float | None = None  # where an EMA teacher starts; None: as published
    linear_epochs: int = 100
    linear_batch_size: int = 256
    seeds: int = 1  # runs per cell unless --seeds says otherwise

    @property
    def is_paper(self) -> bool:
        """Whether this is the papers' own setting."""
        return self.name == "paper"


# 1 % of the smallest data set are 40 images, and a batch can hold no more: where a recipe shows but
# a share of the labels, batches are this many times smaller than the scale's.
FEW_LABELS = 4
LOCAL = 96  # side of the local crops of every multi-crop recipe
# 255 and 64 are PIRL's jigsaw and the patches that it is cut into; 32 is a CIFAR recipe already.
_CROPS = {224: 32, 32: 32, LOCAL: 16, 255: 36, 64: 8}
_SMALL = {
    "resnet50": "resnet_tiny",
    "resnet50v2": "resnet_tiny",
    "resnet18": "resnet_tiny",
    "resnet50_d8192": "resnet_tiny",
    "resnet18_cifar": "resnet_tiny",
    "vit_small_16": "vit_demo",
    "vit_tiny_16": "vit_demo",
}
# Below the papers' scale methods share optimisers: LARS is made for batches of thousands, and
# what is compared there is the harness, not the tuning.
_SGD = Optim(name="sgd", lr=0.06, weight_decay=5e-4, warmup_epochs=10)
_ADAMW = Optim(
    name="adamw",
    lr=5e-4,
    final_lr=1e-6,
    weight_decay=0.04,
    final_weight_decay=0.4,
    warmup_epochs=10,
)
# Runs of a few hundred steps. What works there differs: SGD hardly moves Barlow Twins, Adam makes
# SVIB's features collapse before the first re-initialisation, and a teacher of momentum .996 would
# still be a quarter its initialisation (LOG.md has the trials).
_BRIEF = Optim(name="adamw", lr=2e-3, weight_decay=0.04, warmup_epochs=1)
_BRIEF_TEACHER = Optim(name="sgd", lr=0.2, weight_decay=1e-4, warmup_epochs=1)
_BRIEF_MOMENTUM = 0.95

SCALES = {
    scale.name: scale
    for scale in (
        Scale(name="paper", about="the papers' own settings, ImageNet at 224 px", seeds=1),
        Scale(
            name="cifar10",
            about="CIFAR-10 at 32 px, ResNet-18 and ViT-Ti/4",
            dataset="cifar10",
            image_size=32,
            crop_sizes=_CROPS,
            local_crops=6,
            backbones={
                "resnet50": "resnet18_cifar",
                "resnet50v2": "resnet18_cifar",
                "resnet18": "resnet18_cifar",
                "resnet50_d8192": "resnet18_cifar",
                "vit_small_16": "vit_tiny_4",
                "vit_tiny_16": "vit_tiny_4",
            },
            convnet_optim=_SGD,
            teacher_optim=_SGD,
            vit_optim=_ADAMW,
            batch_size=512,
            width=2048,
            prototypes=4096,
        ),
        Scale(
            name="cifar10-mini",
            about="10,000 CIFAR-10 images, small networks, a tenth of the epochs: minutes on CPU",
            dataset="cifar10@10000",
            image_size=32,
            crop_sizes=_CROPS,
            local_crops=0,
            backbones=_SMALL,
            convnet_optim=_BRIEF,
            teacher_optim=_BRIEF_TEACHER,
            vit_optim=_BRIEF,
            batch_size=128,
            epoch_factor=0.1,
            teacher_momentum=_BRIEF_MOMENTUM,
            width=512,
            prototypes=1024,
            linear_epochs=20,
        ),
        Scale(
            name="demo",
            about="5,000 MNIST digits, tiny networks, 1 in 200 epochs: minutes on CPU",
            dataset="mnist5k",
            several=scenes.NAME,
            image_size=32,
            crop_sizes=_CROPS,
            local_crops=2,
            backbones=_SMALL,
            convnet_optim=replace(_BRIEF, warmup_epochs=0.5),
            teacher_optim=replace(_BRIEF_TEACHER, warmup_epochs=0.5),
            vit_optim=replace(_BRIEF, warmup_epochs=0.5),
            batch_size=128,
            epoch_factor=0.005,
            teacher_momentum=_BRIEF_MOMENTUM,
            width=256,
            prototypes=256,
            linear_epochs=8,
        ),
    )
}


def find_scale(name: str) -> Scale:
    """The scale of that name, with a did-you-mean for unknown ones."""
    if name not in SCALES:
        close = difflib.get_close_matches(name, SCALES, n=1, cutoff=0.3)
        hint = f"did you mean {close[0]}? " if close else ""
        raise UserError(f"unknown scale {name!r}: {hint}choose from {', '.join(SCALES)}.")
    return SCALES[name]


def default_scale() -> str:
    """The papers' scale where ImageNet is, else the demo, saying so."""
    # Only whether the folder is there: harness/data.py, which reads it, imports torch.
    root = os.environ.get("DATA_ROOT")
    if root and (Path(root) / "imagenet").is_dir():
        return "paper"
    print(
        "no ImageNet under DATA_ROOT: running at the demo scale, whose numbers can't be compared "
        "with the papers' (--scale chooses another)",
        file=sys.stderr,
    )
    return "demo"


def scale_recipe(recipe: Recipe, scale: Scale) -> Recipe:
    """`recipe` at another scale; the identity at `paper`."""
    if scale.is_paper:
        return recipe
    assert scale.crop_sizes and scale.backbones
    name = scale.backbones.get(recipe.backbone.name, recipe.backbone.name)
    few_labels = 0 < recipe.labelled < 100
    global_views = tuple(v for v in recipe.views if v.size != LOCAL)
    local_views = tuple(v for v in recipe.views if v.size == LOCAL)[: scale.local_crops]
    method = recipe.method.scaled(scale)
    return replace(
        recipe,
        method=method,
        views=shrink_views(global_views + local_views, scale.crop_sizes),
        backbone=BackboneSpec(name=name),
        epochs=_epochs(recipe, method, scale),
        batch_size=scale.batch_size // (FEW_LABELS if few_labels else 1),
        optim=at_few_labels(_optim(recipe, scale)) if few_labels else _optim(recipe, scale),
        dataset=scale.dataset,
    )


def _epochs(recipe: Recipe, scaled: MethodConfig, scale: Scale) -> int:
    """Where there is a first phase, both phases have at least one epoch."""
    before, after = recipe.method.first_phase(), scaled.first_phase()
    if before is None or after is None:
        return math.ceil(recipe.epochs * scale.epoch_factor)
    return after.epochs + math.ceil((recipe.epochs - before.epochs) * scale.epoch_factor)


def at_few_labels(optim: Optim) -> Optim:
    """The optimiser for batches that are FEW_LABELS times smaller: with the rate unchanged."""
    return replace(optim, lr=FEW_LABELS * optim.lr)


def _optim(recipe: Recipe, scale: Scale) -> Optim:
    if recipe.backbone.name.startswith("vit"):
        chosen = scale.vit_optim
    elif recipe.method.has_teacher:
        chosen = scale.teacher_optim
    else:
        chosen = scale.convnet_optim
    assert chosen is not None, scale.name
    return chosen


def scale_protocol(protocol: EvalProtocol, scale: Scale) -> EvalProtocol:
    """`protocol` at another scale; the identity at `paper`."""
    return protocol if scale.is_paper else protocol.scaled(scale)
