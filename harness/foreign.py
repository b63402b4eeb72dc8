"""Checkpoints released by others: detect, rename keys, load the whole trunk or refuse."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from harness import families, layouts
from harness.backbone import BACKBONES, Backbone, build_backbone
from harness.checkpoint import FORMAT, load_backbone
from harness.errors import UserError
from harness.layouts import Layout, State
from harness.recipe import BackboneSpec
from harness.unpickle import read

_SHOWN = 5  # names in a message


@dataclass(frozen=True, kw_only=True)
class CheckpointInfo:
    """What was found in a checkpoint's file."""

    path: str
    sha256: str  # of the file
    family: str  # whose release it looks like; "ours" for a backbone.pt of this harness
    arch: str
    matched: int  # tensors of the trunk that were loaded
    missing: tuple[str, ...] = ()  # counters of old batch norms, which nothing reads; if partial,
    # also tensors that stayed at their random initial values
    unexpected: tuple[str, ...] = ()  # names of the heads that were dropped
    partial: bool = False  # whether the trunk is not wholly from the file
    notes: tuple[str, ...] = ()  # what else the user should know, one sentence each
    training: dict[str, Any] = field(default_factory=dict)  # ours: what its trainer wrote down

    @property
    def identity(self) -> str:
        """What is evaluated: the file and how it is read, for fingerprints."""
        if self.family == "ours":
            return self.sha256
        return f"{self.sha256}:{self.arch}:{self.family}"

    def report(self) -> str:
        """What was loaded, for the user: one line, and one more per note."""
        dropped = f" (dropped heads: {', '.join(self.unexpected)})" if self.unexpected else ""
        first = (
            f"{self.path}: {self.arch}, family {self.family}; {self.matched} tensors matched, "
            f"{len(self.missing)} missing, {len(self.unexpected)} unexpected{dropped}"
        )
        return "\n  ".join((first, *self.notes))


@dataclass(frozen=True, kw_only=True)
class _Fit:
    """How the tensors of a file meet those of a trunk."""

    fitting: State
    counters: tuple[str, ...]  # absent, of batch norms
    absent: tuple[str, ...]
    problems: tuple[str, ...]  # each the rest of a sentence that starts with "it"


def sha256_of_file(path: Path) -> str:
    """Hex digest of a file of any size."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def load_checkpoint(
    path: Path,
    *,
    arch: str | None = None,
    trust: bool = False,
    allow_partial: bool = False,
    family: str | None = None,
) -> tuple[Backbone, CheckpointInfo]:
    """A trunk from a file of ours or of others, every one of its weights from the file.

    Args:
        path: backbone.pt, a PyTorch checkpoint, or safetensors.
        arch: Name of the backbone, where the file doesn't show it.
        trust: Load pickles that may run any code.
        allow_partial: Load what fits and leave the rest at its initial values (of seed 0), instead
            of refusing the file.
        family: Who released it (`families.FAMILIES`), where the file doesn't show it.

    Raises:
        UserError: No such file, not a checkpoint, an untrusted pickle, no known trunk in it, or a
            trunk that doesn't match completely.
    """
    if family is not None:
        families.find_family(family)
    content = read(path, trust)
    if content.get("format") == FORMAT:
        return _load_ours(path, arch, family)
    try:
        layout = layouts.find(path, content)
    except RecursionError as error:
        raise UserError(f"{path} is nested without end; get it again") from error
    seen, because = families.detect(layout, content)
    kind = families.find_family(family or seen)
    if arch is None:
        plain = layouts.detect_arch(path, layout.trunk)
        arch = kind.archs.get(plain, plain)
    backbone = _build(arch, layout.trunk)
    backbone.pixels = kind.pixels
    fit = _fit(backbone, layout)
    if fit.problems and not (allow_partial and fit.fitting):
        raise _refusal(path, arch, fit)
    backbone.trunk.load_state_dict(backbone.trunk.state_dict() | fit.fitting)
    if family is None:
        told = f"family {seen}: it has {because}" if because else ""
        about = (told, families.hint(path, seen, because))
    else:
        about = (f"family {family}, as told",)
    notes = (*_losses(fit), *about, *_reading(backbone), *_converted(layout.trunk))
    info = CheckpointInfo(
        path=str(path),
        sha256=sha256_of_file(path),
        family=family or seen,
        arch=arch,
        matched=len(fit.fitting),
        missing=fit.absent + fit.counters,
        unexpected=layout.heads,
        partial=bool(fit.problems),
        notes=tuple(filter(None, notes)),
    )
    return backbone.eval(), info


def _load_ours(path: Path, arch: str | None, family: str | None) -> tuple[Backbone, CheckpointInfo]:
    try:
        backbone, training = load_backbone(path)
    except (RuntimeError, TypeError, KeyError) as error:
        raise UserError(
            f"{path} comes from a version of this harness with other backbones; pretrain again"
        ) from error
    if arch not in (None, backbone.spec.name):
        raise UserError(f"{path} holds a {backbone.spec.name}, not {arch}; leave out --arch")
    if family is not None:
        raise UserError(f"{path} was written by this harness, not by {family}; leave out --family")
    info = CheckpointInfo(
        path=str(path),
        sha256=sha256_of_file(path),
        family="ours",
        arch=backbone.spec.name,
        matched=len(backbone.trunk.state_dict()),
        training=training,
    )
    return backbone, info


def _build(arch: str, trunk: State) -> Backbone:
    """A trunk whose initial values, should some stay, are the same every time."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return build_backbone(BackboneSpec(name=arch), layouts.image_size(trunk))


