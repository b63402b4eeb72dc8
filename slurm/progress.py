"""What the user sees while jobs run: a live display on a terminal, one line per event elsewhere."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from rich.console import Console
from rich.live import Live
from rich.table import Table as Grid

from slurm.cost import duration

_TAIL_BYTES = 4096  # a line of log.jsonl is a few hundred


def last_line(path: Path) -> str:
    """The last whole line of a file that another process appends to; "" if there is none."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - _TAIL_BYTES))
            lines = file.read().split(b"\n")[:-1]
    except OSError:
        return ""
    return next((line.decode(errors="replace") for line in reversed(lines) if line.strip()), "")


def training_state(log: Path) -> tuple[float, float] | None:
    """Share done in [0, 1] and seconds left by a log.jsonl; None before its first line."""
    try:
        state = json.loads(last_line(log))
        return state["step"] / max(1, state["steps"]), float(state["seconds_left"])
    except (json.JSONDecodeError, KeyError, TypeError):
        return None


def describe_training(runs: Path, key: str) -> str:
    """How far a pretraining is: "37%, 2 min left", or "starting"."""
    state = training_state(runs / key / "log.jsonl")
    return f"{state[0]:.0%}, {duration(state[1])} left" if state else "starting"


def describe_evaluation(runs: Path, pretraining: str, key: str) -> str:
    """How far the training inside an evaluation is: " 37%, 2 min left", or "" if it has no log.

    An evaluation that trains several times (trials of a learning rate) has a log for each; the
    newest tells where it is.
    """
    logs = (runs / pretraining / "evaluations" / key).rglob("log.jsonl")
    newest = max(logs, key=_changed, default=None)
    state = training_state(newest) if newest else None
    return f" {state[0]:.0%}, {duration(state[1])} left" if state else ""


def _changed(path: Path) -> float:
    """When a file was last written to; 0 for one that has just been removed."""
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


class Progress:
    """Counts and shows jobs; a context manager, because a live display must be ended."""

    def __init__(self, total: int, names: Mapping[str, str], runs: Path) -> None:
        self.total = total
        self.names = names  # key → what to call the job
        self.runs = runs
        self.done = 0
        self.failed = 0
        self.running: dict[str, float] = {}  # key → when it started
        self.console = Console(stderr=True)
        self.live = Live(console=self.console, transient=True, refresh_per_second=2)
        self._begun = time.monotonic()

    def __enter__(self) -> Progress:
        if self.console.is_terminal:
            self.live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.live.stop()

    def started(self, key: str) -> None:
        """A job runs now."""
        self.running[key] = time.monotonic()
        self._event(f"started   {self.names[key]}")

    def finished(self, key: str) -> None:
        """A job has done its work."""
        self.done += 1
        self._event(f"finished  {self.names[key]}{self._took(key)}")

    def failed_with(self, key: str, reason: str) -> None:
        """A job ended without a result."""
        self.done += 1
        self.failed += 1
        self._event(f"FAILED    {self.names[key]}{self._took(key)}: {reason}")

    def tick(self) -> None:
        """Draw the display anew; nothing where there is no terminal."""
        if self.console.is_terminal:
            self.live.update(self._grid())

    def _took(self, key: str) -> str:
        start = self.running.pop(key, None)
        return "" if start is None else f" ({duration(time.monotonic() - start)})"

    def _event(self, text: str) -> None:
        line = f"[{self.done}/{self.total}] {text}"
        if self.console.is_terminal:
            self.console.print(line, markup=False, highlight=False, soft_wrap=True)
        else:
            print(line, file=sys.stderr, flush=True)

    def _grid(self) -> Grid:
        queued = self.total - self.done - len(self.running)
        grid = Grid.grid(padding=(0, 2))
        grid.add_row(
            f"{self.done} of {self.total} jobs done, {len(self.running)} running, {queued} queued"
            + (f", {self.failed} failed" if self.failed else ""),
            duration(time.monotonic() - self._begun),
        )
        for key in self.running:
            is_training = self.names[key].startswith("pretrain")
            state = describe_training(self.runs, key) if is_training else "evaluating"
            grid.add_row(f"  {self.names[key]}", state)
        return grid
