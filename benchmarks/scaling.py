"""What training and evaluating at ImageNet's size costs, on paper.

`python benchmarks/scaling.py` prints `benchmarks/scaling.md`. What is computed, held and sent is
counted (`benchmarks.loads`); how fast a V100 computes and sends is fitted to the hours and
gigabytes of IMSVD's Tables VI and VII; its Table IV, which the fit hasn't seen, is the check.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from scipy.optimize import nnls
from tabulate import tabulate

from baselines import barlow_twins, byol, dino, vicreg
from benchmarks.loads import IMAGES, Step, crop_load, loss_products, step_load, steps
from harness.recipe import BackboneSpec, Recipe
from methods import imsvd, svib
from results.specs import imsvd_table4, imsvd_table6, imsvd_table7

GPUS = 32  # V100, of all three tables


class Point(NamedTuple):
    """A run that the paper measured."""

    label: str
    recipe: Recipe
    hours: float  # per 100 epochs
    gigabytes: float  # per GPU


@dataclass(frozen=True, kw_only=True)
class V100:
    """What the fits found."""

    trunk: float  # FLOP/s in a trunk
    products: float  # FLOP/s in heads and losses
    wire: float  # bytes/s that a GPU sends
    matrices: float  # D x D matrices that the released loss holds at once
    beside: float  # bytes beside weights, activations and matrices

    def hours(self, step: Step, count: float) -> float:
        """Of `count` steps, sending not overlapped with computing."""
        seconds = step.trunk / self.trunk + step.products / self.products + step.wire / self.wire
        return count * seconds / 3600

    def gigabytes(self, step: Step, *, plain: bool = True) -> float:
        """At most at once."""
        loss = self.matrices * step.matrix if plain else 0.0
        return (self.beside + step.weights + step.activations + loss) / 1e9


def measured() -> list[Point]:
    """The rows of IMSVD's Tables VI and VII."""
    points = []
    for table in (imsvd_table6.TABLE, imsvd_table7.TABLE):
        for row in table.rows:
            widths = row.changes["method.projector"]
            recipe = replace(imsvd.RESNET50, method=replace(imsvd.IMSVDConfig(), projector=widths))
            hours, gigabytes = row.published[-2:]
            name = " - ".join(f"{width:,}" for width in widths)
            points.append(Point(name, recipe, float(hours[:-1]), float(gigabytes[:-1])))
    return list(dict.fromkeys(points))  # 8,192 - 8,160 stands in both


def fit(points: Sequence[Point]) -> V100:
    """Least squares of relative errors, nothing negative."""
    loads = [step_load(p.recipe, GPUS, plain=True) for p in points]
    hours = np.array([p.hours for p in points])
    counts = np.array([steps(p.recipe) for p in points]) / 3600
    work = np.array([[s.trunk, s.products, s.wire] for s in loads]) * counts[:, None]
    per_unit, _ = nnls(work / work.max(axis=0) / hours[:, None], np.ones(len(hours)))
    per_unit = per_unit / work.max(axis=0)
    memory = np.array([p.gigabytes for p in points])
    rest = memory - np.array([(s.weights + s.activations) / 1e9 for s in loads])
    held = np.array([[s.matrix / 1e9, 1.0] for s in loads])
    (matrices, beside), _ = nnls(held / memory[:, None], rest / memory)
    return V100(
        trunk=1 / per_unit[0],
        products=1 / per_unit[1],
        wire=1 / per_unit[2],
        matrices=matrices,
        beside=beside * 1e9,
    )


def unseen() -> list[Point]:
    """The rows of IMSVD's Table IV that the fit hasn't seen.

    Without SwAV: the paper doesn't say with how many crops it ran.
    """
    recipes = {
        "BYOL": byol.RESNET50,
        "Barlow Twins": barlow_twins.RESNET50,
        "VICReg": vicreg.RESNET50,
    }
    return [
        Point(row.label, recipes[row.label], *(float(cell[:-1]) for cell in row.published[:2]))
        for row in imsvd_table4.TABLE.rows
        if row.label in recipes
    ]


def compared(points: Sequence[Point], v100: V100) -> str:
    """Published beside computed."""
    rows = []
    for point in points:
        step = step_load(point.recipe, GPUS, plain=True)
        hours, gigabytes = v100.hours(step, steps(point.recipe)), v100.gigabytes(step)
        rows.append(
            [
                point.label,
                f"{point.hours:.1f}",
                f"{hours:.1f}",
                f"{100 * (hours / point.hours - 1):+.0f} %",
                f"{point.gigabytes:.1f}",
                f"{gigabytes:.1f}",
                f"{100 * (gigabytes / point.gigabytes - 1):+.0f} %",
            ]
        )
    return _table(rows, ["Run", "h, paper", "h, computed", "", "GB, paper", "GB, computed", ""])


METHODS = {
    "IMSVD ResNet-50": imsvd.RESNET50,
    "Barlow Twins ResNet-50": barlow_twins.RESNET50,
    "VICReg ResNet-50": vicreg.RESNET50,
    "DINO ViT-S/16": dino.VIT_SMALL,
    "SVIB ViT-S/16": svib.VIT_SMALL,
}


