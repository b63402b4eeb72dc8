"""Whether the GPUs that jobs get are there, and hold their share of a batch."""

from __future__ import annotations

import importlib.metadata
import math
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass

from harness.recipe import Recipe, resolved
from slurm.checks import Check, Subject, passed
from slurm.sites import Site

GB = 1e9
# Memory that is kept for the gradient of a 224 px crop under mixed precision; it grows with the
# crop's area. IMSVD's Table VII has 7.6 GB with the narrowest projector, at 64 images of two crops
# on a GPU, of which about one is weights; DINO's Table 8 has 6.1 GB for ten more crops of 96 px of
# each of 64 images on a ViT-S/16, which is 52 MB for 224 px.
_CROP_BYTES = {
    "resnet50": 50e6,
    "resnet50v2": 50e6,
    "resnet50_d8192": 50e6,
    "vit_small_16": 50e6,
}
_ONE_ENCODER = ("moco_v2", "pcl")  # the second crop goes through a trunk that gets no gradient
# GB of the kinds that sinfo names; of some there are two sizes.
_KINDS = {
    "t4": (16,),
    "p100": (16,),
    "v100": (16, 32),
    "a10": (24,),
    "a30": (24,),
    "l4": (24,),
    "a40": (48,),
    "l40s": (48,),
    "a100": (40, 80),
    "h100": (80,),
    "h200": (141,),
    "b200": (180,),
}
_ON_GPUS = ("paper", "cifar10")  # scales that take weeks without
_BF16 = 8.0  # compute capability of the first kind with products in bf16


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """One of this machine's."""

    name: str
    memory_gb: float
    capability: float  # compute capability, 8.0 for an A100

    def describe(self) -> str:
        """Name, memory, and the precision that it trains in."""
        precision = "bf16" if self.capability >= _BF16 else "no bf16"
        return f"{self.name}, {self.memory_gb:.0f} GB, {precision}"


def this_machines() -> list[Gpu]:
    """What nvidia-smi lists."""
    if shutil.which("nvidia-smi") is None:
        return []
    query = "--query-gpu=name,memory.total,compute_cap"
    done = subprocess.run(
        ["nvidia-smi", query, "--format=csv,noheader,nounits"],
        capture_output=True,
        text=True,
        check=False,
    )
    rows = [line.rsplit(",", 2) for line in done.stdout.splitlines() if line.count(",") >= 2]
    return [
        Gpu(name=name.strip(), memory_gb=float(memory) * 2**20 / GB, capability=float(capability))
        for name, memory, capability in rows
    ]


def check_gpus(subject: Subject, site: Site) -> Iterator[Check]:
    """The GPUs of this machine where jobs would run here, then each recipe's share of a batch."""
    sizes: tuple[float, ...] = ()
    if site.cluster is None:
        gpus = this_machines()
        yield _check_machine(gpus, subject)
        sizes = tuple({gpu.memory_gb for gpu in gpus})
        if not gpus:
            return
    else:
        kinds = {site.resources(p).gpu for p in subject.plan.pretrainings.values()} - {""}
        sizes = _KINDS.get(kinds.pop().lower(), ()) if len(kinds) == 1 else ()
    if subject.plan.pretrainings:
        yield from _check_recipes(subject, site, sizes)


def _check_machine(gpus: list[Gpu], subject: Subject) -> Check:
    if gpus:
        build = importlib.metadata.version("torch").partition("+")[2]
        if build == "cpu":
            return Check(
                name="GPUs",
                ok=False,
                found=f"{len(gpus)} × {gpus[0].describe()}, and torch was built without CUDA",
                mend="install torch and torchvision for CUDA, as pytorch.org says",
            )
        return passed("GPUs", f"{len(gpus)} × {gpus[0].describe()}")
    name = subject.scale.name
    if name not in _ON_GPUS or not subject.plan.jobs:
        return passed("GPUs", f"none here, and scale {name} needs none")
    return Check(
        name="GPUs",
        ok=False,
        found=f"none here, and without them scale {name} takes weeks or years",
        mend="use --cluster, a machine with GPUs, or --scale cifar10-mini or demo",
    )


def _check_recipes(subject: Subject, site: Site, sizes: tuple[float, ...]) -> Iterator[Check]:
    """Whether batches divide among the processes and fit their memory; one line if all do."""
    good: list[tuple[float, str]] = []
    for name, (pretraining, recipe) in subject.recipes.items():
        if not recipe.epochs:
            continue
        resources = site.resources(pretraining)
        title = f"batches of {name}"
        share = recipe.batch_size / resources.processes
        if recipe.batch_size % resources.processes:
            fitting = math.gcd(recipe.batch_size, resources.processes)
            yield Check(
                name=title,
                ok=False,
                found=f"{recipe.batch_size} images don't divide among {resources.processes} "
                "processes",
                mend=f"set nodes × gpus_per_node to {fitting} or another divisor",
            )
            continue
        needed = needed_gb(recipe, share, subject)
        if needed is None or not resources.gpus:
            good.append((0.0, f"{name}, {share:.0f} images per process"))
        elif sizes and needed > max(sizes):
            yield _too_large(title, share, needed, max(sizes), site)
        else:
            good.append((needed, f"{name}, {share:.0f} images per GPU"))
    if good:
        needed, name = max(good)
        known = f"it has {_either(sizes)}" if sizes else "SLURM doesn't tell what it has"
        most = f"; the largest share needs about {needed:.0f} GB ({name}), {known}"
        divide = f"{len(good)} recipes' divide among their processes"
        yield passed("batches", divide + (most if needed else ""))


def _too_large(title: str, share: float, needed: float, most: float, site: Site) -> Check:
    factor = math.ceil(needed / most)
    if site.cluster is None:
        mend = f"use --cluster with at least {factor} GPUs for the job; here each job gets one"
    else:
        mend = f"raise nodes × gpus_per_node {factor}-fold in clusters.toml"
    found = f"{share:.0f} images per GPU need about {needed:.0f} GB, and it has {most:.0f}"
    return Check(name=title, ok=False, found=found, mend=mend)


def needed_gb(recipe: Recipe, share: float, subject: Subject) -> float | None:
    """Memory of one GPU for its share of a batch; None where nothing is known.

    Measured by a record of the same method, crops and share, else by what papers report.
    """
    measured = [
        cost.peak_memory_bytes / GB
        for record in subject.records.values()
        if (cost := record.pretrain_cost) is not None and cost.gpus and record.recipe
        if record.recipe["batch_size"] / cost.processes == share
        if all(record.recipe[k] == resolved(getattr(recipe, k)) for k in ("method", "views"))
        if record.recipe["backbone"]["name"] == recipe.backbone.name
    ]
    if measured:
        return max(measured)
    per_crop = _CROP_BYTES.get(recipe.backbone.name)
    if per_crop is None:
        return None
    crops = sum((view.size / 224) ** 2 for view in recipe.views)
    method = type(recipe.method).__module__.rpartition(".")[2]
    return share * crops * per_crop / GB / (2 if method in _ONE_ENCODER else 1)


def _either(sizes: tuple[float, ...]) -> str:
    return " or ".join(f"{size:.0f}" for size in sorted(sizes))
