import re
from pathlib import Path

import pytest

from harness.errors import UserError
from slurm import clusters, partitions
from slurm.clusters import find, read_sections, settings

ROOT = Path(__file__).parents[2]


def write(tmp_path, text):
    path = tmp_path / "clusters.toml"
    path.write_text(text)
    return path


def refusal(tmp_path, text, *changes):
    with pytest.raises(UserError) as error:
        read_sections(write(tmp_path, text), changes=changes)
    assert len(str(error.value).splitlines()) == 1
    return str(error.value)


def test_the_shipped_file_gives_pretraining_eight_gpus_and_evaluations_one():
    assert settings("slurm", "pretrain")["tasks_per_node"] == 8
    evaluate = settings("slurm", "evaluate")
    assert (evaluate["gpus_per_node"], evaluate["slurm_array_parallelism"]) == (1, 64)


def test_every_key_is_documented_in_the_file_and_no_other():
    lines = clusters.PATH.read_text().splitlines()
    documented = [m[1] for line in lines if (m := re.match(r"# (\w+) {3,}\S", line))]
    assert tuple(sorted(documented)) == clusters.KEYS


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[slurm]\npartiton = "gpu"\n', "unknown key 'partiton': did you mean partition?"),
        ('[slurm]\nnodes = "two"\n', "nodes = 'two' must be a whole number, 1 or more"),
        ("[slurm]\nnodes = 0\n", "nodes = 0 must be a whole number, 1 or more"),
        ("[slurm]\nmem_gb = true\n", "mem_gb = True must be a whole number"),
        ("[slurm]\npartition = 3\n", "partition = 3 must be a text in quotes"),
        ('[slurm]\nsetup = "module load"\n', "must be a list of shell lines"),
        ("[slurm.pretrian]\nnodes = 1\n", "[slurm.pretrian]: did you mean pretrain?"),
        ("[slurm.evaluate.knn]\nnode = 1\n", "[slurm.evaluate.knn]: unknown key 'node'"),
        ("partition = 'gpu'\n", "'partition' stands outside any section"),
        ("[local]\nnodes = 1\n", "[local] runs without SLURM"),
        ("[slurm\n", "is not valid TOML"),
    ],
)
def test_a_mistake_in_the_file_is_one_sentence(tmp_path, text, message):
    assert message in refusal(tmp_path, text)


def test_settings_of_a_method_or_variant_add_to_those_of_its_kind(tmp_path):
    path = write(
        tmp_path,
        '[c]\npartition = "a"\n[c.pretrain]\nnodes = 1\ngpus_per_node = 8\n'
        '[c.pretrain.dino]\nnodes = 2\n[c.pretrain."dino:VIT_SMALL"]\ngpus_per_node = 4\n'
        "[c.evaluate.coco_maskrcnn]\ngpus_per_node = 8\n",
    )
    cluster = find("c", read_sections(path))
    given = [
        (
            kind,
            name,
            *(settings(cluster, kind, name=name).get(k) for k in ("nodes", "gpus_per_node")),
        )
        for kind, name in (
            ("pretrain", "imsvd:RESNET50"),
            ("pretrain", "dino:RESNET50"),
            ("pretrain", "dino:VIT_SMALL"),
            ("evaluate", "knn:dino"),
            ("evaluate", "coco_maskrcnn:imsvd"),
        )
    ]
    assert [values[2:] for values in given] == [(1, 8), (2, 8), (2, 4), (None, None), (None, 8)]
    assert settings(cluster, "evaluate")["slurm_partition"] == "a"


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ("[c.pretrain.dinoo]", "unknown method in [c.pretrain.dinoo]: did you mean dino?"),
        ('[c.pretrain."dino:VIT_SMAL"]', "unknown recipe 'dino:VIT_SMAL': did you mean dino:VIT_S"),
        ("[c.evaluate.kn]", "unknown protocol in [c.evaluate.kn]: did you mean knn?"),
    ],
)
def test_settings_of_something_that_does_not_exist_are_refused(tmp_path, section, message):
    sections = read_sections(write(tmp_path, f"[c]\n{section}\nnodes = 1\n"))
    with pytest.raises(UserError, match=re.escape(message)):
        find("c", sections)


