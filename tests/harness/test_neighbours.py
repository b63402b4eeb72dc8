from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from harness import neighbours
from harness.errors import UserError
from harness.neighbours import knn_predict


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


def test_all_k_agree_with_brute_force_in_double_precision():
    bank, labels, queries = random_problem()
    found = knn_predict(bank, labels, queries, k=(1, 10, 200, 700), temperature=0.07, classes=5)
    for k, predicted in found.items():
        expected = brute_force(bank, labels, queries, k=k, temperature=0.07, classes=5)
        assert torch.equal(predicted, expected), k


@pytest.mark.parametrize("rows", [(1, 7), (13, 64), (60, 700), (1024, 8192)])
def test_predictions_are_the_same_however_bank_and_queries_are_cut(monkeypatch, rows):
    bank, labels, queries = random_problem()
    # A third of the bank is one image with every label: ties by the hundred at each k.
    bank[100:350] = bank[99]
    queries[::3] = bank[99]
    expected = {
        k: brute_force(bank, labels, queries, k=k, temperature=0.07, classes=5) for k in (3, 20, 99)
    }
    monkeypatch.setattr(neighbours, "QUERY_ROWS", rows[0])
    monkeypatch.setattr(neighbours, "BANK_ROWS", rows[1])
    found = knn_predict(bank, labels, queries, k=(3, 20, 99), temperature=0.07, classes=5)
    for k in expected:
        assert torch.equal(found[k], expected[k]), k


def test_identical_images_vote_in_the_order_of_the_bank():
    bank = normalize(torch.ones((9, 4)), dim=1)
    labels = torch.tensor([2, 1, 1, 0, 0, 0, 0, 0, 0])
    found = knn_predict(bank, labels, bank[:2], k=(1, 3, 9), temperature=0.07, classes=3)
    assert {k: p.tolist() for k, p in found.items()} == {1: [2, 2], 3: [1, 1], 9: [0, 0]}


def test_equal_votes_go_to_the_lower_class():
    bank = torch.eye(4)
    labels = torch.tensor([3, 1, 2, 0])
    queries = normalize(torch.ones((1, 4)), dim=1)
    found = knn_predict(bank, labels, queries, k=(2, 4), temperature=0.07, classes=4)
    assert {k: p.tolist() for k, p in found.items()} == {2: [1], 4: [0]}


def test_near_votes_outweigh_many_far_ones_by_exp_of_the_cosine_over_t():
    # Cosines 1, and twice 0.9: at T = 0.07 exp(0.1 / 0.07) = 4.2 > 2, at T = 1 1.1 < 2.
    bank = torch.tensor([[1.0, 0.0], [0.9, 0.19**0.5], [0.9, -(0.19**0.5)]])
    labels = torch.tensor([0, 1, 1])
    query = torch.tensor([[1.0, 0.0]])
    cold = knn_predict(bank, labels, query, k=(3,), temperature=0.07, classes=2)
    warm = knn_predict(bank, labels, query, k=(3,), temperature=1.0, classes=2)
    assert (cold[3].item(), warm[3].item()) == (0, 1)


def test_no_block_of_similarities_exceeds_the_stated_bound(monkeypatch):
    bank, labels, queries = random_problem(bank=3000, queries=50)
    monkeypatch.setattr(neighbours, "QUERY_ROWS", 16)
    monkeypatch.setattr(neighbours, "BANK_ROWS", 1100)
    shapes = []
    original = neighbours._block

    def watched(queries: Tensor, bank: Tensor) -> Tensor:
        shapes.append((len(queries), len(bank) * queries.element_size()))
        return original(queries, bank)

    monkeypatch.setattr(neighbours, "_block", watched)
    knn_predict(bank, labels, queries, k=(20,), temperature=0.07, classes=5)
    assert max(rows for rows, _ in shapes) == 16
    assert max(size for _, size in shapes) == 1100 * 4


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
        knn_predict(bank, labels, queries, k=k, temperature=temperature, classes=5)
