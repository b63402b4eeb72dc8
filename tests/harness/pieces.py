"""Pieces of work for the tests of `harness.tasks`; a worker that does them needs no torch."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import numpy as np


def power(log: Path | None, task: tuple[int, float]) -> np.ndarray:
    base, exponent = task
    if log is not None:
        with log.open("a") as file:
            file.write(f"{base} ")
    return np.array([base**exponent, -1.0])


def fail_at(stop: int, log: Path, task: tuple[int, float]) -> np.ndarray:
    if task[0] == stop:
        raise KeyboardInterrupt
    return power(log, task)


def die(task: tuple[int]) -> np.ndarray:
    os.kill(os.getpid(), signal.SIGKILL)
    return np.zeros(task)


def imported_torch(task: tuple[int]) -> np.ndarray:
    return np.array(["torch" in sys.modules])


def nap(folder: Path, task: tuple[int]) -> np.ndarray:
    (folder / f"{os.getpid()}.pid").touch()
    time.sleep(600)
    return np.zeros(task)
