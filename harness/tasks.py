"""Independent pieces of work on CPU cores, spread over processes and kept on disk."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

from harness import dist
from harness.errors import UserError
from harness.features import gather_numbers
from harness.files import load_array, save_array
from harness.loader import loader_workers
from harness.progress import track

Task = TypeVar("Task", bound=tuple)


def solve_all(
    solve: Callable[[Task], np.ndarray],
    tasks: Sequence[Task],
    shape: tuple[int, ...],
    *,
    folder: Path,
    label: str,
) -> np.ndarray:
    """Results of all tasks on every process, each solved once and never again.

    A process takes every W-th task and solves as many at a time as its share of the cores allows,
    in workers that don't share memory but map large arrays. Each result is a file of `folder`.

    Args:
        solve: A pure function, importable from a worker (`functools.partial` is fine).
        tasks: What to solve, as tuples that name their files; the longest first is best.
        shape: Of a result.
        folder: Named after all that the results depend on besides the task.
        label: Of the progress bar.

    Returns:
        float64 (tasks, *shape).

    Raises:
        UserError: A worker was killed, as happens for want of memory.
    """
    mine = list(tasks)[dist.rank() :: dist.world()]
    results = np.empty((len(mine), *shape))
    missing = []
    for row, task in enumerate(mine):
        kept = load_array(_file(folder, task))
        if kept is None:
            missing.append((row, task))
        else:
            results[row] = kept
    done = len(mine) - len(missing)
    for row, result in track(_solved(solve, missing), label=label, total=len(mine), done=done):
        save_array(_file(folder, mine[row]), result)
        results[row] = result
    order = np.concatenate([np.arange(len(tasks))[r :: dist.world()] for r in range(dist.world())])
    return gather_numbers(torch.from_numpy(results)).numpy()[np.argsort(order)]


def _file(folder: Path, task: tuple) -> Path:
    return folder / f"{'-'.join(map(str, task))}.npy"


def _end_with_parent() -> Callable[[], None]:
    """What a worker does first: watch this process, and end when it was killed.

    A worker would wait for ever for the rest of a task that was being sent to it.
    """
    parent = os.getpid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1.0)
        os._exit(1)

    return lambda: threading.Thread(target=watch, daemon=True).start()


def _solved(
    solve: Callable[[Task], np.ndarray], tasks: list[tuple[int, Task]]
) -> Iterator[tuple[int, np.ndarray]]:
    """(row, result) of each task, as they come."""
    import joblib
    from joblib.externals.loky import get_reusable_executor

    # Local functions reach the workers without this module's torch.
    def numbered(row: int, task: Task) -> tuple[int, np.ndarray]:
        return row, solve(task)

    jobs = max(min(loader_workers(), len(tasks)), 1)
    try:
        # Threads would not do: liblinear draws from one generator per process.
        with joblib.parallel_config("loky", initializer=_end_with_parent()):
            run: Any = joblib.Parallel(n_jobs=jobs, return_as="generator_unordered")
            yield from run(joblib.delayed(numbered)(row, task) for row, task in tasks)
    except BrokenProcessPool as error:
        raise UserError(
            "a worker was killed, most likely for want of memory; start the same command again with"
            " fewer cores (taskset) or more memory, and it goes on from what is done."
        ) from error
    finally:
        if jobs > 1:  # idle workers would outlive this process by five minutes
            get_reusable_executor(max_workers=jobs).shutdown(kill_workers=True)
