"""Every recipe of every registered method."""

from __future__ import annotations

import importlib

from harness import registry
from harness.recipe import Recipe


def all_recipes() -> dict[str, Recipe]:
    found = {}
    for name in registry.names("method"):
        module = importlib.import_module(registry.find("method", name).__module__)
        for constant, value in vars(module).items():
            if isinstance(value, Recipe):
                found[f"{name}:{constant}"] = value
    return found


RECIPES = all_recipes()
TRAINED = {name: recipe for name, recipe in RECIPES.items() if recipe.epochs}
