"""The doctor's check of memory, on this machine and on a cluster."""

from dataclasses import replace

import pytest

from slurm import check_memory
from tests.slurm.doctor_toys import HERE, on_cluster, real, subject


def test_neighbours_of_imagenet_need_memory_for_every_job_at_once(tmp_path, monkeypatch):
    asked = subject(tmp_path, real("imsvd:RESNET50", "knn:imsvd"))
    monkeypatch.setattr(check_memory, "this_machines_gb", lambda: 64.0)
    (check,) = check_memory.check_memory(asked, HERE)
    assert (check.ok, check.found) == (True, "knn:imsvd takes 50 GB, there are 64")
    (check,) = check_memory.check_memory(asked, replace(HERE, slots=8))
    assert (check.ok, check.mend) == (False, "use --jobs 1 or a machine with more memory")
    linear = subject(tmp_path, real("imsvd:RESNET50", "linear:imsvd"))
    assert list(check_memory.check_memory(linear, HERE)) == []


def test_neighbours_on_a_cluster_need_their_mem_gb(slurm, tmp_path):
    table = real("imsvd:RESNET50", "knn:imsvd")
    for size, ok in ((64, True), (8, False)):
        text = f"[slurm.evaluate]\nmem_gb = {size}\n"
        site, _, _, asked = on_cluster(tmp_path, text, table)
        (check,) = check_memory.check_memory(asked, site)
        assert check.ok is ok


def test_processes_share_the_features_of_neighbours_and_of_variables():
    images, width, variables = 1_281_167, 2048, 102
    features, largest = 4 * images * width / 1e9, 13 * images * variables / 1e9
    assert (round(features, 1), round(largest, 1)) == (10.5, 1.7)
    for processes in (1, 4):
        knn = check_memory.needed_gb("knn:imsvd", "resnet50", processes)
        onehot = check_memory.needed_gb("onehot:imsvd", "resnet50", processes)
        assert knn == pytest.approx(processes * 2 + features)
        assert onehot == pytest.approx(processes * 2 + features + largest)


def test_one_hot_variables_of_imagenet_need_memory_for_every_job_at_once(
    slurm, tmp_path, monkeypatch
):
    table = real("imsvd:RESNET50", "onehot:imsvd")
    asked = subject(tmp_path, table)
    monkeypatch.setattr(check_memory, "this_machines_gb", lambda: 16.0)
    (check,) = check_memory.check_memory(asked, replace(HERE, slots=1))
    assert (check.ok, check.found) == (True, "onehot:imsvd takes 14 GB, there are 16")
    (check,) = check_memory.check_memory(asked, HERE)
    assert check.found == "onehot:imsvd takes 57 GB with 4 at once, there are 16"
    text = "[slurm.evaluate.onehot]\nmem_gb = 13\n"  # 13.96 of those GB
    site, _, _, asked = on_cluster(tmp_path, text, table)
    (check,) = check_memory.check_memory(asked, site)
    mend = "raise mem_gb under [….evaluate.onehot] in clusters.toml"
    assert (check.ok, check.mend) == (False, mend)
