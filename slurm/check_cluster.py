"""Whether SLURM answers, would take every kind of job of a plan, and gives it enough time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from harness.errors import UserError
from slurm import clusters, partitions
from slurm.checks import Check, Subject, passed, refused
from slurm.clusters import BUILT_IN, Cluster, Sections
from slurm.cost import duration
from slurm.local import slots
from slurm.partitions import Nodes
from slurm.plan import estimate_costs
from slurm.sites import Site, job_values, requests

_SIGNAL_SECONDS = 90  # before the limit, where signal_delay_s isn't given: submitit's


def find_place(name: str | None, sections: Sections) -> tuple[Site, Sequence[Nodes], Check]:
    """Where jobs would run, the nodes there as SLURM tells them, and whether it answers.

    Args:
        name: The cluster asked for; None: SLURM where there is an sbatch, else this machine.
        sections: What `clusters.read_sections` found.

    Raises:
        UserError: No such cluster, or settings of a recipe that doesn't exist.
    """
    if name is not None and name not in (*BUILT_IN, *sections):
        clusters.choose(name, sections)
    here = slots(None)
    local = Site(name="local", slots=len(here), gpus=int(here[0] is not None))
    if name in BUILT_IN or (name is None and not partitions.installed()):
        why = "" if name else ", since there is no sbatch"
        return local, (), passed("SLURM", f"not used{why}: jobs run on this machine")
    asked, name = name, name or "slurm"
    cluster = clusters.find(name, sections)
    try:
        found = partitions.partitions()
    except UserError as error:
        if asked is None:
            silence = str(error).partition("; ")[0]
            return local, (), passed("SLURM", f"{silence}: jobs run on this machine")
        return Site(name=name, slots=1, cluster=cluster), (), refused("SLURM", error)
    total, gpu = partitions.cluster_gpus(found, cluster.values("pretrain").get("partition", ""))
    names = ", ".join(dict.fromkeys(nodes.partition for nodes in found))
    site = Site(name=name, slots=1, gpu=gpu, cluster=cluster)
    kind = f" of {gpu}" if gpu else ""
    about = f"partitions {names}; {total} GPUs{kind}" if total else f"partitions {names}"
    return site, found, passed("SLURM", f"a controller answers: {about}")


def check_requests(subject: Subject, site: Site, found: Sequence[Nodes]) -> Iterator[Check]:
    """Show each kind of job to SLURM, which submits nothing (sbatch --test-only)."""
    if site.cluster is None:
        return
    for where, values in requests(site.cluster, subject.plan.all_jobs):
        title = f"request for {where}"
        size = f"{values.get('nodes', 1)} × {values.get('gpus_per_node', 1)} GPUs"
        limit = f", {values['timeout_min']} min" if values.get("timeout_min") else ""
        try:
            partitions.check(where, values, found)
        except UserError as error:
            check = refused(title, error)
            yield Check(
                name=title, ok=False, found=check.found.removeprefix(f"{where}: "), mend=check.mend
            )
        else:
            yield passed(title, f"SLURM would take it ({size}{limit})")


def check_limits(subject: Subject, site: Site) -> Iterator[Check]:
    """Time limits against the estimates; a job that reaches its limit goes on in a next attempt."""
    if site.cluster is None or not subject.plan.jobs:
        return
    estimates = estimate_costs(subject.plan, site, subject.records).estimates
    attempts, longest = 1, 0.0
    for job in subject.plan.all_jobs:
        values = job_values(site.cluster, job)
        seconds, estimate = 60 * values.get("timeout_min", 0), estimates[job.key]
        delay = values.get("signal_delay_s", _SIGNAL_SECONDS)
        if seconds and seconds <= delay:
            yield _too_short(site.cluster, job.key, values["timeout_min"], delay)
            return
        if seconds and estimate is not None and estimate.seconds > longest:
            longest = estimate.seconds
            attempts = -int(-longest // (seconds - delay))
    if attempts > 1:
        found = f"the longest job takes about {duration(longest)} in {attempts} attempts"
        yield passed("time limits", f"{found}, each from where the last one was told to save")
    else:
        known = f"the longest job takes about {duration(longest)}" if longest else "no estimates"
        yield passed("time limits", known)


def _too_short(cluster: Cluster, key: str, minutes: int, delay: int) -> Check:
    return Check(
        name="time limits",
        ok=False,
        found=f"{key} would be told to save {delay} s before the end of its {minutes} min, and "
        "never get on",
        mend=f"raise timeout_min or lower signal_delay_s in [{cluster.name}] of clusters.toml",
    )
