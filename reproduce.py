"""Reproduce the papers' tables and figures: `python reproduce.py table1`, `… svib/fig4`."""

from __future__ import annotations

import inspect
import sys
from typing import TypeVar

import tyro

from harness.errors import UserError
from slurm.arguments import Arguments

T = TypeVar("T")


def main(argv: list[str] | None = None) -> int:
    """The command line; returns the exit status: 0, 1 if a job failed, 2 for a wrong request."""
    argv = sys.argv[1:] if argv is None else argv
    action = ACTIONS.get(argv[0] if argv else "")
    try:
        if _is_figure(argv):
            return _figure(argv)
        return action(argv[1:]) if action else _tables(argv)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; the same command goes on from here", file=sys.stderr)
        return 130


def _parsed(kind: type[T], argv: list[str], name: str = "", more: str = "") -> T:
    return tyro.cli(
        kind,
        args=argv,
        prog=f"reproduce.py {name}".rstrip(),
        description="\n\n".join(filter(None, (inspect.getdoc(kind), more))),
        config=(tyro.conf.FlagCreatePairsOff,),
    )


# Imports come after the parsing: --help answers at once.


def _tables(argv: list[str]) -> int:
    from figures.names import FIGURES, listing

    more = f"Figures, each with its own --help, too:\n\n{listing()}"
    args = _parsed(Arguments, argv, more=more)
    from results.catalog import find_tables
    from slurm.command import run

    for name in args.tables:
        if name in FIGURES:
            raise UserError(f"{name} is a figure, drawn alone: python reproduce.py {name} …")
    find_tables(args.tables, others=(*FIGURES, *ACTIONS))
    return run(args)


def _is_figure(argv: list[str]) -> bool:
    if not argv or argv[0].startswith("-"):
        return False
    from figures.names import FIGURES

    return argv[0] in FIGURES


def _figure(argv: list[str]) -> int:
    from figures import catalog

    catalog.run(argv[0], argv[1:])
    return 0


def _figures(argv: list[str]) -> int:
    from figures import catalog
    from figures.names import listing

    return catalog.run_all(_parsed(catalog.Arguments, argv, "figures", listing()))


def _doctor(argv: list[str]) -> int:
    from slurm.arguments import Doctor

    args = _parsed(Doctor, argv, "doctor")
    from slurm.doctor import run

    return run(args)


def _explain(argv: list[str]) -> int:
    from results import explain

    args = _parsed(explain.Arguments, argv, "explain")
    print(explain.explain(args.first, args.second))
    return 0


def _report(argv: list[str]) -> int:
    from slurm.arguments import Report

    args = _parsed(Report, argv, "report")
    from slurm.report import run

    return run(args)


def _clean(argv: list[str]) -> int:
    from slurm.arguments import Clean

    _parsed(Clean, argv, "clean")
    from harness import featurecache

    freed = featurecache.clean()
    print(f"{freed / 1e9:.2f} GB freed in {featurecache.folder()}")
    return 0


ACTIONS = {
    "doctor": _doctor,
    "explain": _explain,
    "figures": _figures,
    "report": _report,
    "clean": _clean,
}


if __name__ == "__main__":
    sys.exit(main())
