"""Pretrain one recipe: `torchrun --nproc-per-node 4 -m harness.pretrain imsvd:RESNET50`.

The same entry point serves one process, torchrun, and srun (`srun python -m harness.pretrain …`).
"""

from __future__ import annotations

import dataclasses
import sys
from dataclasses import dataclass
from pathlib import Path

from harness import registry
from harness.errors import UserError
from harness.execution import Execution
from harness.recipe import Recipe
from harness.scale import find_scale, scale_recipe


@dataclass(frozen=True, kw_only=True)
class Command(Execution):
    """Pretrain a method's recipe and print the path of its backbone.pt."""

    recipe: str  # method:RECIPE, e.g. imsvd:RESNET50
    scale: str = "paper"  # paper, cifar10, cifar10-mini or demo
    epochs: int | None = None  # instead of the recipe's, before scaling
    seed: int = 0
    runs: Path = Path("runs")  # the run works in runs/<key>, and goes on there if it was killed


def main() -> None:
    """Parse, train, print; exits with 2 on a user's mistake."""
    import tyro

    command = tyro.cli(Command, config=(tyro.conf.PositionalRequiredArgs,))
    try:
        recipe = registry.recipe(command.recipe)
        if command.epochs is not None:
            recipe = dataclasses.replace(recipe, epochs=command.epochs)
        recipe = scale_recipe(recipe, find_scale(command.scale))
        _run(recipe, command)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


def _run(recipe: Recipe, command: Command) -> None:
    from harness import dist
    from harness.train import pretrain

    try:
        path = pretrain(recipe, command.seed, command.runs, command)
        if dist.is_main():
            print(path)
    finally:
        dist.shutdown()


if __name__ == "__main__":
    main()
