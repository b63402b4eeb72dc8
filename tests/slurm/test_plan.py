from dataclasses import replace

import pytest

from harness.record import Cost
from slurm.clusters import Cluster
from slurm.cost import (
    Resources,
    duration,
    images_processed,
    pretrain_estimate,
    published_runs,
    wall_seconds,
)
from slurm.jobs import Task
from slurm.plan import describe_costs, describe_plan, estimate_costs, make_plan
from slurm.sites import Site
from slurm.submit import Places, make_tasks
from tests.results import sample

TWO_CORES = Site(name="local", slots=2)


def test_a_job_that_two_tables_need_is_planned_once(tmp_path):
    plan = make_plan([sample.resolved(), sample.resolved()], {}, tmp_path)
    assert set(plan.pretrainings) == {"m-1", "m-1b", "m-2"}
    assert {k: [e.key for e in v] for k, v in plan.by_pretraining.items()} == {
        "m-2": ["lin2", "knn2"],
        "m-1": ["lin1", "knn1"],
        "m-1b": ["lin1b"],
    }
    assert plan.jobs == 8


def test_deleting_one_record_plans_that_evaluation_alone(tmp_path):
    (tmp_path / "m-1").mkdir()
    (tmp_path / "m-1" / "backbone.pt").touch()
    plan = make_plan([sample.resolved()], {"lin1", "lin1b", "lin2", "knn2"}, tmp_path)
    assert (list(plan.pretrainings), list(plan.evaluations), plan.recorded) == ([], ["knn1"], 4)


def test_nothing_is_planned_when_every_evaluation_has_its_record(tmp_path):
    plan = make_plan([sample.resolved()], set(sample.resolved().evaluations), tmp_path)
    assert plan.jobs == 0
    assert plan.by_pretraining == {}


def test_the_cost_counts_epochs_times_images_times_views(tmp_path):
    assert images_processed(sample.pretraining("m-1", 3)) == 3 * 4000 * 2
    plan = make_plan([sample.resolved()], {}, tmp_path)
    lines = describe_plan(estimate_costs(plan, TWO_CORES, {}))
    assert "40,000 crops to pretrain on in all." in lines
    assert lines[-2:] == [
        "On this machine: pretraining on CPU, evaluation on CPU.",
        "Cost: unknown (no record of a similar run, nothing published).",
    ]


def test_the_time_is_estimated_from_earlier_records(tmp_path):
    plan = make_plan([sample.resolved()], {}, tmp_path)
    lines = describe_costs(estimate_costs(plan, TWO_CORES, {"x": sample.record("x", 1.0)}))
    # 40,000 crops at 8,000 in 20 s, and five evaluations of 5 s
    assert lines[1:] == [
        "Cost: about 0.035 CPU-hours; estimated: 8 jobs from 1 record.",
        "Time: about 65 s with 2 at once; critical path 65 s.",
    ]


def test_what_the_records_do_not_tell_stays_unknown(tmp_path):
    plan = make_plan([sample.resolved()], {}, tmp_path)
    record = replace(sample.record("x", 1.0), protocol={"class": "protocols.linear.Linear"})
    lines = describe_costs(estimate_costs(plan, TWO_CORES, {"x": record}))
    assert lines[1].endswith("3 jobs from 1 record; unknown for 5 of 8 jobs.")
    assert lines[2] == "Time: at least 60 s with 2 at once; critical path 60 s."


def test_a_plan_of_which_only_the_untrained_network_is_known_costs_nobody_knows_what(tmp_path):
    table = sample.resolved()
    untrained = replace(table.pretrainings["m-1b"], epochs=0)
    table = replace(table, pretrainings={**table.pretrainings, "m-1b": untrained})
    lines = describe_costs(estimate_costs(make_plan([table], {}, tmp_path), TWO_CORES, {}))
    assert lines[1] == "Cost: unknown (no record of a similar run, nothing published)."


def test_records_on_other_hardware_tell_nothing_and_speed_grows_with_the_gpus():
    job = sample.pretraining("m-1", 3)
    cost = Cost(seconds=20.0, processes=2, gpus=2, hardware="NVIDIA A100-SXM4-80GB")
    record = replace(sample.record("x", 1.0), pretrain_cost=cost)
    on = {gpu: Resources(gpus=8, processes=8, gpu=gpu) for gpu in ("a100", "v100", "")}
    found = {gpu: pretrain_estimate(job, there, [record]) for gpu, there in on.items()}
    assert found["v100"] is None
    assert pretrain_estimate(job, Resources(), [record]) is None
    # 24,000 crops at 200 a second and GPU
    assert found["a100"].seconds == found[""].seconds == pytest.approx(15.0)
    assert found["a100"].gpu_hours == pytest.approx(8 * 15 / 3600)


def paper_job(method, backbone, views, epochs):
    job = sample.pretraining(f"{method}-1", epochs)
    return replace(job, dataset="imagenet", backbone=backbone, views=views)


def test_without_records_the_papers_hours_are_taken_and_named():
    eight = Resources(gpus=8, processes=8, gpu="v100")
    imsvd = pretrain_estimate(paper_job("imsvd", "resnet50", 2, 1000), eight, [])
    assert imsvd.source == "IMSVD, Table IV: V100"
    assert imsvd.gpu_hours == pytest.approx(8.5 * 32 * 10)  # Table IV: 8.5 h per 100 on 32 GPUs
    other = pretrain_estimate(paper_job("vicreg", "resnet50", 2, 9), replace(eight, gpu="a100"), [])
    assert other.source == "IMSVD, Table IV: V100, not a100"
    svib = pretrain_estimate(paper_job("svib", "vit_small_16", 12, 300), eight, [])
    assert svib.source == "DINO, Table 8: dino, GPU not named"
    assert svib.gpu_hours == pytest.approx(72.6 * 16)
    nowhere = [
        (paper_job("imsvd", "resnet18", 2, 100), eight),
        (paper_job("dino", "vit_small_16", 10, 100), eight),
        (replace(paper_job("imsvd", "resnet50", 2, 100), scale="cifar10"), eight),
        (paper_job("imsvd", "resnet50", 2, 100), Resources()),
    ]
    assert [pretrain_estimate(job, there, []) for job, there in nowhere] == [None] * 4


