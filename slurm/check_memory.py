"""Whether the machines have the memory that features of all of ImageNet take."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator

from harness.inventory import PUBLISHED
from slurm.checks import Check, Subject, passed
from slurm.sites import Site, job_values

GB = 1e9
# Features of the trunks that the papers' tables evaluate by nearest neighbours or as variables.
_WIDTHS = {"resnet50": 2048, "resnet50v2": 2048, "resnet50_d8192": 8192, "vit_small_16": 384}
_VARIABLES = 102  # of IMSVD's projector, the only one whose output is looked at
_BESIDE_GB = 2.0  # a process's libraries and loader, and what a search needs beside the bank


def check_memory(subject: Subject, site: Site) -> Iterator[Check]:
    """The protocols knn and onehot hold the features of all training images.

    On this machine as many evaluations run at once as there are places for jobs.
    """
    worst: tuple[float, float, str] | None = None
    for evaluation in subject.plan.evaluations.values():
        backbone = subject.plan.described[evaluation.pretraining].backbone
        if not subject.scale.is_paper or not needed_gb(evaluation.variant, backbone):
            continue
        if site.cluster is None:
            needed = needed_gb(evaluation.variant, backbone) * site.slots
            has = this_machines_gb()
        else:
            values = job_values(site.cluster, evaluation)
            processes = max(1, values.get("gpus_per_node", 1))
            # without mem_gb the cluster's default holds, which isn't known here
            needed = needed_gb(evaluation.variant, backbone, processes)
            has = values["mem_gb"] * 2**30 / GB if values.get("mem_gb") else math.inf
        if worst is None or needed - has > worst[0] - worst[1]:
            worst = (needed, has, evaluation.variant)
    if worst is not None:
        yield _judged(*worst, site)


def _judged(needed: float, has: float, variant: str, site: Site) -> Check:
    found = f"{variant} takes {needed:.0f} GB"
    known = f"there are {has:.0f}" if math.isfinite(has) else "mem_gb isn't set"
    if needed <= has:
        return passed("memory", f"{found}, {known}")
    if site.cluster is None:
        mend = "use --jobs 1 or a machine with more memory"
        found += f" with {site.slots} at once"
    else:
        protocol = variant.partition(":")[0]
        mend = f"raise mem_gb under [….evaluate.{protocol}] in clusters.toml"
    return Check(name="memory", ok=False, found=f"{found}, {known}", mend=mend)


def needed_gb(variant: str, backbone: str, processes: int = 1) -> float:
    """Memory of an evaluation with this many processes on one machine, by what they hold.

    The processes share the features. 0 for protocols that don't hold all of them.
    """
    images = PUBLISHED["imagenet"].train
    features = 4 * images * _WIDTHS.get(backbone, 0) / GB
    match variant.partition(":")[0]:
        case "knn":
            return processes * _BESIDE_GB + features
        case "onehot":
            # the largest probabilities, which exceed a threshold, and that as float64
            largest = (4 + 1 + 8) * images * _VARIABLES / GB
            return processes * _BESIDE_GB + features + largest
    return 0.0


def this_machines_gb() -> float:
    """Memory of this machine."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / GB
