import stat
from types import SimpleNamespace

import pytest

from harness.errors import UserError
from slurm import clusters
from slurm.cluster_jobs import submit, wait
from slurm.ledger import open_submission
from slurm.progress import Progress
from tests.slurm.fake_jobs import FakeTask


@pytest.fixture
def fake_slurm(tmp_path, monkeypatch):
    """sbatch keeps the scripts and counts ids, squeue knows no job."""
    bin_ = tmp_path / "bin"
    bin_.mkdir()
    scripts = {
        "sbatch": f'n=$(ls {bin_} | grep -c script); cp "$1" {bin_}/script.$n;'
        "echo Submitted batch job $((100+n))",
        "squeue": "true",
        "srun": "true",
        "sacct": "true",
    }
    for name, text in scripts.items():
        (bin_ / name).write_text(f"#!/bin/sh\n{text}\n")
        (bin_ / name).chmod(stat.S_IRWXU)
    monkeypatch.setenv("PATH", f"{bin_}:/usr/bin:/bin")
    return bin_


def write(tmp_path, text):
    path = tmp_path / "clusters.toml"
    path.write_text(text)
    return path


def test_the_shipped_file_gives_pretraining_eight_gpus_and_evaluations_one():
    assert clusters.settings("slurm", "pretrain")["tasks_per_node"] == 8
    evaluate = clusters.settings("slurm", "evaluate")
    assert (evaluate["gpus_per_node"], evaluate["slurm_array_parallelism"]) == (1, 64)


def test_an_unknown_key_suggests_the_closest_one(tmp_path):
    path = write(tmp_path, '[slurm]\npartiton = "gpu"\n')
    with pytest.raises(UserError, match="did you mean partition"):
        clusters.settings("slurm", "pretrain", path)


def test_a_value_of_the_wrong_type_names_the_rule(tmp_path):
    path = write(tmp_path, '[slurm]\nnodes = "two"\n')
    with pytest.raises(UserError, match="nodes = 'two' must be a whole number"):
        clusters.settings("slurm", "evaluate", path)


def test_an_unknown_cluster_suggests_the_closest_one():
    with pytest.raises(UserError, match="did you mean local"):
        clusters.choose("locla")


def test_slurm_without_sbatch_points_to_local(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert clusters.choose(None) == "local"
    with pytest.raises(UserError, match="--cluster local"):
        clusters.choose("slurm")


def test_slurm_is_chosen_where_there_is_an_sbatch(fake_slurm):
    assert clusters.choose(None) == "slurm"


def test_evaluations_wait_for_their_pretraining_and_known_jobs_are_not_submitted_again(
    fake_slurm, tmp_path
):
    runs = tmp_path / "runs"
    tasks = [
        FakeTask("p", runs),
        FakeTask("e1", runs, parent="p"),
        FakeTask("e2", runs, parent="p"),
    ]
    tasks += [FakeTask("e3", runs, parent="q")]
    submission = open_submission(runs)
    jobs = submit(tasks, "slurm", submission, {"e3": "77"})
    submission.close()
    assert jobs == {"p": "100", "e1": "101_0", "e2": "101_1", "e3": "77"}
    pretrain, evaluate = ((fake_slurm / f"script.{i}").read_text() for i in range(2))
    assert "#SBATCH --gpus-per-node=8" in pretrain
    assert "dependency" not in pretrain
    assert "#SBATCH --dependency=afterok:100" in evaluate
    assert "#SBATCH --kill-on-invalid-dep=yes" in evaluate
    assert "#SBATCH --array=0-1%2" in evaluate


def test_a_job_that_the_cluster_forgot_without_an_output_has_failed(
    fake_slurm, tmp_path, monkeypatch
):
    monkeypatch.setattr("slurm.cluster_jobs._POLL_SECONDS", 0.01)
    (tmp_path / "done").touch()
    (tmp_path / ".jobs" / "x").mkdir(parents=True)
    (tmp_path / ".jobs" / "x" / "8_0_log.err").write_text("slurmstepd: out of memory\n")
    tasks = [SimpleNamespace(key=k, output=tmp_path / k) for k in ("done", "lost", "never")]
    jobs = {"done": "7", "lost": "8", "never": "9"}
    with Progress(3, {k: k for k in jobs}, tmp_path) as progress:
        failed = wait(tasks, jobs, progress, tmp_path)
    assert failed["lost"].startswith("job 8 ended without a result; slurmstepd: out of memory")
    assert failed["never"] == "job 9 left the cluster before it started"
    assert set(failed) == {"lost", "never"}
