"""Where the processes of an srun step meet: a port that nothing else holds, found by all."""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import threading
import time
from datetime import timedelta

import torch.distributed as torch_dist

from harness.errors import UserError

TIMEOUT = "DIST_TIMEOUT_S"  # seconds that a process waits for the others before it gives up
_TIMEOUT_SECONDS = 1800.0
_PORTS = 5  # to try, one after the other, when something else listens on the job's port
_ANSWER_SECONDS = 3.0  # that each is given
_PAUSE_SECONDS = 0.2


class HungRankError(UserError):
    """A process didn't come to where the others waited for it."""


def _first_host(nodes: str) -> str:
    """First host of a SLURM node list, e.g. `n1` of `n[1-3,7],m2`."""
    head, bracket, rest = nodes.partition("[")
    if not bracket or "," in head:
        return head.split(",")[0]
    return head + rest.split("]")[0].split(",")[0].split("-")[0]


def timeout() -> timedelta:
    """How long a process waits for the others: $DIST_TIMEOUT_S, by default half an hour.

    Raises:
        UserError: The value isn't a positive number.
    """
    text = os.environ.get(TIMEOUT, str(_TIMEOUT_SECONDS))
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not seconds > 0:
        raise UserError(f"{TIMEOUT}={text} must be a number of seconds above 0")
    return timedelta(seconds=seconds)


def job_store(rank: int, world: int) -> torch_dist.Store:
    """The store of the processes of an srun step.

    The first process opens it on any free port, and tells that number to whoever asks on a port
    that follows from the job's id. Where that one is taken it goes on to the next; the others ask
    on all of them in turn until one answers with their job's name. (A store's own handshake has no
    timeout: something else that listens there and stays silent would hold it for ever.)

    Raises:
        UserError: All the job's ports are taken.
        HungRankError: The first process never came.
    """
    host = _first_host(os.environ["SLURM_STEP_NODELIST"])
    ports = ports_of(int(os.environ["SLURM_JOB_ID"]))
    names = ("SLURM_JOB_ID", "SLURM_STEP_ID", "SLURM_RESTART_COUNT")
    token = "-".join(os.environ.get(name, "0") for name in names)
    if rank == 0:
        store = torch_dist.TCPStore(
            host, 0, world, is_master=True, wait_for_workers=False, timeout=timeout()
        )
        _announce(ports, f"{token} {store.port}\n".encode())
        return store
    return torch_dist.TCPStore(
        host, _ask_for_port(host, ports, token), world, is_master=False, timeout=timeout()
    )


def ports_of(job: int) -> list[int]:
    """The ports that a job tries, in this order."""
    # Below the ephemeral range, so that no outgoing connection holds one by accident.
    return [15000 + (job + attempt * 1009) % 10000 for attempt in range(_PORTS)]


def _announce(ports: list[int], answer: bytes) -> None:
    """Tell everyone who connects, for as long as this process lives."""
    server = socket.socket()
    server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    for port in ports:
        try:
            server.bind(("", port))
            break
        except OSError as error:
            print(f"port {port} is taken ({error.strerror}); trying another", file=sys.stderr)
    else:
        raise UserError(
            f"the ports {ports}, where the processes of this job would meet, are all taken; start "
            "the same command again."
        )
    server.listen(1024)

    def serve() -> None:
        while True:
            with contextlib.suppress(OSError), server.accept()[0] as caller:
                caller.sendall(answer)

    threading.Thread(target=serve, name="rendezvous", daemon=True).start()


def _ask_for_port(host: str, ports: list[int], token: str) -> int:
    deadline = time.monotonic() + timeout().total_seconds()
    while time.monotonic() < deadline:
        for port in ports:
            words = _ask(host, port).split()
            if len(words) == 2 and words[0] == token:
                return int(words[1])
        time.sleep(_PAUSE_SECONDS)
    raise HungRankError(
        f"rank 0 did not answer on any of the ports {ports} of {host} within "
        f"{timeout().total_seconds():.0f} s; look at its own log"
    )


def _ask(host: str, port: int) -> str:
    try:
        with socket.create_connection((host, port), timeout=_ANSWER_SECONDS) as line:
            return line.recv(128).decode(errors="replace")
    except OSError:
        return ""
