"""Trunks kept along a training, for curves of accuracy over epochs: which files, at which steps."""

from __future__ import annotations

from pathlib import Path

from harness.recipe import Recipe

END = 100  # percent


def trunk_file(percent: int = END) -> str:
    """Name of the trunk after a share of the steps, in its run's folder: "backbone.pt" at the end.

    Args:
        percent: Of the pretraining's steps.
    """
    return "backbone.pt" if percent == END else f"backbone-{percent}.pt"


def evaluated_after(percent: int) -> tuple[str, ...]:
    """What a fingerprint holds besides recipe, protocol and seed: at the end, nothing."""
    return () if percent == END else (f"after {percent} % of the steps",)


def snapshot_steps(recipe: Recipe, steps: int) -> dict[int, list[int]]:
    """After which steps a trunk is kept, and as which percents.

    Those of a recipe are distinct steps wherever a run has at least as many as the percents' grid
    (20, 40, 60, 80: five). A shorter run keeps the same trunk under several names.

    Args:
        recipe: Its `snapshots` are in percent.
        steps: Of the whole run.
    """
    found: dict[int, list[int]] = {}
    for percent in recipe.snapshots:
        found.setdefault(max(1, round(steps * percent / END)), []).append(percent)
    return found


def is_finished(recipe: Recipe, workdir: Path) -> bool:
    """Whether a run has left all that it leaves."""
    return all((workdir / trunk_file(p)).exists() for p in (*recipe.snapshots, END))


def is_lost(recipe: Recipe, workdir: Path, *, step: int, steps: int) -> bool:
    """Whether a trunk that a run has passed is missing, so that going on can't give it any more.

    A run writes it before any checkpoint of that step, so that this happens only where somebody
    removed it, or trained before it was kept.

    Args:
        recipe: What is trained.
        workdir: Of the run.
        step: Where the run would go on.
        steps: Of the whole run.
    """
    passed = {s: names for s, names in snapshot_steps(recipe, steps).items() if s <= step}
    return not all((workdir / trunk_file(p)).exists() for names in passed.values() for p in names)