def per_method(world: int, v100: V100) -> str:
    """A step of every method on so many GPUs, and 100 epochs of it."""
    rows = []
    for label, recipe in METHODS.items():
        plain, ours = (step_load(recipe, world, plain=p) for p in (True, False))
        rows.append(
            [
                label,
                f"{recipe.batch_size / world:g}",
                f"{ours.trunk / 1e12:.2f}",
                f"{plain.products / 1e12:.2f}",
                f"{ours.products / 1e12:.2f}",
                f"{ours.wire / 1e6:,.0f}",
                f"{v100.gigabytes(plain):.1f}",
                f"{v100.gigabytes(ours, plain=False):.1f}",
                f"{v100.hours(plain, steps(recipe)):.1f}",
                f"{v100.hours(ours, steps(recipe)):.1f}",
            ]
        )
    headings = [
        "Method",
        "Images/GPU",
        "TFLOP, trunk",
        "TFLOP, head and loss: released",
        "here",
        "MB sent",
        "GB/GPU: released",
        "here",
        "h/100 epochs: released",
        "here",
    ]
    return _table(rows, headings)


def losses() -> str:
    """GFLOP of the losses by N and D, forward and backward, of all GPUs together."""
    rows = []
    for images in (256, 1024, 2048, 4096):
        for width in (2048, 8192, 16384):
            rows.append([f"{images:,}", f"{width:,}"])
            for family in ("imsvd", "barlow_twins", "vicreg"):
                whole, cheaper = loss_products(family, images, width)
                rows[-1] += [f"{whole / 1e9:,.0f}"] + (
                    [f"{cheaper / 1e9:,.0f}"] if family != "imsvd" else []
                )
    headings = ["N", "D", "IMSVD", "Barlow Twins", "cheaper form", "VICReg", "cheaper form"]
    return _table(rows, headings)


def protocols() -> str:
    """PFLOP of evaluating one trunk on ImageNet, and the bank of nearest neighbours."""
    rows = []
    for name, width in (("resnet50", 2048), ("vit_small_16", 384)):
        crop = crop_load(BackboneSpec(name=name), 224)
        queries = 50_000
        rows.append(
            [
                name,
                f"{(IMAGES + queries) * crop.forward / 1e15:.1f}",
                f"{2.0 * queries * IMAGES * width / 1e15:.2f}",
                f"{4.0 * IMAGES * width / 1e9:.1f}",
                f"{100 * IMAGES * (crop.forward + 6.0 * width * 1000) / 1e15:,.0f}",
                f"{100 * IMAGES * 13 * 6.0 * width * 1000 / 1e15:.1f}",
                f"{20 * IMAGES * 0.1 * crop.training / 1e15:.0f}",
            ]
        )
    headings = [
        "Trunk",
        "Features of all images",
        "Nearest neighbours",
        "Bank, GB",
        "Linear, 100 epochs",
        "of these, 13 rates' heads",
        "Fine-tuning, 10 %, 20 epochs",
    ]
    return _table(rows, headings)


def _table(rows: list[list[str]], headings: list[str]) -> str:
    return tabulate(rows, headings, tablefmt="pipe", disable_numparse=True, stralign="right")


def report() -> str:
    """The page."""
    points = measured()
    v100 = fit(points)
    return f"""# Cost at ImageNet's size, on paper

Made by `python benchmarks/scaling.py`; nothing on this page was run on a GPU here. FLOP are
counted on the recipes' own networks (a multiplication and an addition are two), bytes follow
from their shapes; what a V100 does with them is fitted to what IMSVD's authors measured on
{GPUS} of them.

## The fit: IMSVD, Tables VI and VII

Five constants for fourteen figures: {v100.trunk / 1e12:.1f} TFLOP/s in the trunk,
{v100.products / 1e12:.0f} in heads and losses, {v100.wire / 1e9:.1f} GB/s sent by a GPU with
nothing overlapped, {v100.matrices:.1f} matrices of D × D in single precision held by the
released loss, and {v100.beside / 1e9:.1f} GB beside. Products and bytes both grow with the
projector, so that these runs tell their two rates apart only roughly. Runs are named by the
widths of the projector.

{compared(points, v100)}

## The check: IMSVD, Table IV

Rows that the fit hasn't seen. What it leaves unexplained in Barlow Twins and VICReg is neither
arithmetic nor bytes sent: passes over D × D matrices element by element, which their released
losses make several of, and whatever else their code does between products.

{compared(unseen(), v100)}

## A step, and 100 epochs

On V100 by these constants. "Released": every GPU computes the whole loss of the global batch.
"Here": the cheaper exact form, shared out over the GPUs, without a D × D matrix. Batches are the
recipes' own, however few images a GPU gets; rates would be lower with few. ViTs ran at no V100's
rate in those tables: their hours are at the ResNet's, DINO's own are 24.2 per 100 epochs on 16
GPUs (its Table 8).

### 32 GPUs

{per_method(32, v100)}

### 256 GPUs

{per_method(256, v100)}

## Losses: GFLOP by N and D

Forward and backward, of all GPUs together where the loss is shared out; of each GPU where it
isn't. The cheaper form of Barlow Twins and VICReg has N × N Gram matrices for N < D; IMSVD's
logarithms leave it none, but it never holds its matrix.

{losses()}

DINO's and SVIB's logits are products with the prototypes or means: 2·d·K FLOP a crop, three
times that in training; 12 crops of 64 images and K = 65,536 are 201 MB in single precision.

## Evaluations: PFLOP on ImageNet

{protocols()}
"""


if __name__ == "__main__":
    print(report(), end="")
