"""Dispatch and survival on a real SLURM: every fault that a cluster has, then the same command."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from harness import rendezvous
from harness.record import load_records
from harness.scale import find_scale
from results.resolve import resolve
from results.table import Column, Row, Table
from slurm import cluster_jobs, ledger, scheduler
from slurm.ledger import open_submission
from slurm.plan import make_plan
from slurm.postmortem import rank_logs
from slurm.progress import Progress
from slurm.submit import Places, dispatch
from tests.slurm.fake_jobs import evaluation, meeting, pretraining, result, steps_done
from tests.slurm.throwaway import lives, until

# 400 take two minutes on two cores, most of it the start of 400 Python processes
CELLS = int(os.environ.get("TEST_CELLS", "60"))
CLUSTERS = """
[slurm]
partition = "main"
array_parallelism = 64
signal_delay_s = 20
[slurm.pretrain]
gpus_per_node = 1
cpus_per_task = 1
mem_gb = 1
timeout_min = 10
[slurm.evaluate]
gpus_per_node = 0
cpus_per_task = 1
mem_gb = 1
timeout_min = 10
"""


@pytest.fixture(autouse=True)
def _quick(cluster, tmp_path, monkeypatch):
    """The cluster's own settings, and answers within seconds."""
    path = tmp_path / "clusters.toml"
    path.write_text(CLUSTERS)
    monkeypatch.setenv("SSL_CLUSTERS", str(path))
    monkeypatch.setattr(cluster_jobs, "_POLL_SECONDS", 1.0)
    monkeypatch.setattr(cluster_jobs, "_TICK_SECONDS", 0.2)


def watch(tasks):
    """What `reproduce.py` does with its jobs; returns the reasons of the failed ones."""
    submission = open_submission(tasks[0].runs)
    try:
        with Progress(len(tasks), {t.key: t.key for t in tasks}, tasks[0].runs) as progress:
            return cluster_jobs.run_cluster(tasks, "slurm", submission, progress)
    finally:
        submission.close()


def started(tasks):
    """`watch` in another thread; if a test fails, the end of its jobs will end it."""
    pool = ThreadPoolExecutor(1)
    future = pool.submit(watch, tasks)
    pool.shutdown(wait=False)
    return future


def run(tasks):
    """`watch` to its end."""
    return started(tasks).result(150)


def steps(task, count):
    """Wait until a job has done so many steps."""
    until(lambda: len(steps_done(task)) >= count, 60, f"{count} steps of {task.key}")


def job_of(task):
    """Its job's id."""
    return ledger.queued(task.runs)[task.key]


def submissions(task):
    """How many jobs were ever submitted for a task."""
    queues = (task.runs / ledger.JOBS).glob("*/queue.json")
    return len({json.loads(path.read_text())[task.key] for path in queues})


def test_evaluations_follow_their_own_pretraining_and_the_scheduler_is_asked_once_per_poll(
    tmp_path,
):
    # ten seconds, within which even a busy machine starts and ends the quick one's jobs
    slow = pretraining(tmp_path, "p-slow", steps=100)
    quick = pretraining(tmp_path, "p-quick", steps=1)
    tasks = [slow, quick]
    tasks += [evaluation(p, f"e{i}-{p.key}") for p in (slow, quick) for i in range(2)]
    scheduler.calls.clear()
    assert run(tasks) == {}
    assert all(task.output.read_text() == result(task) for task in tasks)
    quick_done = tasks[-1].output.stat().st_mtime
    assert quick_done < slow.output.stat().st_mtime < tasks[2].output.stat().st_mtime
    assert scheduler.calls["sbatch"] == 3  # one array of pretrainings, one of evaluations each
    assert scheduler.calls["sacct"] == 0
    script = next(slow.runs.glob(".jobs/*/*_submission.sh")).read_text()
    assert "--requeue" in script