def test_the_command_line_wins_over_the_users_file_and_that_over_the_shipped_one(
    tmp_path, monkeypatch
):
    own = write(tmp_path, '[slurm]\npartition = "a"\nqos = "long"\n[slurm.pretrain]\nnodes = 2\n')
    monkeypatch.setenv("SSL_CLUSTERS", str(own))
    changes = ("slurm.partition=b", "slurm.pretrain.timeout_min=60", "slurm.account=007")
    merged = find("slurm", read_sections(changes=changes)).values("pretrain")
    shipped = {"gpus_per_node": 8, "array_parallelism": 64}
    given = {"partition": "b", "qos": "long", "nodes": 2, "timeout_min": 60, "account": "007"}
    assert {**shipped, **given}.items() <= merged.items()
    other = tmp_path / "other.toml"
    other.write_text("[slurm]\nqos = 'short'\n")
    assert find("slurm", read_sections(own=other)).values("pretrain")["qos"] == "short"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("partition=debug", "write SECTION.KEY=VALUE"),
        ("slurm.partition", "write SECTION.KEY=VALUE"),
        ("slrum.partition=debug", "unknown section: did you mean slurm?"),
        ("slurm.partiton=debug", "did you mean partition?"),
        ("slurm.nodes=two", "nodes = 'two' must be a whole number"),
        ("slurm.pretrain=3", "unknown key 'pretrain'"),
    ],
)
def test_a_mistake_on_the_command_line_is_one_sentence(tmp_path, change, message):
    assert message in refusal(tmp_path, "[slurm]\n", change)


def test_a_users_file_that_is_not_there_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("SSL_CLUSTERS", str(tmp_path / "none.toml"))
    with pytest.raises(UserError, match=r"none.toml cannot be read \(No such file"):
        read_sections()


def test_an_unknown_cluster_suggests_the_closest_one():
    with pytest.raises(UserError, match="did you mean local"):
        clusters.choose("locla")


def test_slurm_without_sbatch_points_to_local(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert clusters.choose(None) == "local"
    with pytest.raises(UserError, match="--cluster local"):
        clusters.choose("slurm")


def test_slurm_is_chosen_where_a_controller_answers(slurm):
    assert clusters.choose(None) == "slurm"
    assert len(slurm.calls("sinfo")) == 1


def test_without_a_controller_the_choice_is_local_and_slurm_itself_is_refused(slurm, capsys):
    slurm.answers("sinfo", "", 1)
    (slurm.folder / "sinfo").write_text("#!/bin/sh\necho sinfo: error: no contact >&2; exit 1\n")
    assert clusters.choose(None) == "local"
    error = capsys.readouterr().err
    assert "no SLURM controller answers (sinfo: error: no contact): running on this" in error
    with pytest.raises(UserError, match=r"'slurm': no SLURM controller answers .*--cluster local"):
        clusters.choose("slurm")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"partition": "mian"}, "no partition 'mian': did you mean main? choose from main, debug,"),
        ({"partition": "main,nope"}, "no partition 'nope'"),
        ({"partition": "debug,cpu", "mem_gb": 200}, "partition debug or cpu has at most 128000 MB"),
        ({"partition": "old"}, "partition old takes no jobs"),
        (
            {"partition": "debug", "timeout_min": 60},
            "debug ends jobs after 30 min: timeout_min = 60",
        ),
        ({"gpus_per_node": 16}, "main has at most 8 GPUs per node: gpus_per_node = 16"),
        ({"partition": "cpu", "gpus_per_node": 1}, "cpu has at most 0 GPUs per node"),
        (
            {"gpus_per_node": 8, "cpus_per_task": 12},
            "main has at most 64 cores: cpus_per_task = 12 for 8 processes",
        ),
        ({"mem_gb": 600}, "main has at most 512000 MB of memory per node: mem_gb = 600"),
        ({"nodes": 5}, "main has 4 nodes of that size: nodes = 5"),
        (
            {"partition": "main", "account": "nobody"},
            "SLURM refuses: Invalid account or account/partition combination specified "
            "(partition = 'main', account = 'nobody')",
        ),
    ],
)
def test_what_no_node_could_run_is_refused_before_anything_is_submitted(slurm, values, message):
    with pytest.raises(UserError) as error:
        partitions.check("pretraining on cluster slurm", values, partitions.partitions())
    assert message in str(error.value)
    assert len(str(error.value).splitlines()) == 1
    assert all("--test-only" in call for call in slurm.calls("sbatch"))


def test_what_fits_is_shown_to_sbatch_once_with_all_its_options(slurm):
    values = {"partition": "main", "qos": "long", "nodes": 2, "gpus_per_node": 8}
    values |= {"cpus_per_task": 8, "mem_gb": 400, "timeout_min": 1440}
    partitions.check("pretraining", values, partitions.partitions())
    assert slurm.calls("sbatch") == [
        "--test-only --partition=main --qos=long --nodes=2 --ntasks-per-node=8 --gpus-per-node=8 "
        "--cpus-per-task=8 --mem=400G --time=1440 --wrap true"
    ]
    found = partitions.partitions()
    assert partitions.cluster_gpus(found, "") == (32, "v100")
    assert partitions.cluster_gpus(found, "main,debug") == (32, "v100")
    assert partitions.cluster_gpus(found, "cpu") == (0, "")
