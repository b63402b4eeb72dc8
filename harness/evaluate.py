"""One evaluation of one checkpoint, from file to Record; what SLURM jobs and command lines call."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from harness import dist
from harness.environment import environment, hardware, job_id, peak_memory_bytes
from harness.foreign import CheckpointInfo, load_checkpoint
from harness.recipe import Recipe, fingerprint, resolved
from harness.record import Cost, Record
from harness.snapshots import END, evaluated_after

if TYPE_CHECKING:
    from harness.backbone import Backbone
    from harness.protocol import EvalProtocol


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
        recipe: What the checkpoint was trained by; None for one from elsewhere, which its
            file's SHA-256 and how it is read then identify.
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
    moment = evaluated_after(info.training.get("after", END))
    identity = (recipe if recipe is not None else info.identity, protocol, seed, *moment)
    return measure(backbone, info, identity, workdir=workdir, records=records, started=started)


def measure(
    backbone: Backbone,
    info: CheckpointInfo,
    identity: tuple[Recipe | str, EvalProtocol, int, *tuple[str, ...]],
    *,
    workdir: Path,
    records: Path,
    started: float,
) -> Record:
    """Run a protocol on a loaded backbone and write the record.

    Of a trunk whose training diverged the record says that, and has no metrics.

    Args:
        backbone: The trunk.
        info: Where it came from.
        identity: Recipe (or the checkpoint's identity), protocol, seed and, of a trunk from before
            the end, the moment: what the key is made of.
        workdir: See `evaluate`.
        records: See `evaluate`.
        started: `time.monotonic()` when the evaluation began.
    """
    recipe, protocol, seed, *_ = identity
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    diverged = info.training.get("diverged", "")
    found = {} if diverged else protocol.run(backbone, workdir)
    cost = _cost(time.monotonic() - started)
    record = Record(
        key=fingerprint(*identity),
        slot=fingerprint(*identity, versions=False),
        recipe=resolved(recipe) if isinstance(recipe, Recipe) else info.training.get("recipe"),
        protocol=resolved(protocol),
        seed=seed,
        after=info.training.get("after", END),
        metrics={name: estimate.value for name, estimate in found.items()},
        diverged=diverged,
        intervals={
            name: [estimate.low, estimate.high]
            for name, estimate in found.items()
            if estimate.low is not None and estimate.high is not None
        },
        checkpoint={
            "path": info.path,
            "sha256": info.sha256,
            "family": info.family,
            "arch": info.arch,
            "partial": info.partial,
            "missing": list(info.missing) if info.partial else [],
            "pixels": resolved(backbone.pixels),
        },
        data=protocol.data(),
        predictions=None if diverged else str(workdir / protocol.predictions),
        seconds=cost.seconds,
        pretrain_seconds=info.training.get("seconds", 0.0),
        peak_memory_bytes=cost.peak_memory_bytes,
        cost=cost,
        pretrain_cost=pretrain_cost(info.training),
        environment=environment(),
    )
    if dist.is_main():
        record.save(records)
    dist.barrier()
    return record


def _cost(seconds: float) -> Cost:
    """What this evaluation took; every process calls it."""
    peak = torch.tensor([peak_memory_bytes()], device=dist.device())
    gpus = dist.world() if torch.cuda.is_available() else 0
    job = job_id()
    return Cost(
        seconds=seconds,
        processes=dist.world(),
        gpus=gpus,
        gpu_hours=gpus * seconds / 3600,
        hardware=hardware(),
        peak_memory_bytes=int(dist.gather_rows(peak).max()),
        jobs=(job,) if job else (),
    )


def pretrain_cost(training: dict[str, Any]) -> Cost | None:
    """What a pretraining took, from what its trainer wrote into backbone.pt; None without that.

    Args:
        training: `CheckpointInfo.training`, empty for a checkpoint from elsewhere.
    """
    seconds = training.get("seconds")
    if seconds is None:
        return None
    processes = training.get("processes", 1)
    gpus = processes if training.get("device") == "cuda" else 0
    recipe, data = training.get("recipe", {}), training.get("data", {})
    size = recipe.get("batch_size", 1)
    # the last, smaller batch of an epoch is dropped
    images = recipe.get("epochs", 0) * (data.get("images", 0) // size) * size
    return Cost(
        seconds=seconds,
        processes=processes,
        gpus=gpus,
        gpu_hours=training.get("gpu_hours", gpus * seconds / 3600),
        hardware=training.get("hardware", ""),
        # a run that diverged has not seen all of its images
        images_per_s=images / seconds
        if images and seconds and not training.get("diverged")
        else None,
        peak_memory_bytes=training.get("peak_memory_bytes", 0),
        jobs=tuple(training.get("jobs", ())),
    )
