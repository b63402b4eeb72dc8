import pytest
import torch
from sklearn.cluster import KMeans
from torch.nn import functional as F

from harness.errors import UserError
from harness.kmeans import _Run, kmeans, shares, threads
from tests.gloo import run_on
from tests.golden.inputs import waves


def blobs(clusters: int, each: int, width: int) -> torch.Tensor:
    """Rows within .02 of `clusters` unit vectors, blob after blob."""
    centres = F.normalize(waves(clusters, width, phase=0.4), dim=1).repeat_interleave(each, dim=0)
    return centres + 0.01 * waves(clusters * each, width, phase=1.1) / width**0.5


def test_separate_blobs_are_found_and_their_means_are_the_centroids():
    rows = blobs(6, 30, 8)
    (found,) = kmeans(rows, [6], seed=3, restarts=10)
    labels = found.assignments.view(6, 30)
    assert (labels == labels[:, :1]).all() and labels[:, 0].unique().numel() == 6
    means = rows.view(6, 30, 8).mean(dim=1).float()
    torch.testing.assert_close(found.centroids[labels[:, 0].long()], means, rtol=0, atol=1e-6)
    expected = (rows.float() - found.centroids[found.assignments.long()]).square().sum(dim=1)
    torch.testing.assert_close(found.distances, expected, rtol=0, atol=1e-6)


def test_the_inertia_is_scikit_learns():
    rows = blobs(5, 40, 16)
    (found,) = kmeans(rows, [5], seed=0, restarts=10)
    peer = KMeans(5, n_init=10, random_state=0).fit(rows.numpy())
    assert found.distances.double().sum().item() == pytest.approx(peer.inertia_, rel=1e-4)


def test_more_restarts_never_give_a_worse_clustering():
    rows = F.normalize(waves(400, 6, phase=0.2), dim=1)
    sums = [
        kmeans(rows, [40], seed=1, restarts=n, iterations=30)[0].distances.double().sum().item()
        for n in (1, 4, 8)
    ]
    assert sums[0] > sums[1] > sums[2]


def test_one_k_several_times_gives_different_clusterings_and_a_seed_the_same_ones():
    rows = F.normalize(waves(300, 6, phase=0.2), dim=1)
    first, second = kmeans(rows, [20, 20], seed=1)
    assert not torch.equal(first.assignments, second.assignments)
    again, _ = kmeans(rows, [20, 20], seed=1)
    other, _ = kmeans(rows, [20, 20], seed=2)
    assert torch.equal(first.centroids, again.centroids)
    assert not torch.equal(first.centroids, other.centroids)


def test_the_number_of_threads_changes_nothing(monkeypatch):
    rows = F.normalize(torch.randn(5000, 24, generator=torch.Generator().manual_seed(0)), dim=1)
    results = []
    for count in (1, 3):
        monkeypatch.setattr("harness.kmeans.threads", lambda operations, count=count: count)
        results.append(kmeans(rows, [200], seed=1, iterations=5)[0])
    for one, other in zip(*results, strict=True):
        assert torch.equal(one, other)


def test_small_problems_take_one_thread_and_large_ones_all_cores(monkeypatch):
    monkeypatch.setattr("harness.kmeans.cores_per_process", lambda: 6)
    assert [threads(work) for work in (1e9, 3.5e12, 1e15)] == [1, 4, 6]


def test_as_many_clusters_as_rows_are_the_rows():
    rows = waves(7, 3, phase=0.1)
    (found,) = kmeans(rows, [7], seed=0)
    assert sorted(found.assignments.tolist()) == list(range(7))
    assert found.distances.max() < 1e-6


def test_rows_that_are_not_finite_are_refused():
    rows = waves(9, 3, phase=0.1)
    rows[4, 1] = float("nan")
    with pytest.raises(UserError, match="not finite: training has diverged"):
        kmeans(rows, [2], seed=0)


def test_faiss_says_nothing_about_few_rows_per_cluster(capfd):
    kmeans(waves(30, 3, phase=0.1), [10], seed=0)
    assert capfd.readouterr() == ("", "")


def test_large_runs_are_shared_out_first_to_whoever_has_least_to_do():
    runs = [_Run(i, j, k) for i, k in enumerate((25, 50, 100)) for j in range(2)]
    loads = [sorted(run.clusters for run in mine) for mine in shares(runs, 3)]
    assert loads == [[25, 100], [25, 100], [50, 50]]
    assert [sorted(mine) for mine in shares(runs, 1)] == [runs]


def clustered() -> list[torch.Tensor]:
    rows = F.normalize(waves(700, 8, phase=0.2), dim=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("harness.kmeans._CHUNK", 128)
        found = kmeans(rows, [10, 30, 20], seed=4, restarts=3, iterations=10)
    return [tensor for clusters in found for tensor in clusters]


def test_two_processes_find_what_one_finds_to_the_last_bit(tmp_path):
    alone = clustered()
    for rank in run_on(2, clustered, tmp_path):
        assert all(torch.equal(a, b) for a, b in zip(rank, alone, strict=True))
