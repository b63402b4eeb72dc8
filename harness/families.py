"""Whose release a checkpoint is, and what its images and its architecture need for that."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness.errors import UserError
from harness.layouts import CONV, EXPANSION, PATCHES, Layout
from harness.views import IMAGENET_PIXELS, RAW_PIXELS, SWAV_PIXELS, Pixels


@dataclass(frozen=True, kw_only=True)
class Family:
    """What a release needs that its tensors don't say."""

    pixels: Pixels = IMAGENET_PIXELS
    archs: Mapping[str, str] = field(default_factory=dict)  # what the plain names stand for here


FAMILIES: dict[str, Family] = {
    "dino": Family(),
    "vicreg": Family(),
    "barlow_twins": Family(),
    "imsvd": Family(),
    "moco": Family(),
    "moco_v3": Family(archs={"vit_small_16": "vit_small_16_heads12"}),
    "pcl": Family(),
    "simsiam": Family(),
    "swav": Family(pixels=SWAV_PIXELS),  # and DeepCluster-v2 and SeLa-v2 of the same repository
    "vissl": Family(),
    "npid": Family(),
    "dissl": Family(),
    "corinfomax": Family(),
    "byol": Family(  # DeepMind's; ports of BYOL to PyTorch pad as PyTorch does
        archs={"resnet50": "resnet50_same", "resnet200_w2": "resnet200_w2_same"}
    ),
    "simclr": Family(pixels=RAW_PIXELS),  # Google's; ports of SimCLR to PyTorch normalise
    "mmselfsup": Family(),
    "lightly": Family(),
    "solo_learn": Family(
        archs={
            "resnet18_cifar": "resnet18_cifar_pad2",
            "resnet50_cifar": "resnet50_cifar_pad2",
        }
    ),
    "byol_pytorch": Family(),
    "w_mse": Family(),
    "torchvision": Family(),
    "timm": Family(),
    "augreg": Family(pixels=Pixels(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))),  # Google's ViTs
}
# Names of layers that everybody uses, and whom they leave in doubt.
_ANONYMOUS = {
    "torchvision": "if SwAV, Google's SimCLR or DeepMind's BYOL did, add --family swav, simclr or "
    "byol",
    "timm": "if MoCo v3 did, or Google's AugReg (mean and std .5), add --family moco_v3 or augreg",
}
_HINTS = {
    "swav": r"swav|deepcluster|sela",
    "simclr": r"simclr",
    "byol": r"byol",
    "moco_v3": r"moco.?v3",
    "augreg": r"augreg",
}


def find_family(name: str) -> Family:
    """The family of that name.

    Raises:
        UserError: Unknown name.
    """
    if name not in FAMILIES:
        close = difflib.get_close_matches(name, FAMILIES, n=1, cutoff=0.4)
        hint = f"did you mean {close[0]}? " if close else ""
        raise UserError(f"unknown family {name!r}: {hint}Known: {', '.join(FAMILIES)}")
    return FAMILIES[name]


def detect(layout: Layout, content: Mapping[str, Any]) -> tuple[str, str]:
    """Name of the family, and what in the file shows it ("" where nothing does)."""
    known = next(_signs(layout, content), None)
    if known is not None:
        return known
    return ("timm", "") if PATCHES in layout.trunk else ("torchvision", "")


def _signs(layout: Layout, content: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    yield from _signs_of_container(layout, content)
    yield from _signs_of_copies(layout)
    yield from _signs_of_heads(layout, "pytorch-lightning_version" in content)
    yield from _signs_of_order(layout)


def _signs_of_container(layout: Layout, content: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    if layout.dialect == "haiku":
        yield "byol", "DeepMind's experiment_state"
    if "teacher" in layout.container.split("."):
        yield "dino", "a teacher, which is taken"
    if layout.container.startswith("classy_state_dict"):
        yield "vissl", "a classy_state_dict"
    if "lemniscate" in content:
        yield "npid", "a lemniscate memory bank"
    if "model_state_dict" in layout.container and "backbone." in layout.prefix:
        yield "corinfomax", "a backbone in model_state_dict"
    if "meta" in content and "backbone." in layout.prefix:
        yield "mmselfsup", "a backbone beside meta"


def _signs_of_copies(layout: Layout) -> Iterator[tuple[str, str]]:
    """Families that store a slow copy or prototypes."""
    prefix, heads = layout.prefix, set(layout.heads)
    if prefix.endswith("base_encoder.") and "momentum_encoder" in heads:
        yield "moco_v3", "a base_encoder beside its momentum_encoder"
    if "encoder_q." in prefix:
        yield "moco", "an encoder_q, which is taken; PCL's look the same"
    if prefix in ("", "module.") and {"prototypes", "projection_head"} <= heads:
        yield "swav", "prototypes beside a projection_head"
    if "online_encoder" in heads or "online_encoder." in prefix:
        yield "byol_pytorch", "an online_encoder"


def _signs_of_heads(layout: Layout, lightning: bool) -> Iterator[tuple[str, str]]:
    prefix, heads = layout.prefix, set(layout.heads)
    signs = (
        ("barlow_twins", {"projector", "bn"}, "a projector and a batch norm of its embeddings"),
        ("solo_learn", {"projector", "classifier"}, "a projector and an online classifier"),
        ("lightly", {"projection_head"}, "a projection_head"),
        ("simsiam", {"predictor"}, "an encoder beside a predictor"),
        ("vicreg", {"projector"}, "a backbone beside a projector; IMSVD's look the same"),
    )
    fits = {
        "barlow_twins": not lightning,
        "solo_learn": lightning,
        "lightly": lightning,
        "simsiam": prefix.endswith("encoder."),
        "vicreg": prefix.endswith("backbone.") and not lightning,
    }
    yield from ((name, because) for name, need, because in signs if fits[name] and need <= heads)
    if prefix == "model.module.":
        yield "w_mse", "model.module. before every name"
    if EXPANSION in layout.trunk:
        yield "dissl", "a resizer before the average pool"


def _signs_of_order(layout: Layout) -> Iterator[tuple[str, str]]:
    """What converters from TensorFlow and JAX leave in the order of a ResNet's tensors."""
    names = list(layout.trunk)
    if layout.dialect == "simclr2":
        yield "simclr", "the layers' names of Separius/SimCLRv2-Pytorch"
    if CONV not in layout.trunk or "fc" not in layout.heads:
        return
    # tonylins/simclr-converter @139d3cb registers the shortcut before the block's convolutions.
    first = next((n for n in names if n.startswith("layer1.0.")), "")
    if first.startswith("layer1.0.downsample."):
        yield "simclr", "shortcuts stored before convolutions, as tonylins/simclr-converter does"
    # chigur/byol-convert @e527ae6 writes haiku's params, then its state, and no counters.
    statistics = [".running_" in name for name in names]
    counted = any(name.endswith("num_batches_tracked") for name in names)
    if any(statistics) and not counted and statistics == sorted(statistics):
        yield "byol", "statistics stored after all weights, as chigur/byol-convert does"


def hint(path: Path, name: str, because: str) -> str:
    """What the user might have to say where the file itself says nothing; "" if no doubt."""
    if name not in _ANONYMOUS or because:
        return ""
    looks = (family for family, text in _HINTS.items() if re.search(text, path.name.lower()))
    family = next(looks, None)
    if family is not None:
        return f"the file's name looks like {family}'s: if it is, add --family {family}"
    return f"nothing in it says who trained it: {_ANONYMOUS[name]}"
