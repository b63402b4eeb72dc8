"""Whether SLURM could run what is asked for, found out before anything is submitted."""

from __future__ import annotations

import difflib
import re
import shutil
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from harness.errors import UserError

ANSWER_SECONDS = 15  # sinfo itself tries for ten seconds to reach a controller that is down
_WAY_OUT = "change clusters.toml or give --set."
_NAMES = ("partition", "account", "qos", "constraint", "exclude")
_LIMIT = re.compile(r"(?:(?P<d>\d+)-)?(?:(?P<h>\d+):)?(?P<m>\d+):(?P<s>\d+)")
_GPU = re.compile(r"gpu:(?:(?P<kind>[^:,(]+):)?(?P<count>\d+)")


@dataclass(frozen=True, kw_only=True)
class Nodes:
    """Nodes of one partition that are alike."""

    partition: str
    default: bool  # whether jobs that name no partition go there
    open: bool  # whether it takes jobs; one that is down does, and runs them later
    minutes: float | None  # longest time limit; None: no limit
    count: int
    cpus: int  # per node, as are memory and GPUs
    memory_mb: int
    gpus: int
    gpu: str  # kind, as the cluster calls it; "" where it doesn't


def installed() -> bool:
    """Whether there is an sbatch; there may still be no cluster behind it."""
    return shutil.which("sbatch") is not None


def silence() -> str:
    """Why no controller answers; "" if one does."""
    done = _run("sinfo", "-h", "-o", "%R")
    return _last_line(done.stderr) or "no reason given" if done.returncode else ""


def partitions() -> list[Nodes]:
    """Every partition's nodes, from one sinfo.

    Raises:
        UserError: No controller answers.
    """
    done = _run("sinfo", "-a", "-h", "-e", "-o", "%P|%a|%l|%D|%c|%m|%G")
    if done.returncode:
        raise UserError(
            f"no SLURM controller answers ({_last_line(done.stderr)}); try again when it is up."
        )
    return [_nodes(line) for line in done.stdout.splitlines()]


def check(where: str, values: Mapping[str, Any], found: Sequence[Nodes]) -> None:
    """Refuse what no node of the partition could ever run, before anything is submitted.

    Args:
        where: What the settings are for, for the message.
        values: Settings by the names of clusters.toml.
        found: What `partitions` found.

    Raises:
        UserError: One sentence that names the value, the partition's bound and the key to change.
    """
    names = _names(values.get("partition", ""))
    known = list(dict.fromkeys(n.partition for n in found))
    for name in names:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
            hint = f"did you mean {close[0]}? " if close else ""
            raise UserError(
                f"{where}: no partition {name!r}: {hint}choose from {', '.join(known)}."
            )
    here = _of(found, names)
    if here:
        called = " or ".join(dict.fromkeys(n.partition for n in here))
        _check_size(f"{where}: partition {called}", values, here)
    done = _run("sbatch", "--test-only", *_flags(values), "--wrap", "true")
    if done.returncode:
        # "allocation failure: Invalid qos specification"
        reason = _last_line(done.stderr).rpartition(": ")[2]
        asked = ", ".join(f"{key} = {values[key]!r}" for key in _NAMES if values.get(key))
        raise UserError(f"{where}: SLURM refuses: {reason} ({asked or 'the defaults'}); {_WAY_OUT}")


def _names(partition: str) -> list[str]:
    """The partitions asked for: of several, between commas, sbatch uses the first with room."""
    return [name.strip() for name in partition.split(",") if name.strip()]


def _of(found: Iterable[Nodes], names: Sequence[str]) -> list[Nodes]:
    """The nodes of these partitions, or of the default one."""
    return [n for n in found if (n.partition in names if names else n.default)]


