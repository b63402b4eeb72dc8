"""reproduce.py on a cluster that is a handful of scripts: what is asked, refused, submitted."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

import reproduce
from slurm.cluster_jobs import submit
from slurm.clusters import Cluster, read_sections
from slurm.ledger import open_submission
from slurm.plan import make_plan
from slurm.submit import Places, make_tasks
from tests.results import sample


@pytest.fixture
def run(tmp_path, capsys):
    def run(*arguments):
        folders = [f"--{name}={tmp_path / name}" for name in ("runs", "records", "out")]
        status = reproduce.main([*arguments, *folders])
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return run


GOLDEN = Path(__file__).parents[1] / "golden"
OWN = """
[slurm]
partition = "main"
account = "vision"
qos = "long"
constraint = "ib"
exclude = "n7"
setup = ["module load cuda", "source ~/ssl/bin/activate"]
[slurm.pretrain."none:NONE"]
nodes = 2
[slurm.evaluate.knn]
mem_gb = 128
"""


@pytest.mark.parametrize("kind", ["pretrain", "evaluate"])
def test_own_settings_reach_the_script_that_sbatch_gets(slurm, tmp_path, kind):
    own = tmp_path / "own.toml"
    own.write_text(OWN)
    cluster = Cluster(name="slurm", section=read_sections(own=own)["slurm"])
    plan = make_plan([sample.resolved()], {"lin1", "lin1b", "lin2"}, tmp_path)
    places = Places(runs=tmp_path, records=tmp_path)
    jobs = submit(make_tasks(plan, places, None), cluster, tmp_path, {})
    assert jobs == {"m-2": "100_0", "m-1": "100_1", "knn2": "101", "knn1": "102"}
    text = slurm.script({"pretrain": 0, "evaluate": 2}[kind])
    text = text.replace(str(tmp_path), "/runs").replace(sys.executable, "python")
    assert text == (GOLDEN / f"{kind}.own.sbatch").read_text()


FITS = ("--set", "slurm.pretrain.cpus_per_task=2", "--set", "slurm.pretrain.mem_gb=64")


def test_the_plan_on_a_cluster_names_gpus_hours_and_where_they_come_from(slurm, run):
    status, out, _ = run("imsvd/table1", "--scale=paper", "--plan", *FITS)
    assert status == 0
    assert out.splitlines()[-3] == "On cluster slurm: pretraining on 8 GPUs, evaluation on 1 GPU."
    # Table IV's hours per 100 epochs on 32 GPUs: IMSVD 8.5 × 25, VICReg 11 × 13, BT 12 × 12, and
    # 8,800 epochs of others, of which nothing is known, by IMSVD's; of DISSL's trunk nothing is
    assert f"Cost: at least {32 * (8.5 * (25 + 88) + 11 * 13 + 12 * 12):,.0f} GPU-hours" in out
    assert "10 jobs from IMSVD, Table IV: V100" in out
    assert "23 jobs from IMSVD, Table IV: imsvd, V100" in out
    assert "unknown for 35 of 68 jobs." in out
    assert "with 4 at once, if the nodes are free; critical path 17.7 days" not in out
    assert slurm.calls("sbatch")[0].startswith("--test-only")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--set", "slurm.partition=mian"], "no partition 'mian': did you mean main?"),
        (["--set", "slurm.partiton=main"], "unknown key 'partiton': did you mean partition?"),
        (["--set", "slurm.account=nobody"], "SLURM refuses: Invalid account"),
        (["--set", "slurm.pretrain.nodes=9"], "main has 4 nodes of that size: nodes = 9"),
        (["--cluster", "slrum"], "unknown cluster 'slrum': did you mean slurm?"),
        (["--cluster=local", "--set", "slurm.qos=x"], "no effect on cluster local"),
        (["--clusters", "nowhere.toml"], "nowhere.toml cannot be read"),
    ],
)
def test_a_request_that_the_cluster_cannot_run_is_one_sentence_and_status_2(
    slurm, run, tmp_path, arguments, message
):
    status, out, err = run("svib/table1", "--scale=demo", *FITS, *arguments)
    assert (status, out) == (2, "")
    assert message in err
    assert len(err.splitlines()) == 1
    assert all("--test-only" in call for call in slurm.calls("sbatch"))
    assert not (tmp_path / "runs" / ".jobs").exists()


def test_status_and_cancel_know_the_jobs_of_their_own_tables_only(slurm, run, tmp_path):
    run("svib/table1", "--scale=demo", "--plan", "--cluster=local")
    (plan,) = (tmp_path / "runs" / ".plans").glob("*.json")
    keys = sorted(json.loads(plan.read_text())["evaluations"])
    submission = open_submission(tmp_path / "runs")
    jobs = {keys[0]: "5_0", keys[1]: "5_1", "of another table": "6"}
    (submission.folder / "queue.json").write_text(json.dumps(jobs))
    submission.close()
    slurm.answers("squeue", "5_0|PENDING|Priority\n6|PENDING|Priority\n")
    _, out, _ = run("svib/table1", "--scale=demo", "--status")
    assert out.startswith("svib/table1 at scale demo: 1 queued, 25 missing, 2 not run")
    assert "queued: job 5_0 (Priority)" in out
    assert run("svib/table1", "--scale=demo", "--cancel")[1].startswith("1 jobs cancelled")
    assert slurm.calls("scancel") == ["5_0"]


def test_cost_goes_with_render_and_with_nothing_else(slurm, run, tmp_path):
    assert "--status and --cost exclude" in run("svib/table1", "--status", "--cost")[2]
    status, out, _ = run("svib/table1", "--scale=demo", "--render", "--cost")
    assert (status, out.count("No record tells yet what it cost.")) == (0, 1)
    assert "| SVIB (Ours)" in out


def test_status_imports_no_torch(tmp_path):
    code = (
        "import sys, reproduce\n"
        f"reproduce.main(['svib/table1', '--scale=demo', '--{{}}', '--runs={tmp_path}'])\n"
        "sys.exit('torch' in sys.modules)"
    )
    for mode in ("plan", "status"):  # the first fills the cache of resolved tables
        answer = subprocess.run([sys.executable, "-c", code.format(mode)], capture_output=True)
    assert answer.returncode == 0, answer.stderr
