"""clusters.toml, read, merged with the user's own and checked: which sbatch settings a job gets."""

from __future__ import annotations

import difflib
import os
import sys
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from harness.errors import UserError
from slurm import partitions

PATH = Path(__file__).with_name("clusters.toml")
VARIABLE = "SSL_CLUSTERS"  # names the user's own file
BUILT_IN = ("debug", "local")
KINDS = ("pretrain", "evaluate")

Kind = Literal["pretrain", "evaluate"]
Sections = Mapping[str, Mapping[str, Any]]

_NUMBERS = {"nodes", "gpus_per_node", "cpus_per_task", "mem_gb", "timeout_min"}
_AT_LEAST_ONE = _NUMBERS - {"gpus_per_node"} | {"array_parallelism"}
_SLURM_NUMBERS = {"signal_delay_s", "array_parallelism"}
_SLURM_TEXTS = {"partition", "account", "qos", "constraint", "exclude"}
_OURS = {"gpu"}  # not sbatch's
KEYS = tuple(sorted(_NUMBERS | _SLURM_NUMBERS | _SLURM_TEXTS | _OURS | {"setup"}))


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """A section of clusters.toml after all that is merged over it."""

    name: str
    section: Mapping[str, Any]

    def __str__(self) -> str:
        """Its name."""
        return self.name

    def values(self, kind: Kind, name: str = "") -> dict[str, Any]:
        """What holds for a kind of job, or for those of one recipe or protocol variant."""
        layers: list[Mapping[str, Any]] = [self.section, self.section.get(kind, {})]
        layers += [layers[1].get(part, {}) for part in (name.partition(":")[0], name) if part]
        merged: dict[str, Any] = {}
        for layer in layers:
            merged |= {k: v for k, v in layer.items() if not isinstance(v, Mapping)}
        return merged


def choose(name: str | None, sections: Sections | None = None, *, ask: bool = True) -> str:
    """The cluster to use: the one asked for, else slurm where a controller answers, else local.

    Args:
        name: What was asked for.
        sections: What `read_sections` found; by default it is called.
        ask: Whether SLURM has to answer; without, an sbatch is enough.

    Raises:
        UserError: No cluster of that name (the closest ones are suggested), or a cluster without
            sbatch or without a controller that answers.
    """
    if name is None:
        return _automatic(ask)
    known = [*BUILT_IN, *(read_sections() if sections is None else sections)]
    if name not in known:
        raise UserError(f"unknown cluster {name!r}: {_choices(name, known)}")
    if name not in BUILT_IN:
        if not partitions.installed():
            raise UserError(
                f"cluster {name!r} needs sbatch, which isn't on the PATH; run on a login node, "
                "or use --cluster local."
            )
        silence = partitions.silence() if ask else ""
        if silence:
            raise UserError(
                f"cluster {name!r}: no SLURM controller answers ({silence}); try again when it is "
                "up, or use --cluster local."
            )
    return name


def _automatic(ask: bool) -> str:
    if not partitions.installed():
        return "local"
    silence = partitions.silence() if ask else ""
    if silence:
        print(
            f"there is an sbatch, but no SLURM controller answers ({silence}): running on this "
            "machine",
            file=sys.stderr,
        )
    return "local" if silence else "slurm"


def settings(
    cluster: str | Cluster, kind: Kind, path: Path = PATH, *, name: str = ""
) -> dict[str, Any]:
    """Parameters for submitit of a kind of job.

    Args:
        cluster: One that `find` made, or the name of a section.
        kind: Pretraining or evaluation.
        path: The file that a name is looked up in.
        name: Recipe ("dino:VIT_SMALL") or protocol variant ("linear:imsvd") of the job.

    Raises:
        UserError: A key is unknown or its value is of the wrong type.
    """
    if isinstance(cluster, str):
        cluster = find(cluster, read_sections(path))
    merged = cluster.values(kind, name)
    parameters = {
        k if k in _NUMBERS else f"slurm_{k}": v
        for k, v in merged.items()
        if k not in _OURS and v not in ("", [])
    }
    return {"tasks_per_node": processes_per_node(merged)} | parameters


def processes_per_node(values: Mapping[str, Any]) -> int:
    """One per GPU; one where there is none."""
    return max(1, values.get("gpus_per_node", 1))


def find(name: str, sections: Sections) -> Cluster:
    """The cluster of that name, its whole section checked.

    Raises:
        UserError: A recipe or protocol that has its own settings doesn't exist.
    """
    section = sections[name]
    for kind in KINDS:
        for job, value in section.get(kind, {}).items():
            if isinstance(value, Mapping):
                _check_job(f"[{name}.{kind}.{job}]", kind, job)
    return Cluster(name=name, section=section)


