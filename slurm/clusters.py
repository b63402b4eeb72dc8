"""clusters.toml, read and checked: which sbatch settings a kind of job gets."""

from __future__ import annotations

import difflib
import shutil
import tomllib
from pathlib import Path
from typing import Any, Literal

from harness.errors import UserError

PATH = Path(__file__).with_name("clusters.toml")
BUILT_IN = ("debug", "local")
KINDS = ("pretrain", "evaluate")

_NUMBERS = {"nodes", "gpus_per_node", "cpus_per_task", "mem_gb", "timeout_min"}
_SLURM_NUMBERS = {"signal_delay_s", "array_parallelism"}
_SLURM_TEXTS = {"partition", "account", "qos", "constraint", "exclude"}
_KEYS = _NUMBERS | _SLURM_NUMBERS | _SLURM_TEXTS | {"setup"}


def choose(name: str | None, path: Path = PATH) -> str:
    """The cluster to use: the one asked for, else slurm where there is an sbatch, else local.

    Raises:
        UserError: No cluster of that name; the closest ones are suggested.
    """
    if name is None:
        return "slurm" if shutil.which("sbatch") else "local"
    known = [*BUILT_IN, *_read(path)]
    if name not in known:
        raise UserError(f"unknown cluster {name!r}: {_choices(name, known)}")
    if name not in BUILT_IN and shutil.which("sbatch") is None:
        raise UserError(
            f"cluster {name!r} needs sbatch, which isn't on the PATH; run on a login node, "
            "or use --cluster local."
        )
    return name


def settings(
    cluster: str, kind: Literal["pretrain", "evaluate"], path: Path = PATH
) -> dict[str, Any]:
    """Parameters for submitit of a kind of job.

    Raises:
        UserError: A key is unknown or its value is of the wrong type.
    """
    section = _read(path)[cluster]
    merged = {k: v for k, v in section.items() if not isinstance(v, dict)}
    for name, value in section.items():
        if isinstance(value, dict) and name not in KINDS:
            raise UserError(f"{path.name}: unknown [{cluster}.{name}]: {_choices(name, KINDS)}")
    merged |= section.get(kind, {})
    for key, value in merged.items():
        _check(path.name, key, value)
    parameters = {
        k if k in _NUMBERS else f"slurm_{k}": v for k, v in merged.items() if v not in ("", [])
    }
    return {"tasks_per_node": max(1, merged.get("gpus_per_node", 1))} | parameters


def _check(file: str, key: str, value: Any) -> None:
    if key not in _KEYS:
        raise UserError(f"{file}: unknown key {key!r}: {_choices(key, sorted(_KEYS))}")
    if key in _NUMBERS | _SLURM_NUMBERS:
        if not isinstance(value, int) or isinstance(value, bool) or value < 0:
            raise UserError(f"{file}: {key} = {value!r} must be a whole number, zero or more.")
    elif key == "setup":
        if not isinstance(value, list) or not all(isinstance(line, str) for line in value):
            raise UserError(f"{file}: setup = {value!r} must be a list of shell lines.")
    elif not isinstance(value, str):
        raise UserError(f"{file}: {key} = {value!r} must be a text in quotes.")


def _read(path: Path) -> dict[str, dict[str, Any]]:
    try:
        values = tomllib.loads(path.read_text())
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"{path} is not valid TOML ({error}); correct that line.") from error
    for name, value in values.items():
        if not isinstance(value, dict):
            raise UserError(f"{path.name}: {name!r} stands outside any section; put it in [slurm].")
    return values


def _choices(name: str, known: list[str] | tuple[str, ...]) -> str:
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
    hint = f"did you mean {close[0]}? " if close else ""
    return f"{hint}choose from {', '.join(known)}."
