import math

import pytest
import torch
from torch.nn import functional as F

from baselines.supervised import RESNET50, RESNET50V2_1, RESNET50V2_10
from harness import dist
from harness.backbone import build_backbone
from harness.loader import Batch
from harness.optim import build_optimizer, set_schedules
from harness.recipe import BackboneSpec, Progress, TrainingSize
from harness.supervision import UNSEEN, SupervisedMethod, cross_entropy_of_labelled
from tests.gloo import run_on
from tests.golden.inputs import waves

LABELS = torch.tensor([2, UNSEEN, 0, 1, UNSEEN, 3])


def test_equal_logits_cost_the_logarithm_of_the_number_of_classes():
    loss = cross_entropy_of_labelled(torch.zeros(6, 4), LABELS)
    assert loss.item() == pytest.approx(math.log(4))


def test_images_without_a_label_count_neither_above_nor_below_the_line():
    logits = waves(6, 4, phase=0.2)
    seen = LABELS != UNSEEN
    expected = F.cross_entropy(logits[seen], LABELS[seen])
    assert cross_entropy_of_labelled(logits, LABELS).item() == pytest.approx(expected.item())
    moved = logits + (~seen)[:, None] * waves(6, 4, phase=1.1)
    assert cross_entropy_of_labelled(moved, LABELS) == cross_entropy_of_labelled(logits, LABELS)


def test_a_batch_without_any_label_costs_nothing_and_moves_nothing():
    logits = waves(6, 4, phase=0.2).requires_grad_()
    loss = cross_entropy_of_labelled(logits, torch.full((6,), UNSEEN))
    loss.backward()
    assert loss.item() == 0 and not logits.grad.any()


def loss_and_gradient() -> dict[str, torch.Tensor]:
    """On a process's share: with two, the first has one labelled image and the second three."""
    labels = torch.tensor([UNSEEN, 0, 1, 2, UNSEEN, 3])
    logits = waves(6, 4, phase=0.2)[dist.rank() :: dist.world()].clone().requires_grad_()
    loss = cross_entropy_of_labelled(logits, labels[dist.rank() :: dist.world()])
    loss.backward()
    return {
        "loss": dist.all_reduce_mean(loss.detach()),
        "gradient": dist.gather_batch(logits.grad / dist.world()),  # DDP's mean
    }


def test_processes_with_unequal_numbers_of_labels_give_the_loss_of_the_global_batch(tmp_path):
    alone = loss_and_gradient()
    for found in run_on(2, loss_and_gradient, tmp_path):
        torch.testing.assert_close(found, alone, rtol=1e-12, atol=1e-15)


def test_the_order_of_the_classes_does_not_matter():
    torch.manual_seed(0)
    method = SupervisedMethod(build_backbone(BackboneSpec(name="resnet_tiny"), 16), 4).double()
    images, order = waves(6, 3, 16, 16, phase=0.3), torch.tensor([2, 0, 3, 1])
    plain = method.losses(Batch([images], LABELS, LABELS), Progress(0.0, 1))["cross_entropy"]
    with torch.no_grad():
        method.head.weight.copy_(method.head.weight[order])
        method.head.bias.copy_(method.head.bias[order])
    labels = torch.where(LABELS == UNSEEN, UNSEEN, order.argsort()[LABELS.clamp(min=0)])
    turned = method.losses(Batch([images], labels, labels), Progress(0.0, 1))["cross_entropy"]
    assert turned.item() == pytest.approx(plain.item(), rel=1e-12)


def rates(recipe, *epochs: float) -> list[float]:
    method = recipe.method.build(
        build_backbone(BackboneSpec(name="resnet_tiny"), 16), TrainingSize(8, 3)
    )
    optimizer = build_optimizer(method, recipe)
    found = []
    for epoch in epochs:
        set_schedules(optimizer, recipe, epoch)
        found.append(optimizer.param_groups[0]["lr"])
    return found


def test_defaults_are_torchvisions_and_s4ls():
    assert (RESNET50.epochs, RESNET50.batch_size, RESNET50.labelled) == (90, 256, 100)
    assert rates(RESNET50, 0, 29.9, 30, 60, 89) == pytest.approx([0.1, 0.1, 0.01, 1e-3, 1e-3])
    assert RESNET50.optim.weight_decay == 1e-4 and RESNET50.optim.decay_all
    for recipe, rate, decay in ((RESNET50V2_10, 0.1, 1e-3), (RESNET50V2_1, 0.01, 1e-2)):
        # Warm-up over 1/40 or 1/200 of the run, drops at 70, 80 and 90 % of it.
        parts = [e * recipe.epochs for e in (0.1, 0.69, 0.7, 0.8, 0.9)]
        expected = [rate, rate, rate / 10, rate / 100, rate / 1000]
        assert rates(recipe, *parts) == pytest.approx(expected)
        assert recipe.optim.weight_decay == decay and not recipe.optim.decay_all
        assert recipe.backbone.name == "resnet50v2" and recipe.batch_size == 256
    # S4L's 100,000 and 50,000 steps
    for recipe, steps in ((RESNET50V2_10, 100_000), (RESNET50V2_1, 50_000)):
        assert recipe.epochs * (1_281_167 // 256) == pytest.approx(steps, rel=2e-3)
