"""Jobs on a SLURM cluster: arrays, dependencies, retries, and waiting without burdening SLURM.

The cluster keeps the jobs whatever happens to this command; calling it again attaches to them.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from harness.errors import UserError
from slurm import clusters, ledger, scheduler
from slurm.clusters import Cluster
from slurm.jobs import Task
from slurm.ledger import Submission
from slurm.postmortem import Verdict, examine
from slurm.progress import Progress

_POLL_SECONDS = 10.0  # between two squeue calls
_TICK_SECONDS = 2.0  # between two looks at the job's files
_GRACE_POLLS = 3  # a shared file system shows a finished job's files late, as does accounting
_MOST_RETRIES = 3  # of a job that was lost through no fault of its own
_MOST_TIMEOUTS = 10**6  # submitit's count of time limits; Task.checkpoint looks for progress
_SUBMIT_SECONDS = 600.0  # a controller that restarts is waited for
_TRANSIENT = ("Unable to contact slurm controller", "Socket timed out", "Connection refused")


def submit(
    tasks: Sequence[Task], cluster: str | Cluster, folder: Path, known: dict[str, str]
) -> dict[str, str]:
    """Submit what the cluster doesn't have yet; returns key → job id of all these tasks.

    Pretrainings that are alike are one array. An evaluation depends on its own pretraining, be it
    an array's element, so that it starts as soon as that one is done.

    Args:
        tasks: Pretrainings and evaluations.
        cluster: Whose settings hold.
        folder: Takes submitit's files.
        known: Jobs that the cluster has already: key → id.

    Raises:
        UserError: The cluster refuses the request.
    """
    jobs = {task.key: known[task.key] for task in tasks if known.get(task.key)}
    new = [task for task in tasks if task.key not in jobs]
    settings = _Settings(cluster)
    arrays = _alike([(None, task) for task in new if task.evaluation is None], settings)
    for array in arrays:
        jobs |= _submit_array(array, settings.of(array[0]), folder, None)
    parents = known | jobs
    evaluations = [
        (parents.get(task.pretraining.key), task) for task in new if task.evaluation is not None
    ]
    for array in _alike(evaluations, settings):
        parent = parents.get(array[0].pretraining.key)
        jobs |= _submit_array(array, settings.of(array[0]), folder, parent)
    return jobs


class _Settings:
    """What sbatch is asked for, by the name of the recipe or the protocol."""

    def __init__(self, cluster: str | Cluster) -> None:
        self.cluster = cluster
        self.known: dict[tuple[str, str], dict[str, Any]] = {}

    def of(self, task: Task) -> dict[str, Any]:
        """The settings of one job."""
        kind = "evaluate" if task.evaluation else "pretrain"
        name = task.evaluation.variant if task.evaluation else task.pretraining.recipe
        if (kind, name) not in self.known:
            self.known[kind, name] = clusters.settings(self.cluster, kind, name=name)
        return self.known[kind, name]


def _alike(tasks: Sequence[tuple[str | None, Task]], settings: _Settings) -> list[list[Task]]:
    """Tasks that can be elements of one array: same settings, same parent."""
    groups: dict[tuple[str | None, str], list[Task]] = {}
    for parent, task in tasks:
        groups.setdefault((parent, repr(settings.of(task))), []).append(task)
    return list(groups.values())


def _submit_array(
    tasks: Sequence[Task], parameters: dict[str, Any], folder: Path, parent: str | None
) -> dict[str, str]:
    import submitit
    from submitit.core.utils import FailedJobError

    executor = submitit.AutoExecutor(
        folder=folder, cluster="slurm", slurm_max_num_timeout=_MOST_TIMEOUTS
    )
    extra: dict[str, Any] = {"requeue": True}
    if parent:
        # without kill-on-invalid-dep the evaluations of a failed pretraining would wait for ever
        extra |= {"dependency": f"afterok:{parent}", "kill-on-invalid-dep": "yes"}
    name = "evaluate" if tasks[0].evaluation else "pretrain"
    executor.update_parameters(
        name=name,
        slurm_additional_parameters=extra,
        slurm_srun_args=_srun_arguments(parameters),
        **parameters,
    )
    deadline = time.monotonic() + _SUBMIT_SECONDS
    while True:
        scheduler.calls["sbatch"] += 1
        try:
            with executor.batch():
                jobs = [executor.submit(task) for task in tasks]
            return {task.key: job.job_id for task, job in zip(tasks, jobs, strict=True)}
        except FailedJobError as error:
            words = str(error).strip()
            if not any(text in words for text in _TRANSIENT) or time.monotonic() > deadline:
                reason = words.splitlines()[-1] if words else "sbatch failed"
                raise UserError(
                    f"the cluster refuses the {name} jobs ({reason}); correct slurm/clusters.toml "
                    "or use another --cluster."
                ) from error
            time.sleep(_POLL_SECONDS)


def _srun_arguments(parameters: dict[str, Any]) -> list[str]:
    # A rank that dies ends the job at once; else the others would wait for it until their timeout.
    arguments = ["--kill-on-bad-exit=1"]
    if "cpus_per_task" in parameters:  # since SLURM 22.05 srun doesn't take it over from sbatch
        arguments.append(f"--cpus-per-task={parameters['cpus_per_task']}")
    return arguments


def run_cluster(
    tasks: Sequence[Task], cluster: str | Cluster, submission: Submission, progress: Progress
) -> dict[str, str]:
    """Submit what is missing and wait for all of it; returns the failed ones' reasons."""
    return _Watch(tasks, cluster, submission, progress).run() if tasks else {}


