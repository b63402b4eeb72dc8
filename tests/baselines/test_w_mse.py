import math
from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from baselines.w_mse import (
    CIFAR10,
    CIFAR10_FOUR_VIEWS,
    IMAGENET100,
    WMSEConfig,
    partitions,
    w_mse_terms,
    whiten,
)
from harness.errors import UserError
from harness.optim import learning_rate
from harness.recipe import Progress
from harness.scale import SCALES, scale_recipe
from tests.golden import losses_of
from tests.golden.inputs import waves


@pytest.mark.parametrize(
    "case", losses_of("w_mse"), ids=lambda case: f"{case['views']}x{case['n']}-{case['ridge']}"
)
def test_loss_and_gradients_equal_the_authors_code(case):
    inputs = [
        waves(case["n"], case["d"], phase=0.1 + 1.2 * view).requires_grad_()
        for view in range(case["views"])
    ]
    groups = torch.tensor(case["orders"]).view(-1, case["group"])
    loss = w_mse_terms(torch.stack(inputs), groups, ridge=case["ridge"])["MSE"]
    loss.backward()
    assert loss.item() == pytest.approx(case["loss"], rel=1e-9)
    for x, gradient in zip(inputs, case["gradients"], strict=True):
        torch.testing.assert_close(x.grad.flatten().tolist(), gradient, rtol=1e-6, atol=1e-12)


def test_whitened_groups_have_mean_zero_and_the_identity_as_covariance():
    w = whiten(waves(3, 10, 4, phase=0.1))
    torch.testing.assert_close(w.mean(dim=1), torch.zeros(3, 4).double(), rtol=0, atol=1e-12)
    for group in w:
        torch.testing.assert_close(torch.cov(group.T), torch.eye(4).double(), rtol=0, atol=1e-10)


def test_the_first_dimension_is_only_standardised_by_a_lower_triangular_factor():
    z = waves(10, 4, phase=0.1)
    expected = (z[:, 0] - z[:, 0].mean()) / z[:, 0].std()
    torch.testing.assert_close(whiten(z)[:, 0], expected, rtol=1e-10, atol=1e-12)


def test_a_view_and_its_negative_are_four_apart_and_a_view_and_itself_none():
    z, everything = waves(8, 3, phase=0.1), torch.arange(8)[None]
    assert w_mse_terms(torch.stack([z, z]), everything)["MSE"].item() == pytest.approx(0, abs=1e-9)
    assert w_mse_terms(torch.stack([z, -z]), everything)["MSE"].item() == pytest.approx(4.0)


def test_three_views_pay_the_mean_over_their_three_pairs():
    z, groups = torch.stack([waves(8, 3, phase=p) for p in (0.1, 1.3, 2.5)]), torch.arange(8)[None]
    w = F.normalize(whiten(z), dim=2)
    pairs = [(2 - 2 * (w[i] * w[j]).sum(dim=1)).mean() for i, j in ((0, 1), (0, 2), (1, 2))]
    expected = sum(pairs) / 3
    assert w_mse_terms(z, groups)["MSE"].item() == pytest.approx(expected.item(), rel=1e-12)


def test_scaling_and_shifting_all_dimensions_of_a_view_changes_nothing():
    z, groups = torch.stack([waves(12, 3, phase=p) for p in (0.1, 1.3)]), partitions(12, 6, 2, 7)
    plain = w_mse_terms(z, groups)["MSE"].item()
    moved = torch.stack([z[0] * 5 + torch.arange(3), z[1]])
    assert w_mse_terms(moved, groups)["MSE"].item() == pytest.approx(plain, rel=1e-10)


def test_a_group_without_variance_gives_a_loss_that_is_not_finite():
    assert w_mse_terms(torch.ones(2, 8, 3).double(), torch.arange(8)[None])["MSE"].isnan()


def test_every_iteration_puts_every_image_into_one_group_by_the_seed():
    groups = partitions(12, 4, 2, seed=5)
    assert groups.shape == (6, 4)
    for iteration in groups.view(2, 12):
        assert sorted(iteration.tolist()) == list(range(12))
    assert torch.equal(groups, partitions(12, 4, 2, seed=5))
    assert not torch.equal(groups, partitions(12, 4, 2, seed=6))
    assert partitions(3, 4, 1, seed=5).shape == (1, 3)


def test_groups_that_do_not_divide_the_batch_are_refused():
    with pytest.raises(UserError, match="groups of 128 images do not divide a batch of 192"):
        partitions(192, 128, 1, seed=0)


def test_defaults_are_the_papers():
    config = WMSEConfig()
    assert (config.hidden, config.width, config.group) == (1024, 64, 128)
    assert (config.iterations, config.ridge) == (1, 0)
    assert IMAGENET100.method == replace(config, width=128, group=256)
    assert (CIFAR10.epochs, CIFAR10.batch_size, IMAGENET100.epochs) == (1000, 512, 240)
    assert (CIFAR10_FOUR_VIEWS.batch_size, len(CIFAR10_FOUR_VIEWS.views)) == (256, 4)
    assert CIFAR10.views[0].jitter == (0.4, 0.4, 0.4, 0.1)


@pytest.mark.parametrize(
    ("recipe", "peak", "steps"),
    [
        (CIFAR10, 3e-3, 50000 // 512),
        (CIFAR10_FOUR_VIEWS, 3e-3, 50000 // 256),
        (IMAGENET100, 2e-3, 126689 // 512),
    ],
)
def test_the_rate_warms_up_over_500_steps_and_drops_to_a_fifth_twice(recipe, peak, steps):
    optim = recipe.optim
    top = optim.lr * recipe.batch_size / 256
    assert top == pytest.approx(peak)
    last = recipe.epochs

    def rate(epoch: float) -> float:
        return learning_rate(optim, top, 0.0, Progress(epoch, last))

    assert rate(0) == pytest.approx(peak / 500)
    assert rate(250 / steps) == pytest.approx(peak / 2, rel=3e-3)
    assert rate(500 / steps) == peak == rate(last - 50.01)
    assert [rate(last - 50), rate(last - 25)] == pytest.approx([peak / 5, peak / 25])
    assert math.isclose(optim.weight_decay, 1e-6) and optim.decay_all


def test_views_of_32_pixels_stay_as_they_are_at_small_scales():
    for name in ("cifar10", "cifar10-mini", "demo"):
        small = scale_recipe(CIFAR10, SCALES[name])
        assert small.views == CIFAR10.views
        assert small.batch_size % small.method.group == 0
    assert scale_recipe(CIFAR10, SCALES["cifar10"]).backbone == CIFAR10.backbone
    assert scale_recipe(CIFAR10, SCALES["demo"]).backbone.name == "resnet_tiny"
