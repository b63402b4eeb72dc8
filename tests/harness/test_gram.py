import pytest
import torch

from harness.gram import squared_norm_of_product
from tests.golden.inputs import waves


@pytest.mark.parametrize(("n", "d"), [(4, 9), (9, 4)])
def test_both_forms_give_the_norm_of_the_product_and_its_gradient(n, d):
    a, b = (waves(n, d, phase=phase).requires_grad_() for phase in (0.1, 1.3))
    value = squared_norm_of_product(a, b)
    expected = torch.linalg.matrix_norm(a.T @ b) ** 2
    assert value.item() == pytest.approx(expected.item(), rel=1e-12)
    ours = torch.autograd.grad(value, (a, b))
    theirs = torch.autograd.grad(expected, (a, b))
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(("n", "d"), [(4, 9), (9, 4)])
def test_a_product_with_itself_has_the_same_gradient(n, d):
    a = waves(n, d, phase=0.1).requires_grad_()
    ours = torch.autograd.grad(squared_norm_of_product(a, a), a)
    theirs = torch.autograd.grad(torch.linalg.matrix_norm(a.T @ a) ** 2, a)
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)
