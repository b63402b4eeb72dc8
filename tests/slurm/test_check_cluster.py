"""The doctor's check of SLURM: a controller that answers, requests that it takes, limits."""

from dataclasses import replace

import pytest

from harness.errors import UserError
from slurm.check_cluster import check_limits, check_requests, find_place
from slurm.clusters import read_sections
from tests.slurm.doctor_toys import on_cluster, real


def test_every_kind_of_job_is_shown_to_slurm(slurm, tmp_path):
    table = real("imsvd:RESNET50", "knn:imsvd")
    site, nodes, answer, asked = on_cluster(tmp_path, '[slurm]\npartition = "main"\n', table)
    assert answer.found == "a controller answers: partitions main, debug, cpu, old; 32 GPUs of v100"
    found = list(check_requests(asked, site, nodes))
    assert [check.ok for check in found] == [True, True]
    assert found[0].found == "SLURM would take it (1 × 8 GPUs, 1440 min)"
    assert len(slurm.calls("sbatch")) == 2


def test_what_slurm_refuses_says_what_to_change(slurm, tmp_path):
    table = real("imsvd:RESNET50", "knn:imsvd")
    text = '[slurm]\npartition = "man"\n[slurm.evaluate]\npartition = "main"\naccount = "nobody"\n'
    site, nodes, _, asked = on_cluster(tmp_path, text, table)
    first, second = check_requests(asked, site, nodes)
    assert "no partition 'man': did you mean main?" in first.found
    assert second.found.startswith("SLURM refuses: Invalid account")
    assert second.mend == "change clusters.toml or give --set"


def test_a_silent_controller_fails_only_where_the_cluster_was_asked_for(slurm):
    slurm.answers("sinfo", "", 1)
    sections = read_sections()
    assert not find_place("slurm", sections)[2].ok
    site, _, answer = find_place(None, sections)
    assert (site.name, answer.ok) == ("local", True)
    assert "no SLURM controller answers" in answer.found


def test_without_sbatch_jobs_run_here(monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    site, _, answer = find_place(None, read_sections())
    assert (site.name, answer.ok) == ("local", True)
    with pytest.raises(UserError, match="unknown cluster 'slrum'"):
        find_place("slrum", read_sections())


def test_a_limit_is_compared_with_the_estimate_and_with_the_warning(slurm, tmp_path):
    table = real("imsvd:RESNET50", "knn:imsvd")
    p = replace(table.pretrainings["m-1"], epochs=1000)  # 8.5 h per 100 epochs on 32 V100
    table = replace(table, pretrainings={"m-1": p})
    site, _, _, asked = on_cluster(tmp_path, "", table)
    (check,) = check_limits(asked, site)
    assert check.found.startswith("the longest job takes about 14.2 days in 15 attempts")
    site, _, _, asked = on_cluster(tmp_path, "[slurm.pretrain]\ntimeout_min = 2\n", table)
    (check,) = check_limits(asked, site)
    assert not check.ok
    assert "told to save 120 s before the end of its 2 min" in check.found
