"""IMSVD Figs. 4 and 5: what the units of a variable stand for, and where in the image that is."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from tabulate import tabulate
from torch import Tensor

from figures.drawing import OUT, Drawn, canvas, counted, main, scale_of, show_image
from figures.pictures import for_trunk, load_pictures, to_show, trained_on
from harness import dist
from harness.backbone import OwnProjector, ResNet
from harness.checkpoint import load_backbone
from harness.errors import UserError
from harness.features import BATCH_SIZE, frozen

LAYER = "layer4"  # the last map before the average pool, as Grad-CAM's paper takes it


class Unit(NamedTuple):
    """One of the values of one of the discrete variables."""

    variable: int
    unit: int


@dataclass(frozen=True, kw_only=True)
class GradCAM:
    """Images with the highest probability of units of IMSVD's variables, with their Grad-CAM."""

    ckpt: Path  # a backbone.pt of IMSVD on a ResNet, which carries the projector
    images: str = ""  # a folder of images, or a data set, of whose val some are taken; by default
    # the one that it was trained on
    among: int = 1000  # images that are looked through
    variables: tuple[int, ...] = (0, 1)  # the paper shows the first two
    units: tuple[int, ...] = ()  # of each variable; by default those that most images have
    rows: int = 4  # units of each variable, where none are named
    count: int = 6  # images of each unit
    size: int = 0  # side of the images in pixels; 0: as trained
    overlay: bool = True  # False: the images alone, as in the paper's Fig. 4
    out: Path = OUT  # gets gradcam.<scale>.png and .svg, or units.<scale>.png and .svg


def make(args: GradCAM) -> Drawn:
    """Read the checkpoint, assign the images, take the maps of the best of each unit, draw.

    Raises:
        UserError: The checkpoint has no discrete variables or no map, or one asked for isn't there.
    """
    backbone, info = load_backbone(args.ckpt)
    projector = backbone.projector
    if projector is None or not isinstance(backbone, ResNet):
        raise UserError(
            f"{args.ckpt} holds a {backbone.spec.name} with{'' if projector else 'out'} a projector"
            " whose output is discrete; give a backbone.pt of imsvd:RESNET50"
        )
    _check(args, projector)
    source = args.images or trained_on([info.get("recipe")])
    pictures = load_pictures(source, args.among, args.size or backbone.image_size)
    p = assign(backbone, projector, pictures)
    shown = [
        Unit(variable, unit)
        for variable in args.variables
        for unit in args.units or most_used(p, variable, args.rows)
    ]
    best = {unit: highest(p, unit, args.count) for unit in shown}
    maps = {unit: maps_of(backbone, pictures[rows], unit) for unit, rows in best.items()}
    recipe = info.get("recipe") or {}
    trained = f"{recipe['dataset']}, {counted(recipe['epochs'], 'epoch')}: " if recipe else ""
    return Drawn(
        draw(pictures, best, maps if args.overlay else {}),
        "gradcam" if args.overlay else "units",
        title=f"{trained}highest of {counted(len(pictures), 'image')} per unit",
        description=_in_words(best, args.overlay),
        scale=scale_of((info.get("recipe"),)),
        text=describe(p, best),
    )


def _check(args: GradCAM, projector: OwnProjector) -> None:
    variables = projector.widths[-1] // projector.units
    for name, values, most in (
        ("variables", args.variables, variables),
        ("units", args.units, projector.units),
    ):
        outside = [value for value in values if not 0 <= value < most]
        if outside:
            raise UserError(f"--{name} {outside[0]} is out of range: they go from 0 to {most - 1}")
    if min(args.rows, args.count) < 1:
        raise UserError("--rows and --count are at least 1; a figure of none shows nothing")


def assign(backbone: ResNet, projector: OwnProjector, pictures: Tensor) -> Tensor:
    """Soft assignments (n, variables, units) of uint8 pictures (n, 3, H, W), on the CPU."""
    projector.layers.to(dist.device()).eval()
    with frozen(backbone):
        parts = [
            projector.assignments(
                backbone(for_trunk(part, backbone.pixels, dist.device())).float()
            ).cpu()
            for part in pictures.split(BATCH_SIZE)
        ]
    return torch.cat(parts)


