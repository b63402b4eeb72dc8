import json

import pytest

from harness.errors import UserError
from results.cells import Findings
from slurm import monitor
from slurm.ledger import count_retry, open_submission
from slurm.monitor import cancel, watch
from slurm.state import Line, State, describe_job, look, submitted, summary
from tests.results import sample

EVALUATIONS = sample.resolved().evaluations


@pytest.fixture
def runs(tmp_path):
    return tmp_path / "runs"


def note(runs, jobs):
    """What an earlier dispatcher left behind."""
    submission = open_submission(runs)
    (submission.folder / "queue.json").write_text(json.dumps(jobs))
    submission.close()


def states(runs, records=(), failures=()):
    findings = Findings(
        records={key: sample.record(key, 1.0) for key in records}, failures=dict(failures)
    )
    now = look(runs, findings)
    return {key: describe_job(e, now).text for key, e in EVALUATIONS.items()}


def log(folder, step):
    folder.mkdir(parents=True)
    line = {"step": step, "steps": 200, "seconds_left": 100}
    (folder / "log.jsonl").write_text(json.dumps(line) + '\n{"half')


def test_one_squeue_tells_every_job(slurm, runs):
    note(runs, {"m-1": "10_0", "m-1b": "10_1", "lin1": "11_0", "knn1": "11_1", "lin1b": "12"})
    note(runs, {"lin2": "20", "m-2": "19"})
    count_retry(runs, "m-1b", "node failed")
    slurm.answers(
        "squeue",
        "10_0|RUNNING|None\n10_1|PENDING|Resources\n"
        "11_0|PENDING|Dependency\n11_1|PENDING|Dependency\n"
        "12|PENDING|Dependency\n20|RUNNING|None\n",
    )
    log(runs / "m-1", 74)
    log(runs / "m-2" / "evaluations" / "lin2" / "finetune" / "trial", 150)
    assert states(runs, failures={"m-2": "out of memory after 3 attempts"}) == {
        "lin1": "running: pretraining 37%, 2 min left (job 10_0)",
        "knn1": "running: pretraining 37%, 2 min left (job 10_0)",
        "lin1b": "queued: pretraining job 10_1, attempt 2 (Resources)",
        "lin2": "running: evaluation 75%, 2 min left (job 20)",
        "knn2": "failed: pretraining failed: out of memory after 3 attempts",
    }
    assert len(slurm.calls("squeue")) == 1


def test_an_evaluation_alone_tells_why_it_waits_and_a_record_ends_the_matter(slurm, runs):
    note(runs, {"lin1": "11_0", "knn1": "11_1", "lin2": "13", "lin1b": "9"})
    slurm.answers("squeue", "11_0|PENDING|Priority\n11_1|CONFIGURING|None\n9|COMPLETING|None\n")
    assert states(runs, records=["lin2"]) == {
        "lin1": "queued: job 11_0 (Priority)",
        "knn1": "queued: job 11_1 (CONFIGURING)",
        "lin1b": "running: ending (job 9)",
        "lin2": "recorded",
        "knn2": "missing",
    }


def test_without_an_answer_a_submitted_job_is_not_called_missing(slurm, runs):
    note(runs, {"lin1": "11"})
    slurm.answers("squeue", "", 1)
    assert states(runs)["lin1"] == "submitted: job 11; SLURM doesn't answer"


def test_nobody_asks_slurm_about_jobs_of_this_machine(slurm, runs):
    submission = open_submission(runs)
    (submission.folder / "queue.json").write_text('{"lin1": ""}')
    assert states(runs)["lin1"] == "queued: on this machine"
    submission.close()
    assert states(runs)["lin1"] == "missing"
    assert slurm.calls("squeue") == []


def test_cancel_ends_the_living_jobs_of_these_keys_by_one_scancel(slurm, runs):
    note(runs, {"m-1": "9", "lin1": "11_0"})
    note(runs, {"m-1": "10", "lin1": "11_1", "other": "12"})
    submission = open_submission(runs)
    (submission.folder / "queue.json").write_text('{"knn2": ""}')
    slurm.answers("squeue", "".join(f"{j}|RUNNING|None\n" for j in ("10", "11_1", "12", "77")))
    text = cancel(runs, {"m-1", "lin1", "knn1", "knn2"})
    submission.close()
    assert slurm.calls("scancel") == ["10 11_1"]
    assert text.splitlines()[0] == "2 jobs cancelled; records and checkpoints stay."
    assert text.endswith("are left alone (stop it with Ctrl-C): knn2.")
    noted = {key: set(jobs) for key, jobs in submitted(runs).items()}
    assert noted == {"m-1": {"9", "10"}, "lin1": {"11_0", "11_1"}, "other": {"12"}}


def test_cancel_does_nothing_and_says_so_where_nothing_is_queued_or_slurm_is_silent(slurm, runs):
    assert cancel(runs, {"m-1"}).startswith("0 jobs cancelled")
    assert slurm.calls("squeue") == []
    note(runs, {"m-1": "10"})
    slurm.answers("squeue", "", 1)
    with pytest.raises(UserError, match="nothing was cancelled"):
        cancel(runs, {"m-1"})
    assert slurm.calls("scancel") == []


def line(kind, text, seed="0"):
    return Line(row="Row", column="KNN", seed=seed, state=State(kind=kind, text=text))


def test_watching_prints_what_changes_and_ends_with_the_last_job(monkeypatch, capsys):
    looks = iter(
        [
            {"t": [line("queued", "queued: job 1 (Priority)"), line("not run", "not run", "")]},
            {"t": [line("queued", "queued: job 1 (Priority)"), line("not run", "not run", "")]},
            {"t": [line("recorded", "recorded"), line("not run", "not run", "")]},
        ]
    )
    pauses = []
    monkeypatch.setattr(monitor.time, "sleep", pauses.append)
    watch(lambda: next(looks))
    assert capsys.readouterr().out.splitlines() == [
        "t: Row | KNN, seed 0: queued: job 1 (Priority)",
        "1 queued, 1 not run",
        "t: Row | KNN, seed 0: recorded",
        "1 recorded, 1 not run",
    ]
    assert pauses == [10.0, 10.0]


def test_an_interrupt_ends_the_watching_alone(monkeypatch, capsys):
    def interrupt(_):
        raise KeyboardInterrupt

    monkeypatch.setattr(monitor.time, "sleep", interrupt)
    watch(lambda: {"t": [line("running", "running: evaluation")]})
    assert capsys.readouterr().err == "no longer watching; the jobs go on\n"


def test_a_terminal_shows_what_goes_on_before_what_waits():
    lines = [line("recorded", "recorded"), line("queued", "queued: [x]"), line("running", "runs")]
    grid = monitor._grid({"t": lines})
    assert [str(cell) for cell in grid.columns[1].cells] == [
        "1 recorded, 1 running, 1 queued",
        "runs",
        r"queued: \[x]",
    ]
    assert summary(lines) == "1 recorded, 1 running, 1 queued"