def test_a_killed_worker_is_submitted_again_and_ends_with_the_same_result(tmp_path):
    task = pretraining(tmp_path, "p", steps=15)
    child = evaluation(task, "e")
    running = started([task, child])
    steps(task, 3)
    os.kill(int((task.folder / "pid").read_text()), signal.SIGKILL)
    assert running.result(60) == {}
    assert child.output.read_text() == result(child)
    assert task.output.read_text() == result(task)
    reasons = json.loads((task.runs / ledger.RETRIES / "p.json").read_text())
    assert len(reasons) == 1 and "killed from outside" in reasons[0]


def test_a_cancelled_job_is_reported_and_the_others_finish(tmp_path, cluster):
    task, other = pretraining(tmp_path, "p", steps=60), pretraining(tmp_path, "q", steps=15)
    tasks = [task, evaluation(task, "e"), other, evaluation(other, "f")]
    running = started(tasks)
    steps(task, 3)
    cluster.call("scancel", job_of(task))
    failed = running.result(60)
    assert failed["p"].endswith("was cancelled by root")
    assert failed["e"].startswith("pretraining p failed: job ")
    assert ledger.failures(task.runs).keys() == failed.keys() == {"p", "e"}
    assert run(tasks) == {}
    assert [t.output.read_text() for t in tasks] == [result(t) for t in tasks]


def test_a_preempted_job_saves_its_step_and_resumes_when_the_place_is_free(tmp_path, cluster):
    task = pretraining(tmp_path, "p", steps=30)
    running = started([task])
    steps(task, 3)
    high = cluster.call(
        *("sbatch", "--parsable", "-p", "high", "-N4", "--exclusive", "-o", "/dev/null"),
        *("--wrap", "sleep 3"),
    )
    until(lambda: high.strip() not in cluster.call("squeue", "-h"), 60, "the preempting job")
    assert running.result(60) == {}
    assert steps_done(task) == list(range(1, 31))  # none lost, none done twice
    assert task.output.read_text() == result(task)
    assert submissions(task) == 1


@pytest.mark.slow
def test_two_time_limits_and_an_outside_requeue_lose_no_step(tmp_path, cluster):
    task = pretraining(tmp_path, "p", steps=40)
    running = started([task])
    for done in (3, 10):
        steps(task, done)
        cluster.call("scancel", "--signal=USR2", job_of(task))  # as SLURM does before the limit
        until(lambda: "PENDING" in cluster.call("squeue", "-h", "-o", "%T"), 30, "the requeue")
    steps(task, 20)
    cluster.call("scontrol", "requeue", job_of(task))  # TERM: it saves and goes on to its end
    assert running.result(90) == {}
    assert task.output.read_text() == result(task)
    assert submissions(task) == 1
    assert len(steps_done(task)) - 40 <= 25  # what it did in the seconds that KillWait leaves it


@pytest.mark.slow
def test_a_job_on_a_crashed_node_runs_again_elsewhere(tmp_path, cluster):
    task = pretraining(tmp_path, "p", steps=40)
    running = started([task])
    steps(task, 3)
    node = cluster.call("squeue", "-h", "-o", "%N").strip()
    cluster.kill(f"slurmd-{node}")
    pid = int((task.folder / "pid").read_text())
    os.kill(pid, signal.SIGKILL)
    assert running.result(120) == {}
    cluster.start_node(int(node.rpartition(".")[2]))
    assert task.output.read_text() == result(task)
    assert not lives(pid)


def test_jobs_outlive_a_restart_of_the_controller(tmp_path, cluster):
    task = pretraining(tmp_path, "p", steps=60)
    running = started([task])
    steps(task, 3)
    cluster.kill("slurmctld", signal.SIGTERM)
    steps(task, 12)
    cluster.start_controller()
    assert running.result(60) == {}
    assert steps_done(task) == list(range(1, 61))
    assert submissions(task) == 1


def test_a_job_that_takes_too_much_memory_is_told_what_to_change(tmp_path):
    task = pretraining(tmp_path, "p", megabytes=1500, steps=100)
    failed = run([task, evaluation(task, "e")])
    assert "ran out of memory; raise mem_gb in slurm/clusters.toml (log: " in failed["p"]
    assert submissions(task) == 1


