"""Drawing figures by name, for `python reproduce.py svib/fig4`, one of them or all."""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from figures.drawing import OUT, ROOT, Drawn, NotRunError, draw_files, show
from figures.names import FIGURES, Entry
from harness.errors import UserError
from harness.scale import Scale, default_scale, find_scale
from harness.snapshots import trunk_file


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Draw every figure for which there are runs; a line for each other says what to run first.

    The exit status is 1 if a figure whose runs are there can't be drawn.
    """

    scale: str | None = None
    """paper, cifar10, cifar10-mini or demo; by default paper where there is an ImageNet under
    DATA_ROOT, else demo."""
    runs: Path = ROOT / "runs"
    """Folder of checkpoints and logs."""
    records: Path = ROOT / "results" / "records"
    """Folder of the records."""
    out: Path = OUT
    """Folder of the figures."""


def run_all(args: Arguments) -> int:
    """Draw what can be drawn and print a line per figure; returns the exit status.

    Raises:
        UserError: An unknown scale.
    """
    scale = find_scale(args.scale or default_scale())
    failed = False
    for name, entry in FIGURES.items():
        try:
            _, paths = _draw(name, _options(entry, args, scale))
        except NotRunError as error:
            print(f"{name}: not drawn: {error}", flush=True)
        except UserError as error:
            failed = True
            print(f"{name}: failed: {error}", file=sys.stderr)
        else:
            print(f"{name}: {', '.join(map(str, paths))}", flush=True)
    return 1 if failed else 0


def _options(entry: Entry, args: Arguments, scale: Scale) -> list[str]:
    """Those of `args` that a figure takes."""
    takes = {field.name for field in dataclasses.fields(_kind(entry))}
    if entry.recipes:
        takes |= {"scale", "runs"}
    values = {"scale": scale.name, "runs": args.runs, "records": args.records, "out": args.out}
    return [text for k, v in values.items() if k in takes for text in (f"--{k}", str(v))]


def run(name: str, arguments: Sequence[str]) -> None:
    """Draw a figure of `FIGURES`, print its numbers and the paths of its files.

    Without --ckpt it is drawn of what its table's runs left at --scale.

    Raises:
        UserError: One of the runs that it shows is missing, or it can't be drawn.
    """
    show(*_draw(name, arguments))


def _draw(name: str, arguments: Sequence[str]) -> tuple[Drawn, tuple[Path, Path]]:
    entry = FIGURES[name]
    given = _with_checkpoints(entry, arguments) if entry.recipes else [*arguments]
    module = importlib.import_module(f"figures.{entry.module}")

    def make(args: Any) -> Drawn:
        drawn: Drawn = module.make(args)
        title = f"{entry.title}: {drawn.title}" if entry.title else drawn.title
        return drawn._replace(name=name.replace("/", "_"), title=title)

    more = _about(entry) if entry.recipes else ""
    prog = f"reproduce.py {name}"
    return draw_files(_kind(entry), make, [*given, *entry.fixed], prog=prog, more=more)


def _kind(entry: Entry) -> Any:
    return getattr(importlib.import_module(f"figures.{entry.module}"), entry.arguments)


def _with_checkpoints(entry: Entry, arguments: Sequence[str]) -> list[str]:
    """A figure's arguments, with those of its runs where no --ckpt is given."""
    own = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    own.add_argument("--scale")
    own.add_argument("--runs", type=Path, default=ROOT / "runs")
    known, given = own.parse_known_args(arguments)
    named = {argument.partition("=")[0] for argument in given}
    if {"--ckpt", "--help", "-h"} & named:
        return given
    scale = find_scale(known.scale or default_scale())
    paths = checkpoints(entry, scale, known.runs)
    given += [part for path in paths for part in ("--ckpt", str(path))]
    return given


def _about(entry: Entry) -> str:
    shown = " and ".join(entry.recipes)
    return (
        f"Without --ckpt: the longest finished run of {shown} in {entry.table} at --scale (paper,"
        " cifar10, cifar10-mini or demo; by default paper where there is an ImageNet under"
        " DATA_ROOT, else demo) in the folder --runs."
    )


def checkpoints(entry: Entry, scale: Scale, runs: Path) -> list[Path]:
    """The longest finished run of each recipe of a figure, in its table at a scale.

    Raises:
        NotRunError: A recipe has none.
    """
    from results.catalog import find_tables
    from results.resolve import resolve

    (table,) = find_tables((entry.table,))
    resolved = resolve(table, scale, seeds=None, fill=False, cache=runs / ".plans")
    found = []
    for recipe in entry.recipes:
        own = [p for p in resolved.pretrainings.values() if p.recipe == recipe]
        done = [p for p in own if (runs / p.key / trunk_file()).is_file()]
        if not done:
            raise NotRunError(
                f"no run of {recipe} at the {scale.name} scale is finished in {runs}; run python"
                f" reproduce.py {entry.table} --scale {scale.name} first, or give --ckpt"
            )
        longest = max(done, key=lambda p: p.epochs)
        found.append(runs / longest.key / trunk_file())
    return found
