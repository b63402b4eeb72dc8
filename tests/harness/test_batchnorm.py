import pytest
import torch
from torch import nn

from harness import dist
from harness.batchnorm import GroupedBatchNorm, set_batchnorm
from harness.errors import UserError
from tests.golden.inputs import waves


def grouped(module: nn.Module, size: int, batch_size: int) -> nn.Module:
    return set_batchnorm(module.double().train(), size, batch_size)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_every_third_image_of_nine_is_normalised_by_itself_and_the_gradient_follows(memory_format):
    norm, plain = nn.BatchNorm2d(4), nn.BatchNorm2d(4).double().train()
    norm = grouped(norm, 3, 9)
    for layer in (norm, plain):
        layer.weight.data.copy_(waves(4, phase=0.4))
        layer.bias.data.copy_(waves(4, phase=0.9))
    weights = waves(9, 4, 2, 5, phase=2.2)
    images = waves(9, 4, 2, 5, phase=0.1).to(memory_format=memory_format).requires_grad_()
    found = norm(images)
    (found * weights).sum().backward()
    twin = images.detach().clone().requires_grad_()
    for group in range(3):
        part = plain(twin[group::3])
        torch.testing.assert_close(found[group::3], part)
        (part * weights[group::3]).sum().backward()
    torch.testing.assert_close(images.grad, twin.grad)
    torch.testing.assert_close(norm.weight.grad, plain.weight.grad)
    torch.testing.assert_close(norm.bias.grad, plain.bias.grad)


def test_running_statistics_are_the_means_over_the_groups_and_serve_evaluation():
    norm = grouped(nn.BatchNorm1d(3, affine=False), 4, 8)
    rows = waves(8, 3, phase=0.1)
    norm(rows)
    halves = rows[::2], rows[1::2]
    mean = sum(half.mean(0) for half in halves) / 2 * 0.1
    variance = sum(half.var(0) for half in halves) / 2 * 0.1 + 0.9
    torch.testing.assert_close(norm.running_mean, mean)
    torch.testing.assert_close(norm.running_var, variance)
    assert norm.num_batches_tracked == 1
    torch.testing.assert_close(norm.eval()(rows), (rows - mean) / (variance + norm.eps).sqrt())


def test_a_second_forward_before_the_backward_is_allowed():
    norm = grouped(nn.BatchNorm1d(3), 4, 8)
    (norm(waves(8, 3, phase=0.1)) * norm(waves(8, 3, phase=1.3))).sum().backward()
    assert norm.weight.grad.isfinite().all()


@pytest.mark.parametrize("size", [None, 8, 32])
def test_a_batch_no_larger_than_a_group_is_one_group(size):
    norm = grouped(nn.BatchNorm1d(3), size, 8)
    assert not isinstance(norm, GroupedBatchNorm)


def test_names_of_parameters_and_buffers_stay():
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.BatchNorm1d(4))
    names = list(network.state_dict())
    assert list(grouped(network, 2, 8).state_dict()) == names


def test_a_batch_that_is_not_made_of_groups_is_refused():
    with pytest.raises(UserError, match=r"a batch of 48 images does not divide .* groups of 32"):
        set_batchnorm(nn.BatchNorm1d(3), 32, 48)


def test_processes_that_do_not_divide_the_groups_are_refused(monkeypatch):
    monkeypatch.setattr(dist, "world", lambda: 3)
    with pytest.raises(UserError, match=r"8 groups of 32 images.* among 3 processes"):
        set_batchnorm(nn.BatchNorm1d(3), 32, 256)
