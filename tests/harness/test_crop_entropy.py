import math
from functools import partial

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from harness import crop_entropy as module
from harness.crop_entropy import CropEntropy, crop_entropy, logits_without_gradient
from harness.multicrop import cross_crop_entropy
from methods.svib import plain_terms, svib_terms
from tests.golden.inputs import waves
from tests.harness.largest import largest

KEPT = [True, False]


@pytest.fixture(autouse=True)
def chunks_that_do_not_divide_evenly(monkeypatch):
    monkeypatch.setitem(module._COLUMNS, "cpu", 4)


def unit(*shape: int, phase: float) -> Tensor:
    return F.normalize(waves(*shape, phase=phase), dim=-1)


def compare(found: dict[str, Tensor], expected: dict[str, Tensor], most: float = 1e-12) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        error = (found[name] - value).abs().max() / value.abs().max()
        assert error <= most, (name, float(error))


def given(gain: float, keep: bool | None, dtype=torch.float64) -> dict[str, Tensor]:
    """DINO's way by the fast path: distributions from elsewhere, prototypes with a learnt gain."""
    student, weight, length, targets = inputs(gain, dtype)
    how = CropEntropy(student_temperature=0.1, keep=keep)
    value, _ = crop_entropy(student, targets, weight, length, how)
    return results(value, student, weight, length)


def given_plainly(gain: float, dtype=torch.float64) -> dict[str, Tensor]:
    student, weight, length, targets = inputs(gain, dtype)
    logits = student @ (F.normalize(weight, dim=1) * length).T
    return results(cross_crop_entropy(logits / 0.1, targets), student, weight, length)


def inputs(gain: float, dtype: torch.dtype) -> tuple[Tensor, ...]:
    student, weight = unit(4, 3, 5, phase=0.1), waves(9, 5, phase=2.0)
    lengths = gain * (1.5 + waves(9, 1, phase=0.7) / 3)
    leaves = [x.to(dtype).requires_grad_() for x in (student, weight, lengths)]
    return *leaves, (5 * waves(2, 3, 9, phase=1.3)).softmax(dim=-1).to(dtype)


def results(value: Tensor, *leaves: Tensor) -> dict[str, Tensor]:
    gradients = torch.autograd.grad(1.7 * value, leaves)
    names = ("by student", "by weight", "by gain")
    return {"value": value.detach()} | dict(zip(names, gradients, strict=True))


@pytest.mark.parametrize("keep", KEPT)
@pytest.mark.parametrize("gain", [1.0, 200.0])  # 200: logits up to 4000, exp of none is finite
def test_given_distributions_cost_what_the_plain_formula_says(gain, keep):
    compare(given(gain, keep), given_plainly(gain))


@pytest.mark.parametrize("keep", KEPT)
def test_single_precision_is_near_double_precision(keep):
    compare(given(1.0, keep, torch.float32), given_plainly(1.0), most=2e-6)


@pytest.mark.parametrize("keep", KEPT)
@pytest.mark.parametrize("where", ["means", "means_and_targets", "student"])
def test_svib_equals_the_printed_formulas_wherever_its_kl_goes(where, keep, monkeypatch):
    monkeypatch.setattr(module, "KEPT_BYTES", 1 << 30 if keep else 0)
    found = {}
    for name, function in {"fast": svib_terms, "plain": plain_terms}.items():
        leaves = [x.requires_grad_() for x in (unit(4, 3, 5, phase=0.1), waves(9, 5, phase=2.0))]
        terms = function(
            *(leaves[0], unit(2, 3, 5, phase=1.3), leaves[1]),
            sigma_student=0.32,
            sigma_teacher=0.2,
            beta=0.3,
            bottleneck_on=where,
        )
        gradients = torch.autograd.grad(1.7 * terms["CE"] - 0.6 * terms["KL"], leaves)
        names = ("by student", "by means")
        found[name] = {key: value.detach() for key, value in terms.items()}
        found[name] |= dict(zip(names, gradients, strict=True))
    compare(found["fast"], found["plain"])


@pytest.mark.parametrize("keep", KEPT)
def test_temperatures_at_which_plain_exponentials_would_overflow_take_maxima(keep):
    how = CropEntropy(student_temperature=0.005, keep=keep)  # logits up to 200
    found = {}
    for dtype in (torch.float32, torch.float64):
        student, weight, _, targets = inputs(1.0, dtype)
        value, _ = crop_entropy(student, targets, weight, None, how)
        slopes = torch.autograd.grad(value, (student, weight))
        names = ("value", "by student", "by weight")
        found[dtype] = dict(zip(names, (value.detach(), *slopes), strict=True))
    compare(found[torch.float32], found[torch.float64], most=1e-4)


def test_logits_are_kept_up_to_a_size_and_streamed_beyond(monkeypatch):
    rows, prototypes = 4 * 3, 9
    made = {}
    for size, keep in ((8 * rows * prototypes, True), (8 * rows * prototypes - 1, False)):
        monkeypatch.setattr(module, "KEPT_BYTES", size)
        student, weight, length, targets = inputs(1.0, torch.float64)
        how = CropEntropy(student_temperature=0.1)
        value, _ = crop_entropy(student, targets, weight, length, how)
        made[keep] = len(value.grad_fn.kept)
    assert made == {True: 3, False: 0}


@pytest.mark.parametrize("keep", KEPT)
def test_no_tensor_holds_all_logits(keep, monkeypatch):
    monkeypatch.setitem(module._COLUMNS, "cpu", 8)
    student, weight = unit(6, 10, 4, phase=0.1).requires_grad_(), waves(64, 4, phase=2.0)
    targets = waves(2, 10, 64, phase=1.3).softmax(dim=-1)
    how = CropEntropy(student_temperature=0.1, keep=keep)
    step = partial(crop_entropy, student, targets, weight, None, how)
    assert largest(lambda: step()[0].backward()) <= 2 * 10 * 64


def test_without_gradients_nothing_is_kept():
    student, weight, length, targets = inputs(1.0, torch.float64)
    how = CropEntropy(student_temperature=0.1, keep=True)
    expected, _ = crop_entropy(student, targets, weight, length, how)
    with torch.no_grad():
        value, _ = crop_entropy(student, targets, weight, length, how)
    assert not value.requires_grad
    assert value.item() == expected.item()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("keep", KEPT)
def test_certain_targets_under_autocast_stay_finite(keep, dtype):
    # Each student row is its own prototype, and the teacher is certain of another.
    eye = torch.eye(8)
    student = eye[:4].expand(3, 4, 8).to(dtype).requires_grad_()
    targets = eye[4:].expand(2, 4, 8).to(dtype)
    weight = (100 * eye).requires_grad_()
    how = CropEntropy(student_temperature=0.1, keep=keep)
    with torch.autocast("cpu", dtype=dtype):
        value, _ = crop_entropy(student, targets, weight, None, how)
        (value * 1024).backward()  # as a gradient scaler does
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(10 + math.log1p(7 * math.exp(-10)), rel=1e-6)
    for x in (student, weight):
        assert x.grad is not None and x.grad.isfinite().all() and x.grad.abs().max() > 0


def test_logits_without_gradient_are_those_of_normalised_prototypes():
    student, weight, length, _ = inputs(1.0, torch.float64)
    expected = student @ (F.normalize(weight, dim=1) * length).T
    found = logits_without_gradient(student, weight, length)
    assert not found.requires_grad
    torch.testing.assert_close(found, expected.detach(), rtol=1e-12, atol=1e-12)
