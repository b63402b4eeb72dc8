import math
from functools import partial

import pytest
import torch
from torch import Tensor

from harness import dist, joint
from methods.imsvd import ALL, discretise, imsvd_terms, plain_terms
from tests.gloo import run_on
from tests.golden.inputs import waves
from tests.harness.largest import largest

WEIGHTS = {"TI": 0.7, "TIC": 1.1, "DE": -1.3, "OE": 2.1}  # no two terms can stand in for each other


def views(n: int, variables: int, units: int) -> list[Tensor]:
    return [3 * waves(n, variables * units, phase=t) for t in (0.1, 1.3)]


def values_and_gradients(function, z: list[Tensor], names=ALL, units=5) -> dict[str, Tensor]:
    leaves = [x.detach().clone().requires_grad_() for x in z]
    terms = function(*leaves, units=units, temperature=0.8, names=names)
    total = sum(WEIGHTS[name] * value for name, value in terms.items())
    gradients = torch.autograd.grad(total, leaves)
    found = {name: value.detach() for name, value in terms.items()}
    return found | {"by z1": gradients[0], "by z2": gradients[1]}


def assert_equal(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        error = (found[name] - value).abs().max() / value.abs().max()
        assert error <= 1e-12, (name, float(error))


@pytest.fixture
def small_pieces(monkeypatch):
    """Chunks of two variables and blocks of three images, so that neither divides evenly."""
    monkeypatch.setitem(joint._COLUMNS, "cpu", 11)
    monkeypatch.setitem(joint._BLOCK, "cpu", 3 * 35)


@pytest.mark.parametrize(
    "names", [ALL, ("DE", "OE"), ("OE", "TI"), ("DE", "OE", "TIC"), ("OE",), ("DE",), ("TI", "TIC")]
)
def test_any_terms_with_any_weights_equal_the_printed_formulas(names, small_pieces):
    z = views(10, 7, 5)
    ours = values_and_gradients(imsvd_terms, z, names)
    assert_equal(ours, values_and_gradients(plain_terms, z, names))


def test_saturated_assignments_at_the_floor_have_the_same_gradient(small_pieces):
    z = [40 * x for x in views(10, 7, 5)]
    assert (discretise(z[0], units=5, temperature=0.8) == 1e-8).any()
    assert_equal(values_and_gradients(imsvd_terms, z), values_and_gradients(plain_terms, z))


def test_without_gradients_the_values_are_the_same_and_two_products_are_saved(small_pieces):
    z1, z2 = (x.requires_grad_() for x in views(10, 7, 5))
    expected = plain_terms(z1, z2, units=5, temperature=1.0)
    with torch.no_grad():
        found = imsvd_terms(z1, z2, units=5, temperature=1.0)
    for name, value in expected.items():
        assert not found[name].requires_grad
        assert found[name].item() == pytest.approx(value.item(), rel=1e-12)
    p, q = (discretise(z.detach(), units=5, temperature=1.0).flatten(1) for z in (z1, z2))
    kept = q.clone()
    assert joint._walk(p, q, 5, 0, gradients=False)[1] is None
    assert q.equal(kept)


def test_the_joint_matrix_never_exists(monkeypatch):
    monkeypatch.setitem(joint._COLUMNS, "cpu", 10)
    z = views(4, 20, 5)
    chunk = 10 * 100
    assert largest(lambda: values_and_gradients(imsvd_terms, z)) == chunk
    assert largest(lambda: values_and_gradients(plain_terms, z)) == 100**2


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_one_hot_assignments_under_autocast_stay_finite_and_near_the_optimum(dtype):
    units = 8
    codes = torch.cartesian_prod(torch.arange(units), torch.arange(units))
    logits = 60.0 * torch.nn.functional.one_hot(codes, units).flatten(1)
    z1, z2 = (logits.to(dtype).requires_grad_() for _ in range(2))
    with torch.autocast("cpu", dtype=dtype):
        terms = imsvd_terms(z1, z2, units=units, temperature=1.0)
    (sum(terms.values()) * 1024).backward()  # as a gradient scaler does
    assert all(value.dtype == torch.float32 for value in terms.values())
    assert terms["TI"].item() == pytest.approx(0, abs=1e-5)
    assert terms["DE"].item() == pytest.approx(-math.log(units), abs=1e-5)
    assert terms["OE"].item() == pytest.approx(-2 * math.log(units), abs=1e-4)
    for z in (z1, z2):
        assert z.grad is not None and z.grad.isfinite().all()


def test_single_precision_is_near_double_precision():
    z = views(64, 6, 10)
    exact = values_and_gradients(plain_terms, z, units=10)
    found = values_and_gradients(imsvd_terms, [x.float() for x in z], units=10)
    for name, value in exact.items():
        error = (found[name].double() - value).abs().max() / value.abs().max()
        assert error < 3e-6, (name, float(error))


def on_a_share(variables: int) -> dict[str, Tensor]:
    z = [x[dist.rank() :: dist.world()] for x in views(8, variables, 5)]
    # Each process has its own weight on the shared terms: their sum is what counts.
    leaves = [x.requires_grad_() for x in z]
    terms = imsvd_terms(*leaves, units=5, temperature=0.8)
    weights = {"TI": 0.0, "DE": 1.0 + dist.rank(), "OE": 2.0 - 3 * dist.rank()}
    gradients = torch.autograd.grad(sum(weights[n] * v for n, v in terms.items()), leaves)
    found = {name: terms[name].detach() for name in ("DE", "OE")}
    return found | {"by z1": gradients[0], "by z2": gradients[1]}


# Three variables on four processes: one has no column to compute.
@pytest.mark.parametrize(("processes", "variables"), [(2, 7), (4, 7), (4, 3)])
def test_shared_columns_give_the_loss_and_gradient_of_the_global_batch(
    processes, variables, tmp_path
):
    z = [x.requires_grad_() for x in views(8, variables, 5)]
    terms = plain_terms(*z, units=5, temperature=0.8)
    # The weights of `on_a_share`, summed over ranks.
    by_diagonal = sum(1.0 + rank for rank in range(processes))
    by_pairs = sum(2.0 - 3 * rank for rank in range(processes))
    total = by_diagonal * terms["DE"] + by_pairs * terms["OE"]
    expected = torch.autograd.grad(total, z)
    for rank, found in enumerate(run_on(processes, partial(on_a_share, variables), tmp_path)):
        rows = slice(rank, None, processes)
        assert_equal(
            found,
            {
                "DE": terms["DE"].detach(),
                "OE": terms["OE"].detach(),
                "by z1": expected[0][rows],
                "by z2": expected[1][rows],
            },
        )
