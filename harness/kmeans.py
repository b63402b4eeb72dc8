"""K-means of every training image's features, shared out among the processes.

The k-means itself is faiss's, from its first centroids to its handling of empty clusters. Here is
what makes it one computation of many processes: each takes some of the runs (k-means with one K
from one start), the best start of each K wins, and every process searches the nearest centroids of
its share of the rows. Nothing depends on how many processes there are.

Cost of a run: 2 * rows * K * width operations an iteration. ImageNet's 1.28 million rows of 128
numbers in 100,000 clusters take 33 teraflop an iteration: eleven minutes at a core's 50 gigaflop/s,
two seconds on a GPU, if faiss is one that was built for GPUs. An epoch's k-means of PCL are 5.7
petaflop (32 core-hours), of Local Aggregation 2. Processes that are done wait for the others, on
few cores longer than the half hour that DIST_TIMEOUT_S gives them. Memory per process: a copy of
the rows, 4 * rows * width bytes (656 MB), and the centroids of its runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import faiss
import numpy as np
import torch
from threadpoolctl import threadpool_limits
from torch import Tensor

from harness import dist, draws
from harness.errors import UserError
from harness.loader import cores_per_process

# Rows that are searched at a time. faiss's last bits depend on which rows it is given together,
# so that they have to be the same ones whatever the number of processes.
_CHUNK = 16384


class Clusters(NamedTuple):
    """What k-means found, in host memory, equal on all processes."""

    centroids: Tensor  # float32 (K, d), means of their rows, not normalised
    assignments: Tensor  # int32 (n,): each row's nearest centroid
    distances: Tensor  # float32 (n,): its squared Euclidean distance


class _Run(NamedTuple):
    problem: int  # which of the K
    restart: int
    clusters: int  # K


def kmeans(
    rows: Tensor, clusters: Sequence[int], *, seed: int, restarts: int = 1, iterations: int = 20
) -> list[Clusters]:
    """Cluster the same rows once for each K, from random rows as the first centroids.

    The result doesn't depend on the number of threads either: faiss assigns the rows one by one,
    and each mean is summed by one thread.

    Args:
        rows: (n, d), equal on all processes, n >= every K.
        clusters: The K; the same one several times gives independent clusterings.
        seed: Of the first centroids, the same on all processes.
        restarts: Runs per K; the one with the least sum of squared distances wins.
        iterations: Of each run.

    Raises:
        UserError: A row is not finite.
    """
    if not rows.isfinite().all():
        raise UserError(
            "features that are to be clustered are not finite: training has diverged; lower the "
            "learning rate"
        )
    x = np.ascontiguousarray(rows.detach().float().cpu().numpy())
    runs = [_Run(i, j, k) for i, k in enumerate(clusters) for j in range(restarts)]
    objectives = torch.zeros(len(clusters), restarts, dtype=torch.float64, device=dist.device())
    found: dict[_Run, np.ndarray] = {}
    work = 2.0 * x.size * sum(clusters) * iterations * restarts / dist.world()
    with threadpool_limits(threads(work)):
        for run in shares(runs, dist.world())[dist.rank()]:
            objective, found[run] = _train(x, run, seed, iterations)
            objectives[run.problem, run.restart] = objective
        objectives = _sum(objectives).cpu()
        results = []
        for i, k in enumerate(clusters):
            best = _Run(i, int(objectives[i].argmin()), k)
            mine = found.get(best, np.zeros((k, x.shape[1]), np.float32))
            centroids = _sum(torch.from_numpy(mine).to(dist.device())).cpu()
            results.append(Clusters(centroids, *_search(x, centroids.numpy())))
    return results


def shared_seed() -> int:
    """The main process's torch seed, which the trainer sets anew for every step, on all."""
    return dist.broadcast_object(torch.initial_seed())


def shares(runs: Sequence[_Run], processes: int) -> list[list[_Run]]:
    """Runs of each process: the largest first, each to the process that has least to do."""
    loads = [0] * processes
    mine: list[list[_Run]] = [[] for _ in range(processes)]
    for run in sorted(runs, key=lambda run: -run.clusters):
        process = loads.index(min(loads))
        loads[process] += run.clusters
        mine[process].append(run)
    return mine


def threads(operations: float) -> int:
    """One per 20 seconds of work, and at most this process's share of the cores.

    torchrun leaves each process one, far too few for ImageNet. On a busy machine threads that wait
    for each other are many times slower than one, which small problems don't need to risk.
    """
    return min(cores_per_process(), 1 + int(operations / 1e12))


def _index(width: int) -> Any:
    """An empty exact index; on this process's GPU if faiss was built for GPUs."""
    index = faiss.IndexFlatL2(width)
    if dist.device().type == "cuda" and faiss.get_num_gpus():
        return faiss.index_cpu_to_gpus_list(index, gpus=[torch.cuda.current_device()])
    return index


def _train(x: np.ndarray, run: _Run, seed: int, iterations: int) -> tuple[float, np.ndarray]:
    """Sum of squared distances and centroids (K, d) of one run."""
    model = faiss.Kmeans(
        x.shape[1],
        run.clusters,
        niter=iterations,
        seed=draws.torch_seed(seed, run.problem, run.restart) % 2**31,
        min_points_per_centroid=1,  # no warning when there are fewer than 39 …
        max_points_per_centroid=len(x),  # … and all rows, however many there are
    )
    model.index = _index(x.shape[1])
    objective = float(model.train(x))
    assert model.centroids is not None
    return objective, model.centroids


def _search(x: np.ndarray, centroids: np.ndarray) -> tuple[Tensor, Tensor]:
    """Nearest centroid of each row and its squared distance; each process searches some chunks."""
    index = _index(x.shape[1])
    index.add(centroids)
    distances = np.zeros(len(x), np.float32)
    nearest = np.zeros(len(x), np.int32)
    for start in range(dist.rank() * _CHUNK, len(x), dist.world() * _CHUNK):
        part = slice(start, start + _CHUNK)
        d, i = index.search(x[part], 1)
        distances[part], nearest[part] = d[:, 0], i[:, 0]
    device = dist.device()
    return (
        _sum(torch.from_numpy(nearest).to(device)).cpu(),
        _sum(torch.from_numpy(distances).to(device)).cpu(),
    )


@torch.no_grad()
def _sum(x: Tensor) -> Tensor:
    """Sum over processes of what all but one of them have as zeros: exact."""
    return dist.all_reduce_sum(x)
