"""Whether the machines have the memory that nearest neighbours of all of ImageNet take."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator

from harness.inventory import PUBLISHED
from slurm.checks import Check, Subject, passed
from slurm.sites import Site, job_values

GB = 1e9
# Features of the trunks that the papers' tables evaluate by nearest neighbours.
_WIDTHS = {"resnet50": 2048, "resnet50v2": 2048, "resnet50_d8192": 8192, "vit_small_16": 384}
_BESIDE_GB = 2.0  # a process's libraries and loader, and what a search needs beside the bank


def check_memory(subject: Subject, site: Site) -> Iterator[Check]:
    """Every process of the protocol knn holds the features of all training images.

    On this machine as many evaluations run at once as there are places for jobs.
    """
    worst: tuple[float, float, str] | None = None
    for evaluation in subject.plan.evaluations.values():
        bank = _bank_gb(evaluation.variant, subject.plan.described[evaluation.pretraining].backbone)
        if not subject.scale.is_paper or not bank:
            continue
        if site.cluster is None:
            needed, has = bank * site.slots, this_machines_gb()
        else:
            values = job_values(site.cluster, evaluation)
            processes = max(1, values.get("gpus_per_node", 1))
            # without mem_gb the cluster's default holds, which isn't known here
            needed = bank * processes
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
        mend = "raise mem_gb under [….evaluate.knn] in clusters.toml"
    return Check(name="memory", ok=False, found=f"{found}, {known}", mend=mend)


def _bank_gb(variant: str, backbone: str) -> float:
    """Of one process; 0 for other protocols."""
    if variant.partition(":")[0] != "knn":
        return 0.0
    return _BESIDE_GB + 4 * PUBLISHED["imagenet"].train * _WIDTHS.get(backbone, 0) / GB


def this_machines_gb() -> float:
    """Memory of this machine."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / GB
