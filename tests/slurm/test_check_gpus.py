"""The doctor's check of GPUs: there at all, and large enough for a batch."""

from dataclasses import replace

import pytest

from harness import registry
from harness.recipe import resolved
from harness.record import Cost
from slurm import check_gpus
from tests.results import sample
from tests.slurm.doctor_toys import HERE, on_cluster, real, subject


@pytest.fixture
def nvidia(tmp_path, monkeypatch):
    """An nvidia-smi that lists four V100."""
    path = tmp_path / "tools" / "nvidia-smi"
    path.parent.mkdir()
    path.write_text('#!/bin/sh\nfor i in 1 2 3 4; do echo "Tesla V100-SXM2-32GB, 32768, 7.0"; done')
    path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{path.parent}:/usr/bin:/bin")


def test_the_gpus_of_this_machine_are_named(nvidia, monkeypatch):
    gpus = check_gpus.this_machines()
    assert len(gpus) == 4
    assert gpus[0].describe() == "Tesla V100-SXM2-32GB, 34 GB, no bf16"


def test_a_batch_that_one_gpu_cannot_hold_says_how_many_could(nvidia, tmp_path, monkeypatch):
    monkeypatch.setattr(check_gpus.importlib.metadata, "version", lambda _: "2.15.0")
    asked = subject(tmp_path, real("imsvd:RESNET50", "knn:imsvd"))
    machine, batch = check_gpus.check_gpus(asked, HERE)
    assert machine.ok
    assert not batch.ok
    assert batch.found == "2048 images per GPU need about 205 GB, and it has 34"
    assert batch.mend.startswith("use --cluster with at least 6 GPUs")


def test_a_torch_without_cuda_beside_gpus_is_found(nvidia, tmp_path, monkeypatch):
    monkeypatch.setattr(check_gpus.importlib.metadata, "version", lambda _: "2.15.0+cpu")
    machine, _ = check_gpus.check_gpus(
        subject(tmp_path, real("moco_v2:RESNET50", "knn:imsvd")), HERE
    )
    assert not machine.ok
    assert "torch was built without CUDA" in machine.found


@pytest.mark.parametrize(("scale", "ok"), [("paper", False), ("cifar10", False), ("demo", True)])
def test_without_gpus_only_small_scales_are_well(tmp_path, monkeypatch, scale, ok):
    monkeypatch.setenv("PATH", "/nowhere")
    found = list(check_gpus.check_gpus(subject(tmp_path, scale=scale), replace(HERE, gpus=0)))
    assert [check.ok for check in found] == [ok]


def test_a_measured_peak_goes_before_the_published_one(tmp_path):
    recipe = registry.recipe("imsvd:RESNET50")
    cost = Cost(seconds=1.0, processes=32, gpus=32, peak_memory_bytes=10_400_000_000)
    record = replace(sample.record("x", 1.0), recipe=resolved(recipe), pretrain_cost=cost)
    assert check_gpus.needed_gb(recipe, 64.0, subject(tmp_path)) == pytest.approx(6.4)
    assert check_gpus.needed_gb(recipe, 64.0, subject(tmp_path, records={"x": record})) == 10.4


def test_batches_on_a_cluster_divide_and_fit(slurm, tmp_path):
    table = real("imsvd:RESNET50", "knn:imsvd")
    text = '[slurm]\npartition = "main"\n[slurm.pretrain]\nnodes = {}\ngpus_per_node = {}\n'
    found = []
    for nodes, gpus in ((4, 8), (1, 8), (1, 3)):
        site, _, _, asked = on_cluster(tmp_path, text.format(nodes, gpus), table)
        found += check_gpus.check_gpus(asked, site)
    assert [check.ok for check in found] == [True, True, False]
    assert "about 26 GB (imsvd:RESNET50, 256 images per GPU), it has 16 or 32" in found[1].found
    assert found[2].found == "2048 images don't divide among 3 processes"
    slurm.answers("sinfo", "small*|up|infinite|4|64|512000|gpu:t4:8\n")
    site, _, _, asked = on_cluster(tmp_path, "[slurm.pretrain]\nnodes = 1\n", table)
    (check,) = check_gpus.check_gpus(asked, site)
    assert check.mend == "raise nodes × gpus_per_node 2-fold in clusters.toml"
