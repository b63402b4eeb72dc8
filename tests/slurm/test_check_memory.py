"""The doctor's check of memory, on this machine and on a cluster."""

from dataclasses import replace

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
