"""Figures by name, for `python reproduce.py svib/fig4`: what draws them and from whose weights."""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from figures.drawing import ROOT
from harness.errors import UserError
from harness.scale import Scale, find_scale


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A figure's file in this folder, its `make` and the class of its arguments."""

    module: str
    arguments: str
    table: str = ""  # whose pretrainings it shows, …
    recipes: tuple[str, ...] = ()  # … those of these recipes, one of each
    shows_images: bool = False  # takes --images
    fixed: tuple[str, ...] = ()  # options that make it this figure


FIGURES = {
    "svib/fig4": Entry(
        module="attention",
        arguments="Attention",
        table="svib/table1",
        recipes=("dino:VIT_SMALL", "svib:VIT_SMALL"),
        shows_images=True,
    ),
    "imsvd/fig3": Entry(
        module="joint_matrix",
        arguments="JointMatrix",
        table="imsvd/table1",
        recipes=("imsvd:RESNET50",),
    ),
    "imsvd/fig4": Entry(
        module="gradcam",
        arguments="GradCAM",
        table="imsvd/table1",
        recipes=("imsvd:RESNET50",),
        shows_images=True,
        fixed=("--no-overlay",),
    ),
    "imsvd/fig5": Entry(
        module="gradcam",
        arguments="GradCAM",
        table="imsvd/table1",
        recipes=("imsvd:RESNET50",),
        shows_images=True,
    ),
    "curves": Entry(module="training_curves", arguments="TrainingCurves"),
    "agreement": Entry(module="agreement", arguments="Agreement"),
}


def run(name: str, arguments: Sequence[str]) -> None:
    """Draw a figure of `FIGURES`; without --ckpt of what its table's runs left at --scale.

    Raises:
        UserError: One of the runs that it shows is missing.
    """
    entry = FIGURES[name]
    given = [*arguments]
    if entry.recipes:
        own = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
        own.add_argument("--scale", default="paper")
        own.add_argument("--runs", type=Path, default=ROOT / "runs")
        known, given = own.parse_known_args(given)
        named = {argument.partition("=")[0] for argument in given}
        if not {"--ckpt", "--help", "-h"} & named:
            scale = find_scale(known.scale)
            paths = checkpoints(entry, scale, known.runs)
            given += [part for path in paths for part in ("--ckpt", str(path))]
            if entry.shows_images and "--images" not in named:
                given += ["--images", scale.dataset]
    module = importlib.import_module(f"figures.{entry.module}")
    from figures.drawing import main

    kind = getattr(module, entry.arguments)
    more = _about(entry) if entry.recipes else ""
    main(kind, module.make, [*given, *entry.fixed], prog=f"reproduce.py {name}", more=more)


def _about(entry: Entry) -> str:
    shown = " and ".join(entry.recipes)
    return (
        f"Without --ckpt: the longest finished run of {shown} in {entry.table} at --scale (paper,"
        " cifar10, cifar10-mini or demo; default paper) in the folder --runs."
    )


def checkpoints(entry: Entry, scale: Scale, runs: Path) -> list[Path]:
    """The longest finished run of each recipe of a figure, in its table at a scale.

    Raises:
        UserError: A recipe has none.
    """
    from results.catalog import find_tables
    from results.resolve import resolve

    (table,) = find_tables((entry.table,))
    resolved = resolve(table, scale, seeds=None, fill=False, cache=runs / ".plans")
    found = []
    for recipe in entry.recipes:
        own = [p for p in resolved.pretrainings.values() if p.recipe == recipe]
        done = [p for p in own if (runs / p.key / "backbone.pt").is_file()]
        if not done:
            raise UserError(
                f"no run of {recipe} at the {scale.name} scale is finished in {runs}; run"
                f" reproduce.py {entry.table} --scale {scale.name} first, or give --ckpt"
            )
        longest = max(done, key=lambda p: p.epochs)
        found.append(runs / longest.key / "backbone.pt")
    return found
