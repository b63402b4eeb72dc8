import math

import pytest
import torch
from torch.nn import functional as F

from baselines.corinfomax import (
    RESNET50,
    CorInfoMaxConfig,
    corinfomax_terms,
    moving_statistics,
)
from harness.backbone import build_backbone
from harness.loader import Batch
from harness.optim import learning_rate
from harness.recipe import BackboneSpec, Progress, TrainingSize
from tests.golden import losses_of
from tests.golden.inputs import waves

START = Progress(0.0, 10)


def start(d: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Means and covariances before the first step."""
    return torch.zeros(2, d).double(), torch.eye(d).double().repeat(2, 1, 1)


@pytest.mark.parametrize("case", losses_of("corinfomax"), ids=lambda case: f"n={case['n']}")
def test_loss_gradients_and_statistics_equal_the_authors_code_for_two_steps(case):
    means, covariances = start(case["d"])
    for number, step in enumerate(case["steps"]):
        inputs = [
            waves(case["n"], case["d"], phase=p + number).requires_grad_() for p in (0.1, 1.3)
        ]
        z = F.normalize(torch.stack(inputs), dim=2)
        means, covariances = moving_statistics(z, means, covariances, memory=case["memory"])
        terms = corinfomax_terms(z, covariances, invariance=case["invariance"], ridge=case["ridge"])
        loss = sum(terms.values())
        loss.backward()
        assert loss.item() == pytest.approx(step["loss"], rel=1e-9)
        for x, gradient in zip(inputs, step["gradients"], strict=True):
            torch.testing.assert_close(x.grad.flatten().tolist(), gradient, rtol=1e-6, atol=1e-12)
        means, covariances = means.detach(), covariances.detach()
        torch.testing.assert_close(means.tolist(), step["means"], rtol=1e-12, atol=1e-15)
        expected = torch.tensor(step["covariances"], dtype=torch.float64)
        torch.testing.assert_close(covariances.flatten(1), expected, rtol=1e-12, atol=1e-15)


def test_two_opposite_points_on_one_axis_have_the_volume_of_their_covariance():
    z = torch.tensor([[1.0, 0], [-1, 0]], dtype=torch.float64).repeat(2, 1, 1)
    means, covariances = moving_statistics(z, *start(2), memory=0.1)
    assert means.abs().max() == 0
    # .1 * identity + .9 * diag(1, 0)
    assert covariances.tolist() == [[[1, 0], [0, pytest.approx(0.1)]]] * 2
    terms = corinfomax_terms(z, covariances, ridge=0.0)
    assert terms["invariance"].item() == 0
    assert terms["volume"].item() == pytest.approx(-math.log(0.1))  # two views, over d = 2


def test_opposite_unit_vectors_are_four_apart_spread_over_the_dimensions():
    z = torch.zeros(2, 3, 5, dtype=torch.float64)
    z[0, :, 0], z[1, :, 0] = 1, -1
    covariances = torch.eye(5).double().repeat(2, 1, 1)
    terms = corinfomax_terms(z, covariances, invariance=10.0, ridge=0.0)
    assert terms["invariance"].item() == pytest.approx(10 * 4 / 5)
    assert terms["volume"].item() == 0


def test_turning_the_space_changes_nothing():
    z = F.normalize(torch.stack([waves(9, 6, phase=p) for p in (0.1, 1.3)]), dim=2)
    turn, _ = torch.linalg.qr(waves(6, 6, phase=2.0))
    found = []
    for x in (z, z @ turn):
        _, covariances = moving_statistics(x, *start(6), memory=0.1)
        found.append(corinfomax_terms(x, covariances))
    for name, value in found[0].items():
        assert found[1][name].item() == pytest.approx(value.item(), rel=1e-10)


def test_a_covariance_that_is_not_positive_shows_as_a_loss_that_is_not_finite():
    covariances = -torch.eye(3).double().repeat(2, 1, 1)
    assert corinfomax_terms(torch.zeros(2, 4, 3).double(), covariances)["volume"].isnan()


def small_method() -> torch.nn.Module:
    torch.manual_seed(0)
    backbone = build_backbone(BackboneSpec(name="resnet_tiny"), 16)
    config = CorInfoMaxConfig(projector=(32, 4))
    return config.build(backbone, TrainingSize(images=20, classes=3)).double().train()


def test_losses_alone_leave_the_statistics_as_they_were_until_the_step_is_done():
    method = small_method()
    before = method.covariances.clone()
    views = [waves(8, 3, 16, 16, phase=p) for p in (3.1, 4.1)]
    method.losses(Batch(views, torch.arange(8), torch.arange(8)), START)
    assert torch.equal(method.covariances, before)
    method.after_step(START)
    assert not torch.equal(method.covariances, before)


def test_defaults_are_the_released_ones():
    config = CorInfoMaxConfig()
    assert config.projector == (8192, 8192, 512)
    assert (config.invariance, config.memory, config.ridge) == (2000, 0.1, 1e-8)
    optim = RESNET50.optim
    assert (RESNET50.epochs, RESNET50.batch_size) == (100, 1536)
    peak = optim.lr * RESNET50.batch_size / 256
    assert peak == pytest.approx(0.2)
    assert (optim.weight_decay, optim.decay_all, optim.momentum) == (1e-4, True, 0.9)
    assert learning_rate(optim, peak, optim.final_lr, Progress(0.9, 100)) == 3e-3
    assert learning_rate(optim, peak, optim.final_lr, Progress(10.0, 100)) == pytest.approx(0.2)
