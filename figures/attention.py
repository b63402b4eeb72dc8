"""SVIB Fig. 4: where the CLS token of a ViT's last block looks, head by head."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import tyro
from tabulate import tabulate
from torch import Tensor

from figures.drawing import OUT, Drawn, canvas, counted, main, scale_of, show_image
from figures.pictures import for_trunk, load_pictures, to_show, trained_on
from harness import dist
from harness.backbone import Backbone, ViT
from harness.errors import UserError
from harness.features import frozen
from harness.foreign import load_checkpoint


@dataclass(frozen=True, kw_only=True)
class Attention:
    """Self-attention of the CLS token in a ViT's last block, checkpoint beside checkpoint."""

    ckpt: tyro.conf.UseAppendAction[tuple[Path, ...]]
    """A checkpoint, ours or a released one; again for the next: DINO's and SVIB's in the paper."""
    label: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """What to call each; by default its method or family."""
    images: str = ""  # a folder of images, or a data set, of whose val some are taken; by default
    # the one that it was trained on
    count: int = 4  # images
    size: int = 0  # their side in pixels, a multiple of the patch; 0: as trained
    out: Path = OUT  # gets attention.<scale>.png and .svg


def make(args: Attention) -> Drawn:
    """Read the checkpoints, look at the images with each, draw.

    Raises:
        UserError: A checkpoint is no ViT, or the sizes don't fit.
    """
    if args.label and len(args.label) != len(args.ckpt):
        raise UserError(
            f"--label names {len(args.label)} of {len(args.ckpt)} checkpoints; name each, or none"
        )
    loaded = [load_checkpoint(path) for path in args.ckpt]
    names = args.label or [_name(info.training, info.family) for _, info in loaded]
    trunks = [_vit(backbone, path) for (backbone, _), path in zip(loaded, args.ckpt, strict=True)]
    recipes = [info.training.get("recipe") for _, info in loaded]
    source = args.images or trained_on(recipes)
    pictures = load_pictures(source, args.count, args.size or trunks[0].image_size)
    maps = []
    for trunk in trunks:
        with frozen(trunk):
            images = for_trunk(pictures, trunk.pixels, dist.device())
            maps.append(cls_attention(trunk, images).cpu())
    trained = {_trained(info.training) for _, info in loaded}
    title = "CLS attention of the last block: " + "; ".join(sorted(filter(None, trained)))
    return Drawn(
        draw(pictures, maps, names),
        "attention",
        title=title.removesuffix(": "),
        description=_in_words(maps, names),
        scale=scale_of(recipes),
        text=describe(maps, names),
    )


def _vit(backbone: Backbone, path: Path) -> ViT:
    if not isinstance(backbone, ViT):
        raise UserError(f"{path} holds a {backbone.spec.name}, which has no attention; give a ViT")
    return backbone


def _name(training: dict[str, Any], family: str) -> str:
    kind = training.get("recipe", {}).get("method", {}).get("class", "")
    return kind.rpartition(".")[2].removesuffix("Config") or family


def _trained(training: dict[str, Any]) -> str:
    """What of ours was trained on and how long: "mnist5k, 10 epochs"."""
    recipe = training.get("recipe")
    return f"{recipe['dataset']}, {counted(recipe['epochs'], 'epoch')}" if recipe else ""


