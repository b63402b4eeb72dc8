"""Methods, baselines and protocols by name: the file is the registration."""

from __future__ import annotations

import difflib
import importlib.util
import pkgutil
from dataclasses import is_dataclass
from types import ModuleType

from harness.errors import UserError
from harness.protocol import EvalProtocol
from harness.recipe import Recipe

ROOMS = {"method": ("methods", "baselines"), "protocol": ("protocols",)}


def names(kind: str) -> list[str]:
    """Names of everything of a kind ("method" or "protocol"), without importing any of it."""
    rooms = (importlib.import_module(room) for room in ROOMS[kind])
    return sorted(module.name for room in rooms for module in pkgutil.iter_modules(room.__path__))


def find(kind: str, name: str) -> type:
    """The one config class of the module called `name`: a MethodConfig or an EvalProtocol.

    Raises:
        UserError: No file of that name; the closest ones are suggested.
    """
    _check(kind, name, names(kind))
    room = next(room for room in ROOMS[kind] if importlib.util.find_spec(f"{room}.{name}"))
    return config_class(importlib.import_module(f"{room}.{name}"))


def config_class(module: ModuleType) -> type:
    """The single dataclass with a `version` that a method's or protocol's module defines."""
    found = [
        value
        for value in vars(module).values()
        if isinstance(value, type)
        and is_dataclass(value)
        and hasattr(value, "version")
        and value.__module__ == module.__name__
    ]
    assert len(found) == 1, f"{module.__name__} defines {len(found)} config classes"
    return found[0]


def recipe(name: str) -> Recipe:
    """The recipe called `method:RECIPE`, a constant of the method's module ("imsvd:RESNET50").

    Raises:
        UserError: No such method or no such recipe; the closest ones are suggested.
    """
    method, _, _ = name.partition(":")
    module = importlib.import_module(find("method", method).__module__)
    recipes = {f"{method}:{k}": v for k, v in vars(module).items() if isinstance(v, Recipe)}
    _check("recipe", name, list(recipes))
    return recipes[name]


def variants(name: str) -> dict[str, EvalProtocol]:
    """The named settings of a protocol, its default first."""
    return importlib.import_module(find("protocol", name).__module__).VARIANTS


def variant(name: str) -> EvalProtocol:
    """The settings called `protocol:variant` ("knn:dino").

    Raises:
        UserError: No such protocol or no such variant; the closest ones are suggested.
    """
    protocol, _, _ = name.partition(":")
    known = {f"{protocol}:{key}": value for key, value in variants(protocol).items()}
    _check("variant", name, list(known))
    return known[name]


def _check(kind: str, name: str, known: list[str]) -> None:
    if name not in known:
        close = difflib.get_close_matches(name, known, n=3, cutoff=0.4)
        hint = f"did you mean {' or '.join(close)}?" if close else "there is no similar one."
        raise UserError(f"unknown {kind} {name!r}: {hint} Known: {', '.join(known)}.")
