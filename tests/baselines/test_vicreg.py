import pytest
import torch

from baselines.vicreg import RESNET50, VICRegConfig, vicreg_terms
from tests.golden import losses_of
from tests.golden.inputs import waves


@pytest.mark.parametrize("case", losses_of("vicreg"), ids=lambda case: f"n={case['n']}")
def test_loss_and_gradients_equal_the_authors_code(case):
    z1, z2 = (waves(case["n"], case["d"], phase=p).requires_grad_() for p in (0.1, 1.3))
    loss = sum(vicreg_terms(z1, z2).values())
    loss.backward()
    assert loss.item() == pytest.approx(case["loss"], rel=1e-9)
    for z, gradient in zip((z1, z2), case["gradients"], strict=True):
        torch.testing.assert_close(z.grad.flatten().tolist(), gradient, rtol=1e-6, atol=1e-12)


def test_two_collapsed_views_pay_the_hinge_alone():
    z = torch.ones(8, 5, dtype=torch.float64)
    terms = vicreg_terms(z, z)
    assert terms["invariance"].item() == 0
    assert terms["variance"].item() == pytest.approx(25 * (1 - 0.01))  # sqrt(1e-4) = .01
    assert terms["covariance"].item() == 0


def test_two_identical_dimensions_of_unit_variance_pay_the_covariance():
    column = torch.tensor([1.0, -1.0, 1.0, -1.0], dtype=torch.float64) * (3 / 4) ** 0.5
    terms = vicreg_terms(*[torch.stack([column, column], dim=1)] * 2)
    # Covariance 1 off the diagonal, twice, over d = 2, for each of the two views.
    assert terms["covariance"].item() == pytest.approx(2.0)
    assert terms["variance"].item() == 0


def test_turning_the_space_leaves_the_invariance_alone():
    z1, z2 = waves(9, 6, phase=0.1), waves(9, 6, phase=1.3)
    turn, _ = torch.linalg.qr(waves(6, 6, phase=2.0))
    plain, turned = vicreg_terms(z1, z2), vicreg_terms(z1 @ turn, z2 @ turn)
    assert turned["invariance"].item() == pytest.approx(plain["invariance"].item(), rel=1e-12)
    assert turned["covariance"].item() != pytest.approx(plain["covariance"].item(), rel=1e-3)


def test_the_order_of_images_does_not_matter():
    z1, z2 = waves(9, 6, phase=0.1), waves(9, 6, phase=1.3)
    for name, value in vicreg_terms(z1, z2).items():
        other = vicreg_terms(z1.flip(0), z2.flip(0))[name]
        assert other.item() == pytest.approx(value.item(), rel=1e-12)


def test_defaults_are_the_papers():
    config = VICRegConfig()
    assert config.projector == (8192, 8192, 8192)
    assert (config.invariance, config.variance, config.covariance) == (25, 25, 1)
    assert (RESNET50.epochs, RESNET50.batch_size, RESNET50.optim.lr) == (1000, 2048, 0.2)
