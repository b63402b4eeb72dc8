"""From a plan to finished records, on this machine or on a cluster."""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass
from pathlib import Path

from harness.errors import UserError
from slurm import cluster_jobs, local
from slurm.clusters import BUILT_IN, Cluster
from slurm.jobs import Task
from slurm.ledger import open_submission
from slurm.plan import Plan
from slurm.progress import Progress


@dataclass(frozen=True, kw_only=True)
class Places:
    """Folders that jobs write to."""

    runs: Path  # checkpoints, logs, caches
    records: Path


def pin_threads() -> None:
    """One thread per job where jobs share the cores, so that no number depends on how many.

    Must run before torch is imported; on a machine with GPUs the threads are left alone.
    """
    if local.slots(1) == [None]:
        for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
            os.environ[name] = "1"


def dispatch(
    plan: Plan, places: Places, cluster: str | Cluster, limit: int | None
) -> dict[str, str]:
    """Run every job of a plan; returns the reasons of those that failed, by key.

    Args:
        plan: What is missing.
        places: Where results go.
        cluster: debug, local, or a section of clusters.toml.
        limit: At most so many jobs at once on this machine; None: one per core or GPU.

    Raises:
        UserError: The cluster refuses the jobs, or the disk of the runs is full.
    """
    try:
        return _dispatch(plan, places, cluster, limit)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise UserError(
            f"no space is left in {places.runs}; free some, then start the same command again: "
            "it goes on from here."
        ) from error


def _dispatch(
    plan: Plan, places: Places, cluster: str | Cluster, limit: int | None
) -> dict[str, str]:
    submission = open_submission(places.runs)
    alive = submission.alive if cluster == "local" else None
    tasks = make_tasks(plan, places, alive)
    with Progress(len(tasks), job_names(plan), places.runs) as progress:
        try:
            if cluster in BUILT_IN:
                submission.write_queue({task.key: "" for task in tasks})
            if cluster == "debug":
                return local.run_debug(tasks, progress, submission.folder)
            if cluster == "local":
                return local.run_local(tasks, progress, submission, local.slots(limit))
            return cluster_jobs.run_cluster(tasks, cluster, submission, progress)
        finally:
            submission.close()


def make_tasks(plan: Plan, places: Places, alive: Path | None) -> list[Task]:
    """The jobs of a plan: each pretraining, longest first, and behind it its evaluations."""
    runs, records = places.runs.resolve(), places.records.resolve()
    tasks = []
    for key, evaluations in plan.by_pretraining.items():
        common = {"pretraining": plan.described[key], "runs": runs, "records": records}
        if key in plan.pretrainings:
            tasks.append(Task(**common, alive=alive))
        tasks += [Task(**common, alive=alive, evaluation=e) for e in evaluations]
    return tasks


def job_names(plan: Plan) -> dict[str, str]:
    """What to call each job on the screen."""
    names = {}
    for key, evaluations in plan.by_pretraining.items():
        p = plan.described[key]
        what = f"{key.rpartition('-')[0]}, {p.backbone}, {p.epochs} epochs, seed {p.seed}"
        names[key] = f"pretrain {what}"
        for e in evaluations:
            names[e.key] = f"evaluate {what}: {e.protocol.rpartition('.')[2].partition('@')[0]}"
    return names
