"""Reproduce the papers' tables: `python reproduce.py table1`."""

from __future__ import annotations

import sys

import tyro

from harness.errors import UserError
from slurm.arguments import Arguments


def main(argv: list[str] | None = None) -> int:
    """The command line; returns the exit status: 0, 1 if a job failed, 2 for a wrong request."""
    args = tyro.cli(
        Arguments,
        args=argv,
        description=Arguments.__doc__,
        config=(tyro.conf.FlagCreatePairsOff,),
    )
    from slurm.command import run  # after the parsing: --help answers at once

    try:
        return run(args)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; the same command goes on from here", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
