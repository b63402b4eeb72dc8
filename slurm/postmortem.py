"""Why a cluster's job ended without its result, and whether to try again."""

from __future__ import annotations

import pwd
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from slurm.ledger import JOBS
from slurm.local import last_words
from slurm.scheduler import Ended

_TAIL_BYTES = 16_384
_FULL_BYTES = 1 << 20  # a disk with less room than this is full

_MEMORY = re.compile(r"exceeded (job )?memory limit|oom[-_ ]kill|out of memory|OutOfMemory", re.I)
_DISK = re.compile(r"No space left on device|Disk quota exceeded", re.I)
# What a rank says when another one has gone: true, but not the cause.
_ECHO = re.compile(r"Connection (closed|reset)|Broken pipe|connectFullMesh|NCCL|Gloo|gloo", re.I)
# Accounts of how the end was carried out, and submitit's of what it did before.
_NOISE = re.compile(r"^srun: |^slurmstepd.*CANCELLED AT|^submitit (INFO|WARNING)")
_PREFIX = re.compile(r"^(\[rank\d+\]: )?(harness\.\w+\.\w*Error: )?")

_LOST = {  # the job is not to blame
    "NODE_FAIL": "its node failed",
    "BOOT_FAIL": "its node didn't boot",
    "PREEMPTED": "it was preempted and not queued again",
    "REQUEUED": "it was queued again and then lost",
    "TIMEOUT": "it reached its time limit before it could save (raise timeout_min or "
    "signal_delay_s in slurm/clusters.toml)",
}


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What to do about a job that the cluster no longer has."""

    action: Literal["wait", "retry", "again", "fail"]  # again: it never started, for no fault
    reason: str


def examine(job: str, ended: Ended | None, runs: Path) -> Verdict:
    """Judge a job that has no output and has left the queue.

    Args:
        job: Its id.
        ended: What accounting says; None if nothing.
        runs: Folder of all runs, where the logs are.

    Returns:
        `wait` if the job's end isn't known yet: files and accounting come late.
    """
    logs = rank_logs(runs, job)
    state = ended.state.split()[0] if ended else "UNKNOWN"
    by = ended.state.partition(" by ")[2] if ended else ""
    if state == "CANCELLED" and not by and not logs:  # by SLURM, before it started
        return Verdict(action="again", reason=f"job {job} lost the job that it depended on")
    text = "\n".join(_tail(log) for log in logs)
    final = _fault(job, state, text, runs)
    if final:
        return Verdict(action="fail", reason=f"{final} ({_where(logs)})")
    if state == "CANCELLED":
        return Verdict(action="fail", reason=f"job {job} was cancelled by {_user(by)}")
    if state in _LOST:
        return Verdict(action="retry", reason=f"job {job}: {_LOST[state]}")
    if any(log.with_name(log.name.replace("_log.err", "_result.pkl")).exists() for log in logs):
        return Verdict(action="fail", reason=f"{_cause(logs)} ({_where(logs)})")
    if state in ("FAILED", "DEADLINE"):
        reason = f"job {job} was killed from outside; {_cause(logs)} ({_where(logs)})"
        return Verdict(action="retry", reason=reason)
    return Verdict(action="wait", reason=f"job {job} ended without a result ({_where(logs)})")


def rank_logs(runs: Path, job: str) -> list[Path]:
    """The stderr of each rank of a job, in rank order."""
    found = (runs / JOBS).glob(f"*/{job}_*_log.err")
    ranks = {path: path.name[len(job) + 1 :].split("_")[0] for path in found}
    numbered = [(int(rank), path) for path, rank in ranks.items() if rank.isdigit()]
    return [path for _, path in sorted(numbered)]


def _fault(job: str, state: str, text: str, runs: Path) -> str | None:
    """A cause that would meet the job again."""
    if state == "OUT_OF_MEMORY" or _MEMORY.search(text):
        return f"job {job} ran out of memory; raise mem_gb in slurm/clusters.toml"
    if _DISK.search(text) or shutil.disk_usage(runs).free < _FULL_BYTES:
        return f"no space is left in {runs}; free some, then start the same command again"
    return None


def _cause(logs: list[Path]) -> str:
    """The last words of the rank that is to blame."""
    words = [text for log in logs if (text := _last_words(log))]
    if not words:  # all were ended before they could say anything
        return last_words(logs[0]) if logs else "there is no log"
    return next((text for text in words if not _ECHO.search(text)), words[0])


def _last_words(log: Path) -> str | None:
    """The last line that is about the job itself, else what srun has to say."""
    lines = [line.strip() for line in _tail(log).splitlines() if line.strip()]
    kept = [line for line in lines if not _NOISE.search(line)]
    kept = kept or [line for line in lines if line.startswith("srun: error")]
    return _PREFIX.sub("", kept[-1]) if kept else None


def _user(number: str) -> str:
    try:
        return pwd.getpwuid(int(number)).pw_name
    except (KeyError, ValueError):
        return f"user {number}" if number else "SLURM"


def _where(logs: list[Path]) -> str:
    return f"log: {logs[0]}" if logs else "no log"


def _tail(log: Path) -> str:
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - _TAIL_BYTES))
            return file.read().decode(errors="replace")
    except OSError:
        return ""
