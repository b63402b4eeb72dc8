"""Jobs on a SLURM cluster: arrays, dependencies, and waiting without burdening the scheduler.

The cluster keeps the jobs whatever happens to this command; calling it again attaches to them.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from slurm.clusters import settings
from slurm.jobs import Task
from slurm.ledger import JOBS, Submission, living, note_failure
from slurm.local import last_words
from slurm.progress import Progress

_POLL_SECONDS = 10.0  # one squeue call each
_GRACE_POLLS = 3  # a shared file system shows a finished job's files late


def submit(
    tasks: Sequence[Task], cluster: str, submission: Submission, known: dict[str, str]
) -> dict[str, str]:
    """Submit what the cluster doesn't have yet; returns key → job id of all these tasks.

    Args:
        tasks: Pretrainings and evaluations.
        cluster: A section of clusters.toml.
        submission: Its folder takes submitit's files.
        known: Jobs that the cluster has already, from an earlier call.
    """
    jobs = {task.key: known[task.key] for task in tasks if known.get(task.key)}
    new = [task for task in tasks if task.key not in jobs]
    pretrainings = [task for task in new if task.evaluation is None]
    jobs |= _submit_array(pretrainings, settings(cluster, "pretrain"), submission.folder, None)
    submission.write_queue(jobs)
    by_parent: dict[str | None, list[Task]] = {}
    for task in new:
        if task.evaluation is not None:
            by_parent.setdefault(jobs.get(task.pretraining.key), []).append(task)
    for parent, group in by_parent.items():
        parameters = settings(cluster, "evaluate")
        jobs |= _submit_array(group, parameters, submission.folder, parent)
        submission.write_queue(jobs)
    return jobs


def _submit_array(
    tasks: Sequence[Task], parameters: dict[str, Any], folder: Path, parent: str | None
) -> dict[str, str]:
    import submitit

    if not tasks:
        return {}
    executor = submitit.AutoExecutor(folder=folder, cluster="slurm")
    if parent:
        # without kill-on-invalid-dep the evaluations of a failed pretraining would wait for ever
        extra = {"dependency": f"afterok:{parent}", "kill-on-invalid-dep": "yes"}
        parameters = parameters | {"slurm_additional_parameters": extra}
    name = "evaluate" if tasks[0].evaluation else "pretrain"
    executor.update_parameters(name=name, **parameters)
    with executor.batch():
        jobs = [executor.submit(task) for task in tasks]
    return {task.key: job.job_id for task, job in zip(tasks, jobs, strict=True)}


def wait(
    tasks: Sequence[Task], jobs: dict[str, str], progress: Progress, runs: Path
) -> dict[str, str]:
    """Wait until the cluster has no more of these jobs; returns the reasons of the failed ones.

    A job counts as done when its output exists, and as failed when the cluster no longer knows it
    and its output doesn't appear; so a requeued job, after a node's crash too, is still waited for.
    """
    pending = {task.key: task for task in tasks}
    missing_polls: dict[str, int] = {}
    failed: dict[str, str] = {}
    while True:
        known = living({jobs[key] for key in pending})
        for key in list(_with_output(pending.values())):
            del pending[key]
            progress.finished(key)
        for key in [key for key in pending if jobs[key] not in known]:
            missing_polls[key] = missing_polls.get(key, 0) + 1
            if missing_polls[key] > _GRACE_POLLS:
                del pending[key]
                failed[key] = _post_mortem(runs, jobs[key])
                note_failure(runs, key, failed[key])
                progress.failed_with(key, failed[key])
        if not pending:
            return failed
        progress.tick()
        time.sleep(_POLL_SECONDS)


def _with_output(tasks: Iterable[Task]) -> list[str]:
    return [task.key for task in tasks if task.output.exists()]


def _post_mortem(runs: Path, job: str) -> str:
    log = next((runs / JOBS).glob(f"*/{job}_0_log.err"), None)
    if log is None:
        return f"job {job} left the cluster before it started"
    return f"job {job} ended without a result; {last_words(log)} (log: {log})"
