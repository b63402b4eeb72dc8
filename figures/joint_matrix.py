"""IMSVD Fig. 3: the joint probability matrix of two views, and an image's embeddings in each."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple

import torch
from tabulate import tabulate
from torch import Tensor

from figures.drawing import COLOURS, OUT, Drawn, canvas, counted, main, scale_of
from figures.pictures import trained_on
from harness import dist, views
from harness.backbone import Backbone
from harness.checkpoint import load_backbone
from harness.data import open_split
from harness.errors import UserError
from harness.features import BATCH_SIZE, frozen
from harness.loader import Batch, Plan, loader_workers, train_batches
from harness.views import Pixels, View
from methods.imsvd import joint_distribution


class Assignments(NamedTuple):
    """Soft assignments (n, variables, units) of the same images under two views."""

    first: Tensor
    second: Tensor


@dataclass(frozen=True, kw_only=True)
class JointMatrix:
    """Joint probability matrix P^{12} of two views, and one image's embeddings (IMSVD, Fig. 3)."""

    ckpt: Path  # a backbone.pt of IMSVD, which carries the projector
    dataset: str = ""  # whose train split; by default the one that it was trained on
    variables: int = 5  # of the matrix' top-left block; fewer where the network has fewer
    embedded: int = 10  # variables of the embeddings, likewise
    images: int = 0  # draw so many of train instead of all
    image: int = 0  # of the first batch, whose embeddings are shown
    seed: int = 0  # of the random views
    out: Path = OUT  # gets joint_matrix.<scale>.png and .svg


def make(args: JointMatrix) -> Drawn:
    """Read the checkpoint, go once through the images, draw.

    Raises:
        UserError: The checkpoint has no discrete variables, or a number is out of range.
    """
    backbone, info = load_backbone(args.ckpt)
    _check(args, backbone)
    recipe = info.get("recipe") or {}
    dataset = args.dataset or trained_on([recipe])
    data = open_split(f"{dataset}@{args.images}" if args.images else dataset, "train")
    plan = Plan(drop_last=False, device=str(dist.device()), workers=loader_workers())
    batches = train_batches(
        data, trained_views(recipe), seed=args.seed, epoch=0, batch_size=BATCH_SIZE, plan=plan
    )
    kept: list[Assignments] = []
    with frozen(backbone):
        joint = joint_matrix(_first_kept(assignments(backbone, batches), kept), args.variables)
    shown = Assignments(*(p[args.image % len(p), : args.embedded] for p in kept[0]))
    epochs = recipe.get("epochs")
    measured = f"{dataset} train, {counted(len(data), 'image')}"
    measured += f", {counted(epochs, 'epoch')}" if epochs else ""
    return Drawn(
        draw(joint, shown),
        "joint_matrix",
        title=f"joint probabilities of two views: {measured}",
        description=_in_words(joint, shown),
        scale=scale_of((info.get("recipe"),)),
        text=describe(joint),
    )


def _check(args: JointMatrix, backbone: Backbone) -> None:
    projector = backbone.projector
    if projector is None:
        raise UserError(
            f"{args.ckpt} holds a trunk without a projector whose output is discrete; give a"
            " backbone.pt of imsvd:RESNET50"
        )
    for name in ("variables", "embedded"):
        if getattr(args, name) < 1:
            raise UserError(f"--{name} {getattr(args, name)} shows nothing; ask for at least 1")


def trained_views(recipe: dict[str, Any]) -> tuple[View, View]:
    """The two views of a resolved recipe; IMSVD's where there is none."""
    found = tuple(_view(values) for values in recipe.get("views", ())) or views.IMSVD
    if len(found) != 2:
        raise UserError(f"a joint matrix is of two views and this recipe has {len(found)}")
    return found[0], found[1]


def _view(values: dict[str, Any]) -> View:
    named = {f.name: values[f.name] for f in fields(View) if f.name in values}
    pixels = {name: tuple(x) for name, x in named.pop("pixels").items() if name != "class"}
    plain: dict[str, Any] = {
        name: tuple(x) if isinstance(x, list) else x for name, x in named.items()
    }
    return View(**plain, pixels=Pixels(**pixels))


def assignments(backbone: Backbone, batches: Iterable[Batch]) -> Iterator[Assignments]:
    """Assignments of each batch under its two views, all variables, of a frozen trunk."""
    projector = backbone.projector
    assert projector is not None
    projector.layers.to(dist.device()).eval()
    for batch in batches:
        first, second = (projector.assignments(backbone(view)) for view in batch.views)
        yield Assignments(first, second)


def _first_kept(found: Iterable[Assignments], kept: list[Assignments]) -> Iterator[Assignments]:
    for pair in found:
        if not kept:
            kept.append(pair)
        yield pair


