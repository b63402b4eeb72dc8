from functools import partial

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from harness import dist, gram
from harness.gram import centre, squared_norm_of_product, standardise
from tests.gloo import run_on
from tests.golden.inputs import waves
from tests.harness.largest import largest

SHAPES = [(4, 9), (9, 4), (8, 8)]


@pytest.fixture(autouse=True)
def chunks_that_do_not_divide_evenly(monkeypatch):
    monkeypatch.setitem(gram._COLUMNS, "cpu", 3)


def pair(n: int, d: int) -> list[Tensor]:
    return [waves(n, d, phase=phase).requires_grad_() for phase in (0.1, 1.3)]


@pytest.mark.parametrize(("n", "d"), SHAPES)
def test_both_forms_give_the_norm_of_the_product_and_its_gradient(n, d):
    a, b = pair(n, d)
    expected = torch.linalg.matrix_norm(a.T @ b) ** 2
    theirs = torch.autograd.grad(3 * expected, (a, b))
    forms = {
        "by shape": squared_norm_of_product(a, b),
        "Gram": gram._GramForm.apply(a, b),
        "covariance": gram._CovarianceForm.apply(a, b, True),
    }
    for value in forms.values():
        assert value.item() == pytest.approx(expected.item(), rel=1e-12)
        ours = torch.autograd.grad(3 * value, (a, b))
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("n", "d"), SHAPES)
def test_a_product_with_itself_has_the_same_gradient(n, d):
    a = waves(n, d, phase=0.1).requires_grad_()
    theirs = torch.autograd.grad(3 * torch.linalg.matrix_norm(a.T @ a) ** 2, a)
    for value in (
        squared_norm_of_product(a, a),
        gram._GramForm.apply(a, None),
        gram._CovarianceForm.apply(a, None, True),
    ):
        ours = torch.autograd.grad(3 * value, a)
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("n", "d"), SHAPES)
def test_a_factor_without_gradient_gets_none(n, d):
    a, b = pair(n, d)
    whole = torch.autograd.grad(squared_norm_of_product(a, b), (a, b))
    left = torch.autograd.grad(squared_norm_of_product(a, b.detach()), a)
    right = torch.autograd.grad(squared_norm_of_product(a.detach(), b), b)
    torch.testing.assert_close((*left, *right), whole, rtol=1e-12, atol=1e-12)


def test_neither_form_makes_the_covariance():
    for n, d, most in ((4, 50, 4 * 50), (60, 50, 60 * 50)):
        a, b = pair(n, d)
        norm = partial(squared_norm_of_product, a, b)
        made = largest(lambda norm=norm: norm().backward())
        assert made == most


def test_the_forms_agree_in_single_precision():
    a, b = (standardise(x.detach()).float() for x in pair(48, 64))
    exact = torch.linalg.matrix_norm(a.double().T @ b.double()) ** 2
    for value in (gram._GramForm.apply(a, b), gram._CovarianceForm.apply(a, b, False)):
        assert value.item() == pytest.approx(exact.item(), rel=1e-6)


def test_standardised_columns_are_those_of_batch_norm():
    x = waves(9, 5, phase=0.1)
    expected = F.batch_norm(x, None, None, training=True)
    torch.testing.assert_close(standardise(x), expected, rtol=1e-12, atol=1e-12)


def shared(n: int, d: int) -> dict[str, Tensor]:
    """Standardised, multiplied, and pulled back, on this process's share of n images."""
    leaves = [x.detach()[dist.rank() :: dist.world()].requires_grad_() for x in pair(n, d)]
    a, b = (standardise(x) for x in leaves)
    c = centre(leaves[0])
    values = [squared_norm_of_product(a, b), squared_norm_of_product(c, c)]
    # Each process has its own weight: their sum is what counts.
    total = (1.0 + dist.rank()) * values[0] + (2.0 - dist.rank()) * values[1]
    gradients = torch.autograd.grad(total, leaves)
    names = ("product", "square", "by a", "by b")
    found = [value.detach() for value in values] + list(gradients)
    return dict(zip(names, found, strict=True))


@pytest.mark.parametrize("processes", [2, 4])
@pytest.mark.parametrize(("n", "d"), [(8, 13), (16, 5)])
def test_shared_work_gives_the_norm_and_gradient_of_the_global_batch(processes, n, d, tmp_path):
    leaves = pair(n, d)
    a, b = (F.batch_norm(x, None, None, training=True) for x in leaves)
    c = leaves[0] - leaves[0].mean(dim=0)
    product, square = (torch.linalg.matrix_norm(x.T @ y) ** 2 for x, y in ((a, b), (c, c)))
    ranks = range(processes)
    total = sum(1.0 + r for r in ranks) * product + sum(2.0 - r for r in ranks) * square
    by_a, by_b = torch.autograd.grad(total, leaves)
    for rank, found in enumerate(run_on(processes, partial(shared, n, d), tmp_path)):
        rows = slice(rank, None, processes)
        expected = {"product": product, "square": square, "by a": by_a[rows], "by b": by_b[rows]}
        for name, value in expected.items():
            error = (found[name] - value).abs().max() / value.abs().max()
            assert error <= 1e-12, (name, float(error))
