import pytest
import torch

from baselines.barlow_twins import RESNET50, BarlowTwinsConfig, barlow_twins_terms
from tests.golden import losses_of
from tests.golden.inputs import waves


@pytest.mark.parametrize("case", losses_of("barlow_twins"), ids=lambda case: f"n={case['n']}")
def test_loss_and_gradients_equal_the_authors_code(case):
    z1, z2 = (waves(case["n"], case["d"], phase=p).requires_grad_() for p in (0.1, 1.3))
    loss = sum(barlow_twins_terms(z1, z2, redundancy=0.005).values())
    loss.backward()
    assert loss.item() == pytest.approx(case["loss"], rel=1e-9)
    for z, gradient in zip((z1, z2), case["gradients"], strict=True):
        torch.testing.assert_close(z.grad.flatten().tolist(), gradient, rtol=1e-6, atol=1e-12)


def test_opposite_views_of_independent_dimensions_pay_four_per_dimension():
    z = torch.tensor([[1.0, 1], [1, -1], [-1, 1], [-1, -1]], dtype=torch.float64) * 100
    terms = barlow_twins_terms(z, -z)
    assert terms["invariance"].item() == pytest.approx(2 * 4.0, rel=1e-6)
    assert terms["redundancy"].item() == pytest.approx(0, abs=1e-9)


def test_identical_dimensions_pay_the_redundancy():
    column = torch.tensor([100.0, -100, 100, -100], dtype=torch.float64)
    z = torch.stack([column] * 3, dim=1)
    terms = barlow_twins_terms(z, z)
    assert terms["invariance"].item() == pytest.approx(0, abs=1e-12)
    assert terms["redundancy"].item() == pytest.approx(0.005 * 6, rel=1e-6)


def test_scaling_and_shifting_a_dimension_changes_nothing():
    z1, z2 = 50 * waves(9, 6, phase=0.1), 50 * waves(9, 6, phase=1.3)
    scale, shift = torch.arange(1, 7, dtype=torch.float64), torch.arange(6, dtype=torch.float64)
    plain, other = barlow_twins_terms(z1, z2), barlow_twins_terms(z1 * scale + shift, z2)
    for name, value in plain.items():
        assert other[name].item() == pytest.approx(value.item(), rel=1e-4)  # eps of the BN


def test_defaults_are_the_papers():
    assert BarlowTwinsConfig().projector == (8192, 8192, 8192)
    assert BarlowTwinsConfig().redundancy == 0.005
    assert (RESNET50.epochs, RESNET50.batch_size, RESNET50.optim.lr) == (1000, 2048, 0.2)
    assert RESNET50.optim.bias_lr == pytest.approx(0.0048 / 16)