@torch.no_grad()
def cls_attention(backbone: ViT, images: Tensor) -> Tensor:
    """Attention of the last block's CLS token to each patch.

    Computed again from the block's own queries and keys: timm's fused kernel keeps no weights.

    Args:
        backbone: In eval mode.
        images: (n, 3, H, W), normalised, H and W multiples of the patch.

    Returns:
        (n, heads, H / patch, W / patch): probabilities. What they lack of 1 in all goes to the CLS
        token itself.

    Raises:
        UserError: The images don't divide into patches.
    """
    height, width = backbone.trunk.patch_embed.patch_size
    rows, columns = images.shape[2] // height, images.shape[3] // width
    if images.shape[2:] != (rows * height, columns * width):
        raise UserError(
            f"images of {images.shape[2]} x {images.shape[3]} px don't divide into patches of"
            f" {height} px; use --size {rows * height}"
        )
    attention = backbone.trunk.blocks[-1].attn
    seen: list[Tensor] = []
    hook = attention.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    try:
        backbone(images)
    finally:
        hook.remove()
    (tokens,) = seen
    q, k, _ = attention.qkv(tokens).unflatten(2, (3, attention.num_heads, -1)).unbind(2)
    q, k = attention.q_norm(q[:, 0]), attention.k_norm(k)  # (n, heads, d), (n, tokens, heads, d)
    weights = torch.einsum("nhd,nthd->nht", q.float() * attention.scale, k.float()).softmax(dim=2)
    patches = weights[:, :, backbone.trunk.num_prefix_tokens :]
    return patches.unflatten(2, (rows, columns))


def concentration(maps: Tensor, share: float = 0.6) -> float:
    """How compact attention is: mean percent of patches that hold a share of a head's mass.

    DINO's figures keep the patches of 60 % of the mass. Small is compact; attention that is
    spread evenly has the share itself.

    Args:
        maps: (n, heads, h, w).
        share: Of the mass on all patches.
    """
    mass = maps.flatten(2).double()
    mass = (mass / mass.sum(dim=2, keepdim=True)).sort(dim=2, descending=True).values.cumsum(dim=2)
    needed = (mass < share - 1e-9).sum(dim=2) + 1
    return 100 * float(needed.double().mean()) / mass.shape[2]


def _in_words(maps: Sequence[Tensor], names: Sequence[str]) -> str:
    shares = (
        f"{concentration(found):.0f} % of the patches for {name}"
        for name, found in zip(names, maps, strict=True)
    )
    return (
        f"{counted(len(maps[0]), 'image')}, each in a row per network ({', '.join(names)}): the "
        "image, then where the CLS token looks, brighter for more, as the mean over heads and head "
        "by head. "
        f"60 % of a head's attention lie on {', '.join(shares)}."
    )


def describe(maps: Sequence[Tensor], names: Sequence[str]) -> str:
    """How compact the attention of each checkpoint is, as a table."""
    rows = [(name, f"{concentration(found):.1f}") for name, found in zip(names, maps, strict=True)]
    header = ("checkpoint", "% of patches with 60 % of a head's attention")
    return tabulate(rows, header, disable_numparse=True, colalign=("left", "right"))


def draw(pictures: Tensor, maps: Sequence[Tensor], names: Sequence[str]) -> Any:
    """The figure: a row per image and checkpoint; the image, the mean over heads, each head.

    Args:
        pictures: uint8 (n, 3, H, W).
        maps: Of each checkpoint (n, heads, h, w).
        names: Of the checkpoints.
    """
    heads = max(found.shape[1] for found in maps)
    rows = len(pictures) * len(maps)
    figure = canvas(1.1 * (heads + 2) + 0.3, 1.1 * rows + 0.6)
    grid = figure.subplots(rows, heads + 2, squeeze=False)
    side = (-0.5, pictures.shape[3] - 0.5, pictures.shape[2] - 0.5, -0.5)
    for row, line in enumerate(grid):
        image, which = divmod(row, len(maps))
        show_image(line[0], to_show(pictures)[image])
        line[0].set_ylabel(names[which])
        found = maps[which][image]
        # A trunk of fewer heads than another leaves panels over, which are switched off below.
        for axes, values in zip(line[1:], (found.mean(dim=0), *found), strict=False):
            show_image(
                axes, values.numpy(), cmap="inferno", vmin=0, extent=side, interpolation="nearest"
            )
        for axes in line[2 + len(found) :]:
            axes.set_axis_off()
    titles = ("image", "mean", *(f"head {head + 1}" for head in range(heads)))
    for axes, text in zip(grid[0], titles, strict=True):
        axes.set_title(text)
    return figure


if __name__ == "__main__":
    main(Attention, make)
