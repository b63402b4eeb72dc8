"""Run a function on several gloo processes, from a test."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.multiprocessing as mp


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def run_on(processes: int, function: Callable[..., Any], folder: Path, *args: Any) -> list[Any]:
    """`function(*args)` on each of `processes` ranks; what each returns, in rank order."""
    mp.spawn(_child, (processes, free_port(), function, folder, args), nprocs=processes)
    return [
        torch.load(folder / f"result-{rank}.pt", weights_only=True) for rank in range(processes)
    ]


def _child(
    rank: int, world: int, port: int, function: Callable[..., Any], folder: Path, args: tuple
) -> None:
    os.environ.update(
        RANK=str(rank), WORLD_SIZE=str(world), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port)
    )
    torch.set_num_threads(1)
    from harness import dist

    dist.init()
    torch.save(function(*args), folder / f"result-{rank}.pt")
    dist.barrier()
    dist.shutdown()
