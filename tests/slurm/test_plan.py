from slurm.plan import describe_plan, duration, images_processed, make_plan
from slurm.submit import Places, make_tasks
from tests.results import sample


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
    lines = describe_plan(make_plan([sample.resolved()], {}, tmp_path), {}, 2)
    assert "40,000 crops to pretrain on in all." in lines
    assert lines[-1].startswith("Time: unknown for 8 of 8 jobs")


def test_the_time_is_estimated_from_earlier_records(tmp_path):
    plan = make_plan([sample.resolved()], {}, tmp_path)
    lines = describe_plan(plan, {"x": sample.record("x", 1.0)}, 2)
    # 40,000 crops at 8,000 in 20 s, and five evaluations of 5 s
    assert lines[-1] == "Time, from earlier records: 2 min of jobs, 62 s with 2 at once."


def test_tasks_come_longest_pretraining_first_with_its_evaluations_behind_it(tmp_path):
    plan = make_plan([sample.resolved()], {}, tmp_path)
    tasks = make_tasks(plan, Places(runs=tmp_path, records=tmp_path), None)
    assert [t.key for t in tasks] == ["m-2", "lin2", "knn2", "m-1", "lin1", "knn1", "m-1b", "lin1b"]


def test_durations_read_like_durations():
    assert [duration(s) for s in (45, 720, 12_000, 440_640)] == [
        *("45 s", "12 min", "3 h 20 min", "5.1 days")
    ]
