"""Runs every benchmark, one after the other, and writes benchmarks/RESULTS.md.

`python benchmarks/everything.py [NAME …]`: of those named only; the others' results stay.
"""

from __future__ import annotations

import ast
import datetime
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from harness.environment import environment
from harness.errors import UserError

FOLDER = Path(__file__).parent
RESULTS = FOLDER / "RESULTS.md"
_HEADING = "# Measured speed\n"


def names() -> list[str]:
    """Benchmarks: the files here that take --quick."""
    return sorted(
        path.stem
        for path in FOLDER.glob("*.py")
        if "[--quick]" in (ast.get_docstring(ast.parse(path.read_text())) or "")
        and path != Path(__file__)
    )


def section(name: str, output: str, seconds: float, known: dict[str, Any]) -> str:
    """A benchmark's part of the page: what it claims, what it printed, and where.

    Args:
        name: Of the benchmark.
        output: What it printed.
        seconds: That it took.
        known: Its `environment`.
    """
    text = ast.get_docstring(ast.parse((FOLDER / f"{name}.py").read_text())) or ""
    claim = text.partition("`python")[0].strip()
    return f"## {name}\n\n{claim}\n\n{output.strip()}\n\n{_where(seconds, known)}\n"


def _where(seconds: float, known: dict[str, Any]) -> str:
    """What it ran on."""
    build = f"{(known['commit'] or 'unknown')[:7]}{' with changes' if known['dirty'] else ''}"
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    torch = known["versions"]["torch"]
    return (
        f"{known['cores']} cores, {known['hardware']}, torch {torch}; commit {build}, {today}; "
        f"{seconds:.0f} s in all."
    )


def sections(page: str) -> dict[str, str]:
    """The parts of a page by benchmark."""
    parts = re.split(r"^(?=## )", page, flags=re.MULTILINE)[1:]
    return {part.splitlines()[0][3:]: part.rstrip("\n") + "\n" for part in parts}


def main(chosen: list[str]) -> int:
    """Run, print and write; the exit status is 1 if a benchmark failed."""
    every, failed = names(), False
    for name in chosen:
        if name not in every:
            raise UserError(f"there is no benchmark {name!r}; choose from {', '.join(every)}")
    known = environment()  # before the page is written, which is a change to the commit's files
    page = sections(RESULTS.read_text()) if RESULTS.exists() else {}
    for name in chosen or every:
        started = time.monotonic()
        print(f"{name} …", file=sys.stderr, flush=True)
        done = subprocess.run(
            [sys.executable, FOLDER / f"{name}.py"], stdout=subprocess.PIPE, text=True
        )
        failed |= bool(done.returncode)
        if done.returncode == 0:
            print(done.stdout, flush=True)
            page[name] = section(name, done.stdout, time.monotonic() - started, known)
            ordered = [page[key] for key in every if key in page]
            RESULTS.write_text("\n".join([_HEADING, *ordered]))
    return int(failed)


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except UserError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
