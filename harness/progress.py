"""Progress bars on stderr, on the main process only."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from harness import dist

T = TypeVar("T")


def say(text: str) -> None:
    """One line on stderr, from the main process."""
    if dist.is_main():
        Console(stderr=True, highlight=False).print(text, markup=False, soft_wrap=True)


def track(items: Iterable[T], *, label: str, total: int, done: int = 0) -> Iterator[T]:
    """Yield `items` behind a bar that starts at `done` of `total`; silent off a terminal."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    silent = not (dist.is_main() and console.is_terminal)
    with Progress(*columns, TimeRemainingColumn(), console=console, disable=silent) as bar:
        task = bar.add_task(label, total=total, completed=done)
        for item in items:
            yield item
            bar.advance(task)
