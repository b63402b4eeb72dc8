"""What a training leaves: the trunk that protocols evaluate, at its end and on its way."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from harness import dist
from harness.checkpoint import save_backbone
from harness.environment import hardware, job_id, peak_memory_bytes
from harness.recipe import resolved
from harness.snapshots import END, snapshot_steps, trunk_file

if TYPE_CHECKING:
    from harness.train import Run


def save_trunk(run: Run, percent: int = END, **more: Any) -> None:
    """Write the trunk as it is now, and what is known of its training.

    Args:
        run: Of the main process.
        percent: Of the steps after which it is kept.
        **more: What else is known.
    """
    method = run.method
    heads = {"classifier": method.classifier, "projector": method.own_projector}
    # What a training took is told at its end: part of it would pass for all of it.
    told = {"seconds": run.elapsed} if percent == END else {"after": percent}
    path = run.workdir / trunk_file(percent)
    save_backbone(method.evaluated, path, **heads, **_summary(run), **told, **more)


def missed_snapshots(run: Run) -> list[int]:
    """Percents of the steps whose trunks a run that ends now has not kept."""
    planned = snapshot_steps(run.recipe, run.steps)
    return [p for step, percents in planned.items() if step >= run.step for p in percents]


def _summary(run: Run) -> dict[str, Any]:
    """What a trunk's file tells about its training."""
    return {
        "recipe": resolved(run.recipe),
        "name": run.recipe.name,
        "seed": run.seed,
        "processes": dist.world(),
        "precision": run.precision,
        "device": str(dist.device().type),
        "hardware": hardware(),
        "jobs": [job for job in (job_id(),) if job],
        "peak_memory_bytes": peak_memory_bytes(),
        "data": run.data.images.describe(),
    }