def test_a_failing_job_is_reported_with_its_own_words(tmp_path):
    task = pretraining(tmp_path, "p", words="the loss isn't finite")
    failed = run([task, evaluation(task, "e")])
    assert failed["p"].startswith("ValueError: the loss isn't finite (log: ")
    assert failed["e"] == f"pretraining p failed: {failed['p']}"
    assert submissions(task) == 1


@pytest.fixture
def full_disk(tmp_path):
    """A folder on a disk of one megabyte, and the way to make room."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1200k", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("a full disk needs a tmpfs, which can't be mounted here")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_full_disk_is_named_and_more_room_lets_the_same_command_finish(full_disk):
    task = pretraining(full_disk, "p", steps=15)
    running = started([task])
    steps(task, 2)
    with (full_disk / "filler").open("wb") as filler, pytest.raises(OSError, match="No space"):
        filler.write(bytes(2 << 20))
    reason = str(running.exception(60) or running.result())
    assert "No space left on device" in reason or "no space is left" in reason
    (full_disk / "filler").unlink()
    assert run([task]) == {}
    assert task.output.read_text() == result(task)


DISPATCHER = """
import sys
from pathlib import Path
from harness import rendezvous
from harness.record import load_records
from harness.scale import find_scale
from results.resolve import resolve
from results.table import Column, Row, Table
from slurm import cluster_jobs
from tests.slurm.fake_jobs import evaluation, pretraining
from tests.slurm.test_cluster import run
cluster_jobs._POLL_SECONDS, cluster_jobs._TICK_SECONDS = 1.0, 0.2
tasks = [pretraining(Path(sys.argv[1]), f"p{i}", steps=30) for i in range(3)]
tasks += [evaluation(task, f"e-{task.key}") for task in tasks]
sys.exit(len(run(tasks)))
"""


def dispatcher(folder):
    return subprocess.Popen([sys.executable, "-c", DISPATCHER, str(folder)])


def jobs_of_user(cluster):
    """Ids of all jobs that accounting knows, steps aside."""
    return set(cluster.call("sacct", "-X", "-n", "-P", "-o", "JobID", "--array").split())


def test_a_killed_command_leaves_its_jobs_and_the_next_one_attaches_to_them(tmp_path):
    tasks = [pretraining(tmp_path, f"p{i}", steps=30) for i in range(3)]
    tasks += [evaluation(task, f"e-{task.key}") for task in tasks]
    first = dispatcher(tmp_path)
    steps(tasks[0], 3)
    first.kill()
    first.wait()
    scheduler.calls.clear()
    assert run(tasks) == {}
    assert scheduler.calls["sbatch"] == 0
    assert all(steps_done(task) == list(range(1, task.steps + 1)) for task in tasks)


def test_two_commands_started_together_submit_each_job_once_and_both_finish(tmp_path):
    both = [dispatcher(tmp_path) for _ in range(2)]
    assert [process.wait(120) for process in both] == [0, 0]
    queues = [json.loads(p.read_text()) for p in (tmp_path / "runs/.jobs").glob("*/queue.json")]
    assert len(queues) == 2 and queues[0] == queues[1] and len(queues[0]) == 6
    tasks = [pretraining(tmp_path, f"p{i}", steps=30) for i in range(3)]
    assert all(steps_done(task) == list(range(1, 31)) for task in tasks)


@pytest.fixture
def four_ranks(tmp_path):
    """Pretrainings get two nodes with two processes each."""
    path = tmp_path / "clusters.toml"
    ours = "[slurm.pretrain]\nnodes = 2\ngpus_per_node = 2\ncpus_per_task = 1\nmem_gb = 4"
    theirs = "[slurm.pretrain]\ngpus_per_node = 1\ncpus_per_task = 1\nmem_gb = 1"
    path.write_text(path.read_text().replace(theirs, ours))


def test_two_nodes_of_two_processes_meet_though_the_jobs_port_is_taken(
    tmp_path, four_ranks, cluster
):
    task = meeting(tmp_path, "p")
    before = cluster.call("sbatch", "--parsable", "-o", "/dev/null", "--wrap", "true")
    with socket.socket() as stranger:
        stranger.bind(("", rendezvous.ports_of(int(before) + 1)[0]))
        stranger.listen()  # and never answers
        assert run([task]) == {}
    assert task.output.read_text() == "10.0"
    logs = rank_logs(task.runs, str(int(before) + 1))
    assert len(logs) == 4
    assert "is taken" in logs[0].read_text()


@pytest.mark.slow
def test_a_hung_rank_is_named(tmp_path, four_ranks, monkeypatch):
    monkeypatch.setenv("DIST_TIMEOUT_S", "8")
    failed = run([meeting(tmp_path, "p", hung=2)])
    assert failed["p"].startswith("rank 2 of 4 hung: the others waited for it for 8 s; ")


@pytest.mark.slow
def test_many_cells_on_four_nodes_are_all_done_with_one_squeue_per_poll(tmp_path, monkeypatch):
    monkeypatch.setattr(cluster_jobs, "_POLL_SECONDS", 10.0)
    parents = [pretraining(tmp_path, f"p{i}", steps=1, seconds=0) for i in range(CELLS // 10)]
    tasks = [evaluation(p, f"e{i}-{p.key}", steps=1, seconds=0) for p in parents for i in range(9)]
    scheduler.calls.clear()
    begun = time.monotonic()
    assert run([*parents, *tasks]) == {}
    assert all(task.output.read_text() == result(task) for task in tasks)
    assert scheduler.calls["sbatch"] == 1 + len(parents)
    assert scheduler.calls["squeue"] <= 1 + (time.monotonic() - begun) / 10


TABLE = Table(
    name="tests/small",
    title="One method and its untrained backbone",
    source="this harness",
    columns=(Column(label="KNN-20", protocol="knn:dino", metric="knn_20"),),
    rows=(
        Row(label="Random", published=("",), recipe="vicreg:RESNET50", epochs=0),
        Row(label="VICReg", published=("",), recipe="vicreg:RESNET50", epochs=100),
    ),
)


def table_run(folder, cluster):
    """A real table; returns the metrics of its records and the tensors of its backbones."""
    resolved = resolve(TABLE, find_scale("demo"), seeds=1, fill=False, cache=folder / "plans")
    places = Places(runs=folder / "runs", records=folder / "records")
    plan = make_plan([resolved], load_records(places.records), places.runs)
    assert dispatch(plan, places, cluster, None) == {}
    records = load_records(places.records)
    return {key: record.metrics for key, record in records.items()}, {
        path.parent.name: torch.load(path, weights_only=True)["state"]
        for path in places.runs.glob("*/backbone.pt")
    }


@pytest.mark.slow
def test_an_interrupted_table_on_the_cluster_equals_the_local_one_to_the_last_bit(
    tmp_path, cluster
):
    path = tmp_path / "clusters.toml"
    path.write_text(
        path.read_text()
        .replace("mem_gb = 1", "mem_gb = 4")
        .replace("[slurm.evaluate]", "[slurm.evaluate]\nnodes = 2")
    )
    metrics, weights = table_run(tmp_path / "local", "local")
    disturbed = tmp_path / "slurm"
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(table_run, disturbed, "slurm")
        for step in (10, 20):
            until(lambda step=step: last_step(disturbed) >= step, 120, f"step {step}")
            running = cluster.call("squeue", "-h", "-n", "pretrain", "-t", "R", "-o", "%i")
            cluster.call("scancel", "--signal=USR2", *running.split())
        found, trained = future.result(240)
    assert found == metrics and len(found) == 2
    logs = [path.read_text() for path in disturbed.glob("runs/.jobs/*/*_log.err")]
    assert sum(text.count("resuming vicreg-") for text in logs) == 2
    assert trained.keys() == weights.keys()
    for key, state in weights.items():
        assert all(torch.equal(value, trained[key][name]) for name, value in state.items())


def last_step(folder):
    logs = list((folder / "runs").glob("vicreg-*/log.jsonl"))
    steps = [json.loads(line)["step"] for log in logs for line in log.read_text().splitlines()]
    return max(steps, default=0)
