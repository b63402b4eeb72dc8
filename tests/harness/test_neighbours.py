from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from harness import dist, nearest
from harness.errors import UserError
from harness.neighbours import Bank, Vote, knn_predict
from tests.gloo import run_on


def brute_force(
    bank: Tensor, labels: Tensor, queries: Tensor, *, k: int, temperature: float, classes: int
) -> Tensor:
    """All similarities in fp64, a loop over queries, ties to the lower row and class."""
    similarities = queries.double() @ bank.double().T
    predictions = []
    for row in similarities:
        ordered = sorted(range(len(bank)), key=lambda i: (-round(row[i].item(), 12), i))
        votes = [0.0] * classes
        for i in ordered[:k]:
            votes[int(labels[i])] += torch.exp(row[i] / temperature).item()
        predictions.append(max(range(classes), key=lambda c: (round(votes[c], 6), -c)))
    return torch.tensor(predictions)


def random_problem(*, bank: int = 700, queries: int = 60, d: int = 24, classes: int = 5):
    generator = torch.Generator().manual_seed(3)
    rows = normalize(torch.randn((bank, d), generator=generator), dim=1)
    labels = torch.randint(classes, (bank,), generator=generator)
    asked = normalize(torch.randn((queries, d), generator=generator), dim=1)
    return rows, labels, asked


def predict(bank: Tensor, labels: Tensor, queries: Tensor, *, k: tuple[int, ...], **settings):
    settings = {"temperature": 0.07, "classes": 5, "backend": None} | settings
    backend = settings.pop("backend")
    return knn_predict(Bank(bank, labels), queries, Vote(k=k, **settings), backend=backend)


both_backends = pytest.mark.parametrize("backend", ["torch", "faiss"])


@both_backends
def test_all_k_agree_with_brute_force_in_double_precision(backend):
    bank, labels, queries = random_problem()
    found = predict(bank, labels, queries, k=(200, 1, 10, 700), backend=backend)
    assert list(found) == [200, 1, 10, 700]
    for k, predicted in found.items():
        expected = brute_force(bank, labels, queries, k=k, temperature=0.07, classes=5)
        assert torch.equal(predicted, expected), k


def tied_problem():
    """A third of the bank is one image with every label: ties by the hundred at each k."""
    bank, labels, queries = random_problem()
    bank[100:350] = bank[99]
    queries[::3] = bank[99]
    return bank, labels, queries


@both_backends
@pytest.mark.parametrize("rows", [(1, 7), (13, 64), (60, 700), (1024, 8192)])
def test_predictions_are_the_same_however_bank_and_queries_are_cut(monkeypatch, rows, backend):
    bank, labels, queries = tied_problem()
    expected = {
        k: brute_force(bank, labels, queries, k=k, temperature=0.07, classes=5) for k in (3, 20, 99)
    }
    monkeypatch.setattr(nearest, "QUERY_ROWS", rows[0])
    monkeypatch.setattr(nearest, "BANK_ROWS", rows[1])
    found = predict(bank, labels, queries, k=(3, 20, 99), backend=backend)
    for k in expected:
        assert torch.equal(found[k], expected[k]), k


@both_backends
def test_images_that_differ_by_less_than_single_precision_vote_as_in_double_precision(backend):
    bank, labels, queries = random_problem()
    # Fifty near-copies of each query, as far from it as single precision can be wrong.
    copies = queries.repeat_interleave(50, dim=0)
    generator = torch.Generator().manual_seed(5)
    copies = copies + 3e-4 * torch.randn(copies.shape, generator=generator)
    bank = torch.cat([bank, normalize(copies, dim=1)])
    labels = torch.randint(5, (len(bank),), generator=generator)
    found = predict(bank, labels, queries, k=(3, 20, 45), backend=backend)
    for k, predicted in found.items():
        expected = brute_force(bank, labels, queries, k=k, temperature=0.07, classes=5)
        assert torch.equal(predicted, expected), k


@both_backends
@pytest.mark.parametrize("keep", [1, 17, 100, 700])
def test_the_search_finds_what_sorting_all_similarities_finds(monkeypatch, backend, keep):
    bank, _, queries = random_problem()
    monkeypatch.setattr(nearest, "BANK_ROWS", 333)
    found, places = nearest.search_by(backend)(bank, queries, keep)
    expected = (queries @ bank.T).sort(dim=1, descending=True).values[:, :keep]
    assert torch.allclose(found, expected, rtol=0, atol=5e-7)
    assert torch.allclose((queries @ bank.T).gather(1, places), found, rtol=0, atol=5e-7)
    assert all(len(set(row)) == keep for row in places.tolist())


