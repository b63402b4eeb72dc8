"""What is asked of SLURM, and what its answers mean; no cluster is needed."""

import re
import stat
import sys
from pathlib import Path

import pytest

from harness.errors import UserError
from slurm import ledger, scheduler
from slurm.cluster_jobs import submit
from slurm.postmortem import examine, rank_logs
from slurm.scheduler import Ended
from tests.slurm.fake_jobs import FakeTask

GOLDEN = Path(__file__).parents[1] / "golden"


@pytest.fixture
def fake_slurm(tmp_path, monkeypatch):
    """sbatch keeps the scripts and counts ids; what the other commands print can be set."""
    bin_ = tmp_path / "bin"
    bin_.mkdir()

    def prints(name, text):
        (bin_ / name).write_text(text if text.startswith("#!") else f"#!/bin/sh\necho '{text}'\n")
        (bin_ / name).chmod(stat.S_IRWXU)

    count = f'n=$(ls {bin_} | grep -c script); cp "$1" {bin_}/script.$n'
    prints("sbatch", f"#!/bin/sh\n{count}; echo Submitted batch job $((100+n))\n")
    for name in ("squeue", "sacct", "srun"):
        prints(name, "")
    monkeypatch.setenv("PATH", f"{bin_}:/usr/bin:/bin")
    monkeypatch.delenv("SSL_CLUSTERS", raising=False)
    return bin_, prints


def normalised(script: Path, folder: Path) -> str:
    text = script.read_text().replace(str(folder), "JOBS").replace(sys.executable, "PYTHON")
    return re.sub(r" +$", "", text, flags=re.M)


def test_the_sbatch_scripts_of_pretrainings_and_their_evaluations(fake_slurm, tmp_path):
    bin_, _ = fake_slurm
    tasks = [FakeTask(f"p{i}", tmp_path) for i in range(2)]
    tasks += [FakeTask("e1", tmp_path, parent="p1"), FakeTask("e2", tmp_path, parent="p1")]
    tasks += [FakeTask("e3", tmp_path, parent="q"), FakeTask("e4", tmp_path, parent="r")]
    folder = tmp_path / "jobs"
    jobs = submit(tasks, "slurm", folder, {"e4": "77", "q": "9_3"})
    assert jobs == {"p0": "100_0", "p1": "100_1", "e1": "101_0", "e2": "101_1"} | {
        "e3": "102",
        "e4": "77",
    }
    for number, name in enumerate(("pretrain", "evaluate")):
        golden = (GOLDEN / f"{name}.sbatch").read_text()
        assert normalised(bin_ / f"script.{number}", folder) == golden
    assert "--dependency=afterok:9_3" in (bin_ / "script.2").read_text()


def test_a_refused_request_is_one_sentence_with_the_clusters_words(fake_slurm, tmp_path):
    _, prints = fake_slurm
    prints("sbatch", "#!/bin/sh\necho 'sbatch: error: invalid account' >&2; exit 1\n")
    with pytest.raises(UserError, match=r"refuses the pretrain jobs \(.*invalid account.*clusters"):
        submit([FakeTask("p", tmp_path)], "slurm", tmp_path / "jobs", {})


def test_of_several_ids_of_a_job_the_living_one_counts(fake_slurm, tmp_path):
    _, prints = fake_slurm
    prints("squeue", "7_1|RUNNING|None")
    for name, job in (("a", "7_1"), ("b", "5")):
        (tmp_path / ledger.JOBS / name).mkdir(parents=True)
        (tmp_path / ledger.JOBS / name / "queue.json").write_text(f'{{"key": "{job}"}}')
    assert ledger.queued(tmp_path) == {"key": "7_1"}


def test_accounting_names_array_elements_in_ranges(fake_slurm):
    _, prints = fake_slurm
    lines = ["7_[2-3,5%4]|CANCELLED|0:0", "7_0|NODE_FAIL|0:0", "7_0|COMPLETED|0:0", "8|FAILED|1:0"]
    prints("sacct", "\n".join(lines))
    found = scheduler.ended({"7_0", "7_3", "7_5", "7_9", "8"})
    states = {job: ended.state for job, ended in found.items()}
    assert states == {"7_0": "COMPLETED", "7_3": "CANCELLED", "7_5": "CANCELLED", "8": "FAILED"}


def log(runs, name, text):
    path = runs / ledger.JOBS / "x" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


@pytest.mark.parametrize(
    ("state", "text", "action", "words"),
    [
        ("NODE_FAIL", "step 3", "retry", "its node failed"),
        ("TIMEOUT", "step 3", "retry", "raise timeout_min or signal_delay_s"),
        ("FAILED", "srun: error: n1: task 0: Killed", "retry", "killed from outside"),
        ("OUT_OF_MEMORY", "step 3", "fail", "raise mem_gb"),
        ("FAILED", "slurmstepd: exceeded memory limit (9 > 8)", "fail", "raise mem_gb"),
        ("FAILED", "OSError: [Errno 28] No space left on device", "fail", "no space is left"),
        ("CANCELLED by 0", "step 3", "fail", "was cancelled by root"),
        ("COMPLETED", "step 3", "wait", "ended without a result"),
        ("RUNNING", "step 3", "wait", "ended without a result"),
    ],
)
def test_what_is_done_about_each_end_of_a_job(tmp_path, state, text, action, words):
    log(tmp_path, "8_0_log.err", f"submitit INFO - Starting\n{text}\n")
    verdict = examine("8", Ended(state=state, exit_code="0:0"), tmp_path)
    assert verdict.action == action
    assert words in verdict.reason


def test_an_evaluation_that_lost_its_pretraining_is_not_to_blame(tmp_path):
    ended = Ended(state="CANCELLED", exit_code="0:0")
    assert examine("8", ended, tmp_path).action == "again"


def test_the_rank_that_failed_is_quoted_and_not_those_that_lost_it(tmp_path):
    log(tmp_path, "8_0_log.err", "RuntimeError: [gloo] Connection closed by peer [10.0.0.2]\n")
    log(tmp_path, "8_1_log.err", "[rank1]: harness.errors.UserError: the file is damaged\n")
    log(tmp_path, "8_0_result.pkl", "")
    log(tmp_path, "88_0_log.err", "another job\n")
    assert [path.name for path in rank_logs(tmp_path, "8")] == ["8_0_log.err", "8_1_log.err"]
    verdict = examine("8", Ended(state="FAILED", exit_code="1:0"), tmp_path)
    assert verdict.action == "fail"
    assert verdict.reason.startswith("the file is damaged (log: ")


def test_a_rank_that_was_ended_before_it_could_speak_leaves_the_word_to_the_others(tmp_path):
    silent = "submitit WARNING (2026-01-01 00:00:00,000) - Bypassing signal SIGCONT\n"
    log(tmp_path, "8_0_log.err", silent)
    log(tmp_path, "8_1_log.err", f"UserError: rank 2 of 4 hung: the others waited\n{silent}")
    log(tmp_path, "8_1_result.pkl", "")
    verdict = examine("8", Ended(state="FAILED", exit_code="1:0"), tmp_path)
    assert verdict.reason.startswith("UserError: rank 2 of 4 hung: the others waited (log: ")
