"""Where a plan is to run: this machine, or a cluster whose SLURM has said that it could."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from harness.errors import UserError
from results.resolve import Evaluation, Pretraining
from slurm import clusters, partitions
from slurm.arguments import Arguments
from slurm.clusters import BUILT_IN, Cluster, processes_per_node
from slurm.cost import Resources
from slurm.local import slots

Job = Pretraining | Evaluation

_PARALLELISM = 256  # submitit's, where array_parallelism isn't given


@dataclass(frozen=True, kw_only=True)
class Site:
    """A machine or a cluster, and what it gives to jobs."""

    name: str  # debug, local, or the cluster's
    slots: int  # jobs at once; on a cluster pretrainings, and evaluations of one pretraining
    gpus: int = 0  # of a job on this machine
    gpu: str = ""  # kind, if it is known
    cluster: Cluster | None = None  # None: this machine

    def resources(self, job: Job) -> Resources:
        """What a job gets."""
        if self.cluster is None:
            return Resources(gpus=self.gpus, gpu=self.gpu)
        values = job_values(self.cluster, job)
        nodes = values.get("nodes", 1)
        return Resources(
            gpus=nodes * values.get("gpus_per_node", 1),
            processes=nodes * processes_per_node(values),
            gpu=values.get("gpu") or self.gpu,
        )


def job_values(cluster: Cluster, job: Job) -> dict[str, Any]:
    """The settings of clusters.toml that hold for a job."""
    if isinstance(job, Pretraining):
        return cluster.values("pretrain", job.recipe)
    return cluster.values("evaluate", job.variant)


def requests(cluster: Cluster, jobs: Collection[Job]) -> list[tuple[str, dict[str, Any]]]:
    """What is to be asked of a cluster for these jobs, each kind once: what for, and settings."""
    wanted: dict[str, tuple[str, dict[str, Any]]] = {}
    for job in jobs:
        kind = "pretraining" if isinstance(job, Pretraining) else "evaluation"
        values = job_values(cluster, job)
        wanted.setdefault(repr(values), (f"{kind} on cluster {cluster.name}", values))
    return list(wanted.values())


def find_site(args: Arguments, jobs: Collection[Job]) -> Site:
    """Where these jobs are to run; on a cluster after asking it whether each of them could.

    Raises:
        UserError: No such cluster, a mistake in its settings, or a job that it would never run.
    """
    sections = clusters.read_sections(own=args.clusters, changes=args.set)
    name = clusters.choose(args.cluster, sections, ask=bool(jobs))
    check_changes(args.set, name)
    if name == "debug":
        return Site(name=name, slots=1)
    if name in BUILT_IN:
        places = slots(args.jobs)
        at_once = min(len(jobs) or 1, len(places))
        return Site(name=name, slots=at_once, gpus=int(places[0] is not None))
    cluster = clusters.find(name, sections)
    return _checked(cluster, jobs) if jobs else Site(name=name, slots=1, cluster=cluster)


def check_changes(changes: Sequence[str], name: str) -> None:
    """Refuse settings of the command line for another cluster than the one in use."""
    for change in changes:
        if not change.startswith(f"{name}."):
            raise UserError(f"--set {change} has no effect on cluster {name}; add --cluster.")


def _checked(cluster: Cluster, jobs: Collection[Job]) -> Site:
    """The cluster, with what its partitions bound; every kind of job is shown to SLURM once."""
    found = partitions.partitions()
    for where, values in requests(cluster, jobs):
        partitions.check(where, values, found)
    values = cluster.values("pretrain")
    total, gpu = partitions.cluster_gpus(found, values.get("partition", ""))
    at_once = values.get("array_parallelism", _PARALLELISM)
    gpus = values.get("nodes", 1) * values.get("gpus_per_node", 1)
    if total and gpus:
        at_once = max(1, min(at_once, total // gpus))
    return Site(name=cluster.name, slots=at_once, gpu=gpu, cluster=cluster)