def _fit(backbone: Backbone, layout: Layout) -> _Fit:
    wanted, given = backbone.trunk.state_dict(), layout.trunk
    fitting: State = {}
    missing, odd, counters = [], [], []
    for name, value in wanted.items():
        if name not in given:
            kind = counters if name.endswith("num_batches_tracked") else missing
            kind.append(name)
        elif given[name].shape != value.shape:
            shapes = f"{tuple(given[name].shape)} instead of {tuple(value.shape)}"
            odd.append((name, f"has {name} of shape {shapes}"))
        elif not _finite(given[name]):
            odd.append((name, f"has values in {name} that are not finite"))
        else:
            fitting[name] = given[name]
    unknown = [*sorted(given.keys() - wanted.keys()), *layout.unknown]
    problems = [f"lacks {name}" for name in missing]
    problems += [f"has unknown {name}" for name in unknown] + [text for _, text in odd]
    return _Fit(
        fitting=fitting,
        counters=tuple(counters),
        absent=(*missing, *(name for name, _ in odd)),
        problems=tuple(problems),
    )


def _finite(value: torch.Tensor) -> bool:
    """Whether it has no NaN and no infinity; extremes need no copy, unlike isfinite()."""
    if not value.is_floating_point() or not value.numel():
        return True
    value = value.float() if value.itemsize == 1 else value  # float8 has no extremes of its own
    return all(math.isfinite(extreme) for extreme in torch.stack(value.aminmax()).tolist())


def _refusal(path: Path, arch: str, fit: _Fit) -> UserError:
    left = len(fit.problems) - 3
    more = f" and {left} more differences" if left > 0 else ""
    return UserError(
        f"{path} is not a whole {arch}: it {'; it '.join(fit.problems[:3])}{more}; use another "
        "checkpoint or another --arch, or load what fits with --allow-partial"
    )


def _losses(fit: _Fit) -> tuple[str, ...]:
    """The loud part of a partial load."""
    if not fit.problems:
        return ()
    text = f"WARNING: PARTIAL LOAD: it {'; it '.join(fit.problems[:_SHOWN])}"
    if len(fit.problems) > _SHOWN:
        text += f" and {len(fit.problems) - _SHOWN} more differences"
    return (
        f"{text}. {len(fit.absent)} of {len(fit.absent) + len(fit.fitting)} tensors KEEP THEIR "
        "RANDOM INITIAL VALUES: results are not those of the released model",
    )


def _reading(backbone: Backbone) -> tuple[str, ...]:
    """How images go in, which weights alone don't show."""
    name, pixels = backbone.spec.name, backbone.pixels
    notes = [f"images are normalised by mean {pixels.mean} and std {pixels.std}"]
    if name.endswith("_same"):
        notes.append('layers of stride 2 pad as TensorFlow\'s "SAME" does')
    base, cifar, _ = name.partition("_cifar")
    if cifar:
        others = [n for n in BACKBONES if n.startswith(base + cifar) and n != name]
        notes.append(
            f"its 3x3 stem is read as {name}'s, which weights don't show; also known: "
            + (", ".join(others) or "none")
        )
    return tuple(notes)


def _converted(trunk: Mapping[str, torch.Tensor]) -> tuple[str, ...]:
    kinds = {value.dtype for value in trunk.values() if value.is_floating_point()}
    others = sorted(str(kind).removeprefix("torch.") for kind in kinds - {torch.float32})
    return (f"converted from {', '.join(others)} to float32",) if others else ()