def test_a_machine_without_gpus_is_told_what_the_papers_experiments_cost_on_them(tmp_path):
    table = sample.resolved()
    job = replace(paper_job("imsvd", "resnet50", 2, 100), key="m-2")
    table = replace(table, pretrainings={**table.pretrainings, "m-2": job})
    lines = describe_costs(estimate_costs(make_plan([table], {}, tmp_path), TWO_CORES, {}))
    # 8.5 hours of 32 GPUs
    assert lines[1] == (
        "Cost: unknown here; on GPUs at least 272 GPU-hours; estimated: 1 job from IMSVD, Table "
        "IV: imsvd, V100; unknown for 7 of 8 jobs."
    )


def test_the_published_throughput_follows_from_the_stated_hours():
    found = {run.method: round(run.images_per_s) for run in published_runs()}
    assert found == {"imsvd": 131, "vicreg": 101, "barlow_twins": 93, "dino": 92, "swav": 91}


def test_a_clusters_plan_tells_gpus_hours_and_wall_time(tmp_path):
    cluster = Cluster(
        name="big",
        section={
            "pretrain": {"nodes": 2, "gpus_per_node": 8, "array_parallelism": 2},
            "evaluate": {"gpus_per_node": 1},
        },
    )
    record = replace(
        sample.record("x", 1.0),
        pretrain_cost=Cost(seconds=1600.0, processes=1, gpus=1, hardware="NVIDIA V100"),
        cost=Cost(seconds=3600.0, processes=1, gpus=1, hardware="NVIDIA V100"),
    )
    site = Site(name="big", slots=2, gpu="v100", cluster=cluster)
    plan = make_plan([sample.resolved()], {}, tmp_path)
    # pretrainings of 300, 100 and 100 s on 16 GPUs, and five evaluations of an hour
    assert describe_costs(estimate_costs(plan, site, {"x": record})) == [
        "On cluster big: pretraining on 16 GPUs, evaluation on 1 GPU.",
        "Cost: about 7.2 GPU-hours; estimated: 8 jobs from 1 record.",
        "Time: about 65 min with 2 at once, if the nodes are free; critical path 65 min.",
    ]


def test_wall_time_counts_waiting_for_slots():
    groups = [(10.0, [2.0, 2.0]), (4.0, [1.0]), (4.0, [])]
    assert wall_seconds(groups, 1, shared=True) == 23.0
    assert wall_seconds(groups, 2, shared=True) == 12.0  # 10 beside 4+1+4, then 2 beside 2
    assert wall_seconds(groups, 2, shared=False) == 12.0
    assert wall_seconds(groups, 1, shared=False) == 18.0
    assert wall_seconds([], 2, shared=False) == wall_seconds([], 2, shared=True) == 0.0


def test_tasks_come_longest_pretraining_first_with_its_evaluations_behind_it(tmp_path):
    plan = make_plan([sample.resolved()], {}, tmp_path)
    tasks = make_tasks(plan, Places(runs=tmp_path, records=tmp_path), None)
    assert [t.key for t in tasks] == ["m-2", "lin2", "knn2", "m-1", "lin1", "knn1", "m-1b", "lin1b"]


def test_durations_read_like_durations():
    assert [duration(s) for s in (45, 720, 12_000, 440_640)] == [
        *("45 s", "12 min", "3 h 20 min", "5.1 days")
    ]


def test_a_trunk_that_was_not_kept_on_the_way_is_trained_for_again(tmp_path):
    table = sample.resolved()
    early = replace(table.evaluations["knn1"], key="knn1-40", after=40)
    cells = (*table.cells, replace(table.cells[1], evaluations=("knn1-40",)))
    table = replace(table, cells=cells, evaluations={**table.evaluations, "knn1-40": early})
    (tmp_path / "m-1").mkdir()
    (tmp_path / "m-1" / "backbone.pt").touch()
    recorded = {"lin1", "lin1b", "knn1", "lin2", "knn2"}
    plan = make_plan([table], recorded, tmp_path)
    assert (list(plan.pretrainings), list(plan.evaluations)) == (["m-1"], ["knn1-40"])
    lines = describe_plan(estimate_costs(plan, TWO_CORES, {}))
    assert lines[2] == "  evaluate knn1-40  protocols.knn@1 after 40 % of the steps"
    (tmp_path / "m-1" / "backbone-40.pt").touch()
    plan = make_plan([table], recorded, tmp_path)
    assert (list(plan.pretrainings), list(plan.trained)) == ([], ["m-1"])


def test_a_pretraining_is_done_when_all_that_it_leaves_is_there(tmp_path):
    job = replace(sample.pretraining("m-1", 3), snapshots=(40,))
    task = Task(pretraining=job, runs=tmp_path, records=tmp_path)
    (tmp_path / "m-1").mkdir()
    (tmp_path / "m-1" / "backbone.pt").touch()
    assert task.output.exists() and not task.is_done
    (tmp_path / "m-1" / "backbone-40.pt").touch()
    assert task.is_done
