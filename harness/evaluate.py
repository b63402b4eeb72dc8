"""One evaluation of one checkpoint, from file to Record; what SLURM jobs and command lines call."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import resource
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from harness import dist
from harness.data import open_split
from harness.foreign import CheckpointInfo, load_checkpoint
from harness.recipe import Recipe, fingerprint, resolved
from harness.record import Record

if TYPE_CHECKING:
    from harness.backbone import Backbone
    from harness.protocol import EvalProtocol

_PACKAGES = ("torch", "torchvision", "timm", "numpy")
_ROOT = Path(__file__).parents[1]


def evaluate(
    *,
    recipe: Recipe | None,
    protocol: EvalProtocol,
    seed: int,
    checkpoint: Path,
    workdir: Path,
    records: Path,
) -> Record:
    """Evaluate a checkpoint; every process calls it, the main one writes the record.

    Args:
        recipe: What the checkpoint was trained by; None for one from elsewhere, which the
            SHA-256 of its file then identifies.
        protocol: How to evaluate.
        seed: The pretraining's.
        checkpoint: File of the weights.
        workdir: Folder of per-image predictions and of what a killed evaluation goes on from.
        records: Folder that gets `<key>.json`.

    Raises:
        UserError: The checkpoint, the data set or the settings are unusable.
    """
    dist.init()
    started = time.monotonic()
    backbone, info = load_checkpoint(checkpoint)
    identity = (recipe if recipe is not None else info.sha256, protocol, seed)
    return measure(backbone, info, identity, workdir=workdir, records=records, started=started)


def measure(
    backbone: Backbone,
    info: CheckpointInfo,
    identity: tuple[Recipe | str, EvalProtocol, int],
    *,
    workdir: Path,
    records: Path,
    started: float,
) -> Record:
    """Run a protocol on a loaded backbone and write the record.

    Args:
        backbone: The trunk.
        info: Where it came from.
        identity: Recipe (or the checkpoint's SHA-256), protocol, seed: what the key is made of.
        workdir: See `evaluate`.
        records: See `evaluate`.
        started: `time.monotonic()` when the evaluation began.
    """
    recipe, protocol, seed = identity
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    metrics = protocol.run(backbone, workdir)
    record = Record(
        key=fingerprint(*identity),
        slot=fingerprint(*identity, versions=False),
        recipe=resolved(recipe) if isinstance(recipe, Recipe) else info.training.get("recipe"),
        protocol=resolved(protocol),
        seed=seed,
        metrics=metrics,
        checkpoint={
            "path": info.path,
            "sha256": info.sha256,
            "family": info.family,
            "arch": info.arch,
        },
        data={split: open_split(protocol.dataset, split).describe() for split in ("train", "val")},
        predictions=str(workdir / "predictions.npz"),
        seconds=time.monotonic() - started,
        pretrain_seconds=info.training.get("seconds", 0.0),
        peak_memory_bytes=_peak_memory_bytes(),
        environment=environment(),
    )
    if dist.is_main():
        record.save(records)
    dist.barrier()
    return record


def _peak_memory_bytes() -> int:
    """Of this process: allocated on its GPU, or resident."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    # Linux counts in KiB, macOS in bytes.
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def environment() -> dict[str, Any]:
    """What the numbers were measured with: commit, versions, hardware, processes, job, command."""
    versions = {"python": platform.python_version()}
    versions |= {name: importlib.metadata.version(name) for name in _PACKAGES}
    status = _git("status", "--porcelain", "--untracked-files=no")
    cuda = torch.cuda.is_available()
    return {
        "commit": _git("rev-parse", "HEAD"),
        "dirty": None if status is None else bool(status),
        "versions": versions,
        "hardware": torch.cuda.get_device_name() if cuda else platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "processes": dist.world(),
        "host": platform.node(),
        "job": os.environ.get("SLURM_JOB_ID"),
        "command": shlex.join(sys.argv),
    }


def _git(*arguments: str) -> str | None:
    """Output of git in the project's folder; None without git or outside of a repository."""
    try:
        done = subprocess.run(
            ["git", *arguments], cwd=_ROOT, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()