def joint_matrix(batches: Iterable[Assignments], variables: int) -> Tensor:
    """Joint distribution of the first variables (IMSVD Eq. 10), averaged over all images.

    Args:
        batches: Assignments, batch by batch.
        variables: M, how many of them.

    Returns:
        float64 (M, B, M, B) on the CPU: entry (m, i, l, j) is P(v_m = i, v_l = j), the first view's
        v_m with the second view's v_l. A one-hot code that spreads evenly has 1/B on the diagonal
        of its diagonal blocks, 0 beside it, and, if variables are independent, 1/B² elsewhere.

    Raises:
        UserError: There are no images.
    """
    total, images = None, 0
    for first, second in batches:
        p, q = (x[:, :variables].double() for x in (first, second))
        part = joint_distribution(p, q) * len(p)
        total = part if total is None else total + part
        images += len(p)
    if total is None:
        raise UserError("a joint matrix is averaged over images, and there are none")
    return (total / images).cpu()


def means(joint: Tensor) -> dict[str, tuple[float, float]]:
    """Mean of each kind of element of (M, B, M, B), and what the theory wants (section III-E)."""
    count, units = joint.shape[:2]
    same = torch.eye(count, dtype=torch.bool)[:, None, :, None].expand_as(joint)
    equal = torch.eye(units, dtype=torch.bool)[None, :, None, :].expand_as(joint)
    found = {
        "diagonal of the diagonal blocks": (joint[same & equal], 1 / units),
        "rest of the diagonal blocks": (joint[same & ~equal], 0.0),
        "off-diagonal blocks": (joint[~same], 1 / units**2),
    }
    return {name: (float(x.mean()), ideal) for name, (x, ideal) in found.items() if x.numel()}


def _in_words(joint: Tensor, shown: Assignments) -> str:
    parts = (
        f"{name} {mean:.2g} (ideal: {ideal:.2g})" for name, (mean, ideal) in means(joint).items()
    )
    return (
        f"A square matrix in {joint.shape[0]} x {joint.shape[0]} blocks of {joint.shape[1]} units, "
        "brighter for more probable, and two rows of spikes: one image's embedding in either view, "
        f"{len(shown.first)} variables. Mean probabilities: {', '.join(parts)}."
    )


def describe(joint: Tensor) -> str:
    """The means as a table."""
    rows = [(name, f"{mean:.3g}", f"{ideal:.3g}") for name, (mean, ideal) in means(joint).items()]
    return tabulate(rows, ("elements", "mean probability", "ideal"), disable_numparse=True)


def draw(joint: Tensor, embeddings: Assignments) -> Any:
    """The figure: (a) the matrix, (b) and (c) one image's embeddings under either view.

    Args:
        joint: (M, B, M, B).
        embeddings: Of one image: (variables, units) each.
    """
    from matplotlib.colors import LogNorm

    count, units = joint.shape[:2]
    figure = canvas(9, 4.6)
    parts = figure.add_gridspec(2, 2, width_ratios=(1.15, 1))
    axes = figure.add_subplot(parts[:, 0])
    matrix = joint.reshape(count * units, count * units).numpy()
    # On a linear scale 1/B² beside 1/B is as black as 0.
    norm = LogNorm(vmin=0.1 / units**2, vmax=max(1 / units, matrix.max()), clip=True)
    image = axes.imshow(matrix, norm=norm, cmap="viridis", interpolation="nearest")
    bar = figure.colorbar(image, ax=axes, shrink=0.8, label="probability")
    bar.ax.axhline(1 / units**2, color="white", linewidth=1)
    edges = [units * i - 0.5 for i in range(1, count)]
    axes.hlines(edges, -0.5, count * units - 0.5, color="white", linewidth=0.4)
    axes.vlines(edges, -0.5, count * units - 0.5, color="white", linewidth=0.4)
    middles = [units * i + units / 2 - 0.5 for i in range(count)]
    axes.set_xticks(middles, [f"v{i + 1}" for i in range(count)])
    axes.set_yticks(middles, [f"v{i + 1}" for i in range(count)])
    axes.set_xlabel("second view")
    axes.set_ylabel("first view")
    axes.set_title(f"(a) joint probabilities, {count} of the variables")
    for row, (letter, name, values) in enumerate(
        zip("bc", ("first", "second"), embeddings, strict=True)
    ):
        axes = figure.add_subplot(parts[row, 1])
        heights = values.flatten().cpu().numpy()
        axes.vlines(range(len(heights)), 0, heights, color=COLOURS[0], linewidth=1)
        bounds = [values.shape[1] * i - 0.5 for i in range(1, len(values))]
        axes.vlines(bounds, 0, 1, color="0.85", linewidth=0.5, zorder=0)
        axes.set_ylim(0, 1.02)
        axes.set_xlim(-0.5, len(heights) - 0.5)
        axes.set_title(f"({letter}) one image, {name} view: {len(values)} variables")
        axes.set_xlabel("unit")
        axes.set_ylabel("probability")
    return figure


if __name__ == "__main__":
    main(JointMatrix, make)