class _Watch:
    """What one dispatcher knows about its jobs.

    A job is done when its output exists, whatever SLURM says: requeued and resubmitted jobs, and
    those that another dispatcher submitted, need no special case.
    """

    def __init__(
        self,
        tasks: Sequence[Task],
        cluster: str | Cluster,
        submission: Submission,
        progress: Progress,
    ) -> None:
        self.pending = {task.key: task for task in tasks}
        self.cluster = cluster
        self.submission = submission
        self.progress = progress
        self.runs = tasks[0].runs
        self.jobs: dict[str, str] = {}
        self.failed: dict[str, str] = {}
        self.missing: Counter[str] = Counter()  # polls in which a job was nowhere to be seen
        self.hopeless: set[str] = set()  # jobs whose dependency can't be satisfied

    def run(self) -> dict[str, str]:
        self._submit_missing()
        looked = time.monotonic()
        while self.pending:
            if time.monotonic() - looked >= _POLL_SECONDS:
                self._look()
                looked = time.monotonic()
            self._collect()
            self.progress.tick()
            if self.pending:
                time.sleep(_TICK_SECONDS)
        self._say(f"SLURM was asked: {self._calls()}")
        return self.failed

    def _calls(self) -> str:
        return ", ".join(f"{count} {name}" for name, count in sorted(scheduler.calls.items()))

    def _say(self, text: str) -> None:
        self.progress.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def _submit_missing(self) -> None:
        """At the start: attach to what is queued, submit the rest, each once."""
        with ledger.dispatching(self.runs):
            self._collect()  # another dispatcher's jobs may have ended meanwhile
            known = ledger.queued(self.runs)
            for key in self.pending.keys() - known.keys():
                ledger.forget_failure(self.runs, key)
                ledger.forget_retries(self.runs, key)
            self._submit(list(self.pending.values()), known)

    def _submit(self, tasks: list[Task], known: dict[str, str]) -> None:
        self.jobs |= submit(tasks, self.cluster, self.submission.folder, known)
        self.submission.write_queue(self.jobs)
        self.missing.clear()

    def _collect(self) -> None:
        for key in [key for key, task in self.pending.items() if task.is_done]:
            del self.pending[key]
            self.progress.finished(key)

    def _look(self) -> None:
        """Ask SLURM about the jobs, and accounting about those that are gone."""
        queue = scheduler.queue()
        if queue is None:
            return
        gone = []
        for key in self.pending:
            found = queue.get(self.jobs[key])
            if found is None:
                gone.append(key)
            elif found.state == "RUNNING" and key not in self.progress.running:
                self.progress.started(key)
            elif found.reason == "DependencyNeverSatisfied":
                self.hopeless.add(self.jobs[key])
        scheduler.cancel(self.hopeless & queue.keys())
        if gone:
            self._collect()
            self._bury([key for key in gone if key in self.pending])

    def _bury(self, gone: list[str]) -> None:
        """Decide on jobs that have left the queue without an output."""
        ended = scheduler.ended({self.jobs[key] for key in gone})
        again: dict[str, Verdict] = {}
        # pretrainings first: what becomes of them decides on their evaluations
        for key in sorted(gone, key=lambda key: self.pending[key].evaluation is not None):
            parent = self.pending[key].pretraining.key
            if parent in gone and parent in self.pending and parent not in {key, *again}:
                continue  # the pretraining's end isn't known yet
            verdict = self._verdict(key, ended.get(self.jobs[key]))
            if verdict.action in ("retry", "again"):
                again[key] = verdict
            elif verdict.action == "fail":
                self._fail(key, verdict.reason)
        if again:
            self._resubmit(again)

    def _verdict(self, key: str, ended: scheduler.Ended | None) -> Verdict:
        orphaned = self._orphaned(key)
        if orphaned:
            return Verdict(action="fail", reason=orphaned)
        job = self.jobs[key]
        if job in self.hopeless:
            return Verdict(action="again", reason=f"job {job} lost the job that it depended on")
        verdict = examine(job, ended, self.runs)
        if verdict.action != "wait":
            return verdict
        self.missing[key] += 1
        action = "retry" if self.missing[key] > _GRACE_POLLS else "wait"
        return Verdict(action=action, reason=verdict.reason)

    def _orphaned(self, key: str) -> str | None:
        task = self.pending[key]
        parent = task.pretraining.key
        if task.evaluation is None or parent not in self.failed:
            return None
        return f"pretraining {parent} failed: {self.failed[parent]}"

    def _resubmit(self, again: dict[str, Verdict]) -> None:
        """Submit lost jobs again, unless another dispatcher already has."""
        with ledger.dispatching(self.runs):
            known = ledger.queued(self.runs)
            for key, verdict in again.items():
                orphaned = self._orphaned(key)
                if orphaned:
                    self._fail(key, orphaned)
                elif verdict.action == "retry" and key not in known:
                    self._count(key, verdict.reason)
            self._submit([self.pending[key] for key in again if key in self.pending], known)

    def _count(self, key: str, reason: str) -> None:
        count = ledger.count_retry(self.runs, key, reason)
        if count > _MOST_RETRIES:
            self._fail(key, f"{reason}; given up after {_MOST_RETRIES} retries")
            return
        self._say(f"again ({count} of {_MOST_RETRIES}) {self.progress.names[key]}: {reason}")

    def _fail(self, key: str, reason: str) -> None:
        del self.pending[key]
        self.failed[key] = reason
        ledger.note_failure(self.runs, key, reason)
        self.progress.failed_with(key, reason)