def maps_of(backbone: ResNet, pictures: Tensor, unit: Unit) -> Tensor:
    """Grad-CAM (n, h, w) of a unit on uint8 pictures (n, 3, H, W), on the CPU."""
    with frozen(backbone):
        images = for_trunk(pictures, backbone.pixels, dist.device())
        maps = next(x for name, x in backbone.maps(images) if name == LAYER)
    assert backbone.projector is not None
    backbone.projector.layers.to(dist.device()).eval()
    return grad_cam(maps.float(), backbone.projector, unit).cpu()


@torch.enable_grad()
def grad_cam(maps: Tensor, projector: OwnProjector, unit: Unit) -> Tensor:
    """Where a unit's logit comes from (Selvaraju et al., ICCV 2017, Eqs. 1 and 2).

    A variable is a head of its own that classifies into units; as for classes, the score is taken
    before the softmax, which would mix in the other units.

    Args:
        maps: (n, channels, h, w), of which the trunk's feature is the mean over h and w.
        projector: In eval mode, so that images don't depend on each other.
        unit: Whose logit.

    Returns:
        (n, h, w), >= 0: channels weighted by the mean of their gradients, summed, through a ReLU.
    """
    maps = maps.detach().requires_grad_()
    z = projector.layers(maps.mean(dim=(2, 3))).float()
    score = z.unflatten(1, (-1, projector.units))[:, unit.variable, unit.unit]
    (gradient,) = torch.autograd.grad(score.sum(), maps)
    weights = gradient.mean(dim=(2, 3), keepdim=True)
    return (weights * maps.detach()).sum(dim=1).relu()


def most_used(p: Tensor, variable: int, count: int) -> list[int]:
    """Units of a variable that are the likeliest of most images, the most frequent first."""
    used = p[:, variable].argmax(dim=1).bincount(minlength=p.shape[2])
    order = used.argsort(descending=True, stable=True)
    return [unit for unit in order[:count].tolist() if used[unit]]


def highest(p: Tensor, unit: Unit, count: int) -> Tensor:
    """Rows of the images with the highest probability of a unit, the highest first."""
    column = p[:, unit.variable, unit.unit]
    return column.argsort(descending=True, stable=True)[:count]


def _in_words(best: dict[Unit, Tensor], overlay: bool) -> str:
    units = (f"variable {unit.variable} unit {unit.unit}" for unit in best)
    over = ", under a map of where in the image its score comes from, red for most" * overlay
    return (
        f"{len(best)} rows of images{over}: those with the highest probability of a unit, the "
        f"highest first. From the top: {', '.join(units)}."
    )


def describe(p: Tensor, best: dict[Unit, Tensor]) -> str:
    """How sure the network is of the images shown, and how many have the unit at all."""
    rows = []
    for unit, shown in best.items():
        likeliest = (p[:, unit.variable].argmax(dim=1) == unit.unit).double().mean()
        lowest = p[shown, unit.variable, unit.unit].min()
        rows.append((*unit, f"{100 * float(likeliest):.1f}", f"{float(lowest):.3f}"))
    header = ("variable", "unit", "% of images", "lowest probability shown")
    return tabulate(rows, header, disable_numparse=True)


def draw(pictures: Tensor, best: dict[Unit, Tensor], maps: dict[Unit, Tensor]) -> Any:
    """The figure: a row per unit, its images in order, under their maps if there are any.

    Args:
        pictures: uint8 (n, 3, H, W).
        best: Rows of the images to show of each unit.
        maps: Of each unit (images, h, w), drawn up to the size of the images; {}: none.
    """
    columns = max(map(len, best.values()))
    figure = canvas(1.1 * columns + 1.2, 1.1 * len(best) + 0.6)
    grid = figure.subplots(len(best), columns, squeeze=False)
    for line, (unit, rows) in zip(grid, best.items(), strict=True):
        line[0].set_ylabel(f"variable {unit.variable}\nunit {unit.unit}")
        # Units of fewer images than others leave panels over, which are switched off below.
        for axes, image in zip(line, to_show(pictures[rows]), strict=False):
            show_image(axes, image)
        # As many maps as images, or none where the images are shown alone.
        for axes, heat in zip(line, maps.get(unit, ()), strict=False):
            large = F.interpolate(heat[None, None], pictures.shape[2:], mode="bilinear")[0, 0]
            show_image(axes, large.numpy(), cmap="jet", alpha=0.45, vmin=0)
        for axes in line[len(rows) :]:
            axes.set_axis_off()
    return figure


if __name__ == "__main__":
    main(GradCAM, make)
