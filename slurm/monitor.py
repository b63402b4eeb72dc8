"""--status, --watch and --cancel: what the jobs of some tables are doing, and ending them."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path

from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.table import Table as Grid
from tabulate import tabulate

from harness.errors import UserError
from slurm import scheduler
from slurm.state import ACTIVE, Kind, Line, State, submitted, summary

WATCH_SECONDS = 10.0  # one squeue each
_SHOWN: tuple[Kind, ...] = ("running", "failed", "queued", "stale", "missing")

Look = Callable[[], Mapping[str, Sequence[Line]]]  # table's name → its cells, as they are now


def show(tables: Mapping[str, Sequence[Line]], scale: str) -> None:
    """Print a line per cell and seed."""
    for name, lines in tables.items():
        print(f"{name} at scale {scale}: {summary(lines)}")
        cells = [line.cells for line in lines]
        print(tabulate(cells, ["Row", "Column", "Seed", "State"], disable_numparse=True), "\n")


def watch(look: Look) -> None:
    """Follow the cells until none is queued or running; an interrupt ends only the watching.

    On a terminal one display that is drawn anew, elsewhere a line for every change.
    """
    console = Console()
    try:
        if console.is_terminal:
            _draw(look, console)
        else:
            _print_changes(look)
    except KeyboardInterrupt:
        print("no longer watching; the jobs go on", file=sys.stderr)


def _draw(look: Look, console: Console) -> None:
    with Live(console=console, auto_refresh=False) as live:
        for tables in _until_idle(look):
            live.update(_grid(tables), refresh=True)


def _print_changes(look: Look) -> None:
    known: dict[tuple[str, ...], State] = {}
    for tables in _until_idle(look):
        changed = False
        for name, lines in tables.items():
            for line in lines:
                place = (name, line.row, line.column, line.seed)
                if line.state.kind == "not run" or known.get(place) == line.state:
                    continue
                known[place] = line.state
                changed = True
                seed = f", seed {line.seed}"
                print(f"{name}: {line.row} | {line.column}{seed}: {line.state.text}", flush=True)
        if changed:
            print(summary(line for lines in tables.values() for line in lines), flush=True)


def _until_idle(look: Look) -> Iterator[Mapping[str, Sequence[Line]]]:
    while True:
        tables = look()
        yield tables
        if not any(line.state.kind in ACTIVE for lines in tables.values() for line in lines):
            return
        time.sleep(WATCH_SECONDS)


def _grid(tables: Mapping[str, Sequence[Line]]) -> Grid:
    """What goes on first; cells with a record, and those that are never run, are only counted."""
    grid = Grid.grid(padding=(0, 2))
    grid.add_column(no_wrap=True, ratio=1)
    grid.add_column(no_wrap=True, ratio=1)
    for name, lines in tables.items():
        grid.add_row(name, summary(lines))
    for kind in _SHOWN:
        for name, lines in tables.items():
            for line in lines:
                if line.state.kind == kind:
                    place = f"  {name}: {line.row} | {line.column}, seed {line.seed}"
                    grid.add_row(escape(place), escape(line.state.text))
    return grid


def cancel(runs: Path, keys: Collection[str]) -> str:
    """End SLURM's jobs of these keys by one scancel; records, checkpoints and other jobs stay.

    Args:
        runs: Folder of the runs, whose dispatchers noted what they submitted.
        keys: Of pretrainings and evaluations.

    Returns:
        What was done, for people.

    Raises:
        UserError: SLURM doesn't answer.
    """
    jobs = {key: ids for key, ids in submitted(runs).items() if key in keys}
    noted = {job for ids in jobs.values() for job in ids if job}
    queue = scheduler.queue() if noted else {}
    if queue is None:
        raise UserError("SLURM doesn't answer, so nothing was cancelled; try again when it is up.")
    found = sorted(noted & queue.keys())
    scheduler.cancel(found)
    lines = [f"{len(found)} jobs cancelled; records and checkpoints stay."]
    local = sorted(key for key, ids in jobs.items() if "" in ids)
    if local:
        lines.append(
            f"{len(local)} jobs of a reproduce.py on this machine are left alone (stop it with "
            f"Ctrl-C): {', '.join(local)}."
        )
    return "\n".join(lines)