def read_sections(
    path: Path = PATH, *, own: Path | None = None, changes: Sequence[str] = ()
) -> Sections:
    """Every cluster: the shipped file, the user's own over it, the command line's over both.

    Args:
        path: The shipped file.
        own: The user's file; by default the one that $SSL_CLUSTERS names, if any.
        changes: "slurm.partition=debug", "slurm.pretrain.timeout_min=60", ….

    Raises:
        UserError: A file isn't readable, a key is unknown or a value is of the wrong type.
    """
    sections = _read(path)
    if own is None and os.environ.get(VARIABLE) and path == PATH:
        own = Path(os.environ[VARIABLE])
    if own is not None:
        sections = _merged(sections, _read(own))
    for change in changes:
        sections = _changed(sections, change)
    return sections


def _changed(sections: dict[str, Any], change: str) -> dict[str, Any]:
    """The sections with one value of the command line."""
    name, equals, text = change.partition("=")
    *parents, key = (part.strip() for part in name.split("."))
    if not equals or not parents:
        raise UserError(f"--set {change}: write SECTION.KEY=VALUE, as in slurm.partition=debug.")
    if parents[0] not in sections:
        raise UserError(f"--set {change}: unknown section: {_choices(parents[0], list(sections))}")
    value: Any = _value(key, text.strip())
    added: dict[str, Any] = {key: value}
    for parent in reversed(parents):
        added = {parent: added}
    _check_sections(f"--set {change}", added)
    return _merged(sections, added)


def _value(key: str, text: str) -> Any:
    """A TOML value, or the text as it stands: bare words, and numbers where a text belongs."""
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text
    return text if key in _SLURM_TEXTS | _OURS and not isinstance(value, str) else value


def _merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(below)
    for key, value in above.items():
        old = merged.get(key)
        if isinstance(value, Mapping) and isinstance(old, Mapping):
            value = _merged(old, value)
        merged[key] = value
    return merged


def _read(path: Path) -> dict[str, Any]:
    try:
        values = tomllib.loads(path.read_text())
    except OSError as error:
        raise UserError(
            f"{path} cannot be read ({error.strerror}); give an existing file with --clusters "
            f"or {VARIABLE}."
        ) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not valid TOML ({error}); correct that line.") from error
    _check_sections(path.name, values)
    return values


def _check_sections(where: str, values: Mapping[str, Any]) -> None:
    for name, section in values.items():
        if not isinstance(section, Mapping):
            raise UserError(f"{where}: {name!r} stands outside any section; put it in [slurm].")
        if name in BUILT_IN:
            raise UserError(f"{where}: [{name}] runs without SLURM and takes no settings.")
        for label, key, value in _entries(where, name, section):
            _check(label, key, value)


def _entries(where: str, name: str, section: Mapping[str, Any]) -> Iterator[tuple[str, str, Any]]:
    """Every key with its value, of the section and of all below it."""
    for key, value in section.items():
        if not isinstance(value, Mapping):
            yield f"{where}: [{name}]", key, value
            continue
        if key not in KINDS:
            raise UserError(f"{where}: unknown [{name}.{key}]: {_choices(key, KINDS)}")
        for inner, job in value.items():
            if not isinstance(job, Mapping):
                yield f"{where}: [{name}.{key}]", inner, job
                continue
            for deepest, number in job.items():
                yield f"{where}: [{name}.{key}.{inner}]", deepest, number


def _check(where: str, key: str, value: Any) -> None:
    if key not in KEYS:
        raise UserError(f"{where}: unknown key {key!r}: {_choices(key, KEYS)}")
    if key in _NUMBERS | _SLURM_NUMBERS:
        least = 1 if key in _AT_LEAST_ONE else 0
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise UserError(f"{where} {key} = {value!r} must be a whole number, {least} or more.")
    elif key == "setup":
        if not isinstance(value, list) or not all(isinstance(line, str) for line in value):
            raise UserError(f"{where} setup = {value!r} must be a list of shell lines.")
    elif not isinstance(value, str):
        raise UserError(f"{where} {key} = {value!r} must be a text in quotes.")


def _check_job(where: str, kind: str, name: str) -> None:
    """A method, a recipe, a protocol or a variant must exist."""
    from harness import registry

    module, colon, _ = name.partition(":")
    what = "method" if kind == "pretrain" else "protocol"
    if colon:
        _ = registry.recipe(name) if kind == "pretrain" else registry.variant(name)
    elif module not in (known := registry.names(what)):
        raise UserError(f"clusters.toml: unknown {what} in {where}: {_choices(module, known)}")


def _choices(name: str, known: Iterable[str]) -> str:
    known = list(known)
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
    hint = f"did you mean {close[0]}? " if close else ""
    return f"{hint}choose from {', '.join(known)}."