def _check_size(where: str, values: Mapping[str, Any], here: Sequence[Nodes]) -> None:
    """Compare each bound with the best node that meets those before it."""
    if not any(n.open for n in here):
        raise UserError(f"{where} takes no jobs at present; {_WAY_OUT}")
    limits = [n.minutes for n in here]
    minutes = values.get("timeout_min", 0)
    if None not in limits and minutes > (most := max(m for m in limits if m is not None)):
        raise UserError(
            f"{where} ends jobs after {most:.0f} min: timeout_min = {minutes}; {_WAY_OUT}"
        )
    gpus = values.get("gpus_per_node", 0)
    bounds = [
        ("gpus_per_node", gpus, lambda n: n.gpus, "GPUs per node"),
        ("cpus_per_task", values.get("cpus_per_task", 1) * max(1, gpus), lambda n: n.cpus, "cores"),
        ("mem_gb", values.get("mem_gb", 0) * 1024, lambda n: n.memory_mb, "MB of memory per node"),
    ]
    for key, wanted, bound, unit in bounds:
        fitting = [n for n in here if bound(n) >= wanted]
        if not fitting:
            most = max(bound(n) for n in here)
            processes = f" for {gpus} processes" if key == "cpus_per_task" and gpus > 1 else ""
            raise UserError(
                f"{where} has at most {most} {unit}: {key} = {values[key]}{processes}; {_WAY_OUT}"
            )
        here = fitting
    nodes, most = values.get("nodes", 1), sum(n.count for n in here)
    if nodes > most:
        raise UserError(f"{where} has {most} nodes of that size: nodes = {nodes}; {_WAY_OUT}")


def _flags(values: Mapping[str, Any]) -> list[str]:
    """The options that submitit writes into its script."""
    flags = [f"--{key}={values[key]}" for key in _NAMES if values.get(key)]
    flags += [f"--nodes={values.get('nodes', 1)}"]
    flags += [f"--ntasks-per-node={max(1, values.get('gpus_per_node', 1))}"]
    named = {"gpus_per_node": "gpus-per-node", "cpus_per_task": "cpus-per-task"}
    flags += [f"--{flag}={values[key]}" for key, flag in named.items() if values.get(key)]
    flags += [f"--mem={values['mem_gb']}G"] if values.get("mem_gb") else []
    flags += [f"--time={values['timeout_min']}"] if values.get("timeout_min") else []
    return flags


def _nodes(line: str) -> Nodes:
    name, state, limit, count, cpus, memory, gres = line.split("|", 6)
    gpus = [(m["kind"] or "", int(m["count"])) for m in _GPU.finditer(gres)]
    return Nodes(
        partition=name.rstrip("*"),
        default=name.endswith("*"),
        open=state in ("up", "down"),
        minutes=_minutes(limit),
        count=int(count),
        cpus=int(cpus.rstrip("+")),
        memory_mb=int(memory.rstrip("+")),
        gpus=sum(n for _, n in gpus),
        gpu=gpus[0][0] if gpus else "",
    )


def _minutes(limit: str) -> float | None:
    """A time limit like 1-12:00:00 or 30:00 in minutes; None for "infinite"."""
    found = _LIMIT.fullmatch(limit)
    if found is None:
        return None
    days, hours, minutes, seconds = (int(found[part] or 0) for part in "dhms")
    return days * 1440 + hours * 60 + minutes + seconds / 60


def _last_line(text: str) -> str:
    return text.strip().rpartition("\n")[2]


def _run(*command: str) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=ANSWER_SECONDS
        )
    except FileNotFoundError:
        return subprocess.CompletedProcess(command, 127, "", f"{command[0]} isn't on the PATH")
    except subprocess.TimeoutExpired:
        silence = f"{command[0]}: no answer within {ANSWER_SECONDS} s"
        return subprocess.CompletedProcess(command, 124, "", silence)


def cluster_gpus(found: Iterable[Nodes], partition: str) -> tuple[int, str]:
    """GPUs of a partition, and their kind where all are of one; (0, "") if it isn't known.

    Of several partitions, which may share their nodes, the largest.
    """
    here = _of(found, _names(partition))
    totals: dict[str, int] = {}
    for nodes in here:
        totals[nodes.partition] = totals.get(nodes.partition, 0) + nodes.count * nodes.gpus
    kinds = {n.gpu for n in here if n.gpus}
    return max(totals.values(), default=0), kinds.pop() if len(kinds) == 1 else ""