@both_backends
@pytest.mark.parametrize("tied", [False, True])
def test_the_exact_search_is_a_stable_sort_in_double_precision(backend, tied):
    bank, _, queries = tied_problem() if tied else random_problem()
    similarities = (queries.double() @ bank.double().T * 2**40).round() / 2**40
    expected, order = similarities.sort(dim=1, descending=True, stable=True)
    found, places = nearest.nearest_exactly(bank, queries, 30, nearest.search_by(backend))
    assert torch.equal(places, order[:, :30]) and torch.equal(found, expected[:, :30])


def _on_shards(wanted: str) -> list:
    bank, labels, queries = tied_problem()
    share = slice(dist.rank(), None, dist.world())
    # The last process has no query, and a bank of four has fewer rows on a process than k.
    asked = queries[: 0 if dist.rank() == dist.world() - 1 else 30 * (dist.rank() + 1)]
    few = {"many": len(bank), "few": 4}[wanted]
    shard = Bank(bank[:few][share], labels[:few], torch.arange(few)[share])
    k = (3, 20, 99) if wanted == "many" else (1, 4)
    found = knn_predict(shard, asked, Vote(k=k, temperature=0.07, classes=5))
    whole = predict(bank[:few], labels[:few], asked, k=k)
    return [[found[each], whole[each]] for each in k]


@pytest.mark.parametrize(("processes", "wanted"), [(2, "many"), (3, "few")])
def test_a_bank_in_shards_gives_the_predictions_of_the_whole(tmp_path, processes, wanted):
    results = run_on(processes, _on_shards, tmp_path, wanted)
    assert [len(result[0][0]) for result in results] == {2: [30, 0], 3: [30, 60, 0]}[processes]
    for result in results:
        for sharded, whole in result:
            assert torch.equal(sharded, whole)


def test_identical_images_vote_in_the_order_of_the_bank():
    bank = normalize(torch.ones((9, 4)), dim=1)
    labels = torch.tensor([2, 1, 1, 0, 0, 0, 0, 0, 0])
    found = predict(bank, labels, bank[:2], k=(1, 3, 9), classes=3)
    assert {k: p.tolist() for k, p in found.items()} == {1: [2, 2], 3: [1, 1], 9: [0, 0]}


def test_equal_votes_go_to_the_lower_class():
    bank = torch.eye(4)
    labels = torch.tensor([3, 1, 2, 0])
    queries = normalize(torch.ones((1, 4)), dim=1)
    found = predict(bank, labels, queries, k=(2, 4), classes=4)
    assert {k: p.tolist() for k, p in found.items()} == {2: [1], 4: [0]}


def test_near_votes_outweigh_many_far_ones_by_exp_of_the_cosine_over_t():
    # Cosines 1, and twice 0.9: at T = 0.07 exp(0.1 / 0.07) = 4.2 > 2, at T = 1 1.1 < 2.
    bank = torch.tensor([[1.0, 0.0], [0.9, 0.19**0.5], [0.9, -(0.19**0.5)]])
    labels = torch.tensor([0, 1, 1])
    query = torch.tensor([[1.0, 0.0]])
    cold = predict(bank, labels, query, k=(3,), classes=2)
    warm = predict(bank, labels, query, k=(3,), temperature=1.0, classes=2)
    assert (cold[3].item(), warm[3].item()) == (0, 1)


@both_backends
def test_no_search_takes_more_queries_than_the_memory_bound_allows(monkeypatch, backend):
    bank, labels, queries = tied_problem()
    monkeypatch.setattr(nearest, "QUERY_ROWS", 16)
    asked = []
    original = nearest.search_by(backend)

    def watched(bank: Tensor, queries: Tensor, keep: int):
        asked.append(len(queries))
        return original(bank, queries, keep)

    monkeypatch.setattr(nearest, "search_by", lambda _: watched)
    predict(bank, labels, queries, k=(20,), backend=backend)
    # Four blocks of all queries, then the twenty of the tied image and one that is close.
    assert asked == [16, 16, 16, 12, 16, 5]


def test_less_precise_matrix_products_widen_the_bound_on_errors():
    assert nearest.rounding(256) == 8 * 2**-24 * 16
    torch.set_float32_matmul_precision("high")
    try:
        assert nearest.rounding(256) == 8 * 2**-8 * 16
    finally:
        torch.set_float32_matmul_precision("highest")


@pytest.mark.parametrize(
    ("k", "temperature", "said"),
    [
        ((10, 701), 0.07, "k=701 is more than the bank's 700 images; use k of at most 700"),
        ((), 0.07, r"k=\(\) must name at least one number of neighbours"),
        ((0,), 0.07, r"k=\(0,\) must name"),
        ((5,), 0.0, "temperature=0.0 must be above 0"),
    ],
)
def test_settings_that_mean_nothing_are_refused_in_one_sentence(k, temperature, said):
    bank, labels, queries = random_problem()
    with pytest.raises(UserError, match=said):
        predict(bank, labels, queries, k=k, temperature=temperature)
