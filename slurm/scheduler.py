"""Questions to SLURM: one squeue per look at all jobs, one sacct about those that are gone.

Every call is counted, since a scheduler that thousands of users share must not be polled.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass

calls: Counter[str] = Counter()  # how often this process has called each command


@dataclass(frozen=True, kw_only=True)
class Queued:
    """A job that the cluster still has."""

    state: str  # PENDING, RUNNING, …
    reason: str  # why it waits


@dataclass(frozen=True, kw_only=True)
class Ended:
    """What accounting knows of a job."""

    state: str  # COMPLETED, FAILED, "CANCELLED by 1000", …
    exit_code: str  # status:signal


def installed() -> bool:
    """Whether SLURM's commands are on the PATH."""
    return shutil.which("squeue") is not None


def queue() -> dict[str, Queued] | None:
    """This user's jobs by id, array elements one by one; None while SLURM doesn't answer."""
    out = _ask("squeue", "-h", "-r", "-o", "%i|%T|%r", "-u", str(os.getuid()))
    if out is None:
        return None
    found = {}
    for line in out.splitlines():
        job, state, reason = line.split("|", maxsplit=2)
        found[job] = Queued(state=state, reason=reason)
    return found


def ended(ids: Collection[str]) -> dict[str, Ended]:
    """What accounting has on these jobs; without those that it doesn't know, or not yet."""
    arrays = sorted({job.partition("_")[0] for job in ids})
    if not arrays:
        return {}
    columns = "JobID,State,ExitCode"
    out = _ask("sacct", "-X", "-n", "-P", "-D", "-o", columns, "-j", ",".join(arrays))
    found = {}
    for line in (out or "").splitlines():  # of a requeued job the last attempt comes last
        name, state, exit_code = line.split("|")
        for job in _elements(name):
            if job in ids:
                found[job] = Ended(state=state, exit_code=exit_code)
    return found


def cancel(ids: Collection[str]) -> None:
    """Take jobs from the queue."""
    if ids:
        _ask("scancel", *sorted(ids))


def _ask(*command: str) -> str | None:
    if shutil.which(command[0]) is None:
        return None
    calls[command[0]] += 1
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    return answer.stdout if answer.returncode == 0 else None


def _elements(name: str) -> Iterator[str]:
    """Job ids behind sacct's name of several array elements, e.g. `7_[0-2,5%4]`."""
    job, _, elements = name.partition("_[")
    if not elements:
        yield name
        return
    for part in re.sub(r"%.*|\]", "", elements).split(","):
        first, _, last = part.partition("-")
        for element in range(int(first), int(last or first) + 1):
            yield f"{job}_{element}"
