from dataclasses import replace

import pytest
import torch
from torch import nn

from baselines import barlow_twins, vicreg
from harness.backbone import build_backbone
from harness.method import Method
from harness.optim import (
    Larc,
    Lars,
    build_optimizer,
    clip_each_gradient,
    learning_rate,
    set_schedules,
)
from harness.recipe import BackboneSpec, Optim, Progress, TrainingSize
from harness.scale import SCALES, scale_recipe
from methods import svib
from tests.golden import golden
from tests.golden.inputs import waves


@pytest.mark.parametrize("source", ["barlowtwins@8e8d284", "dino@7c446df"])
def test_three_steps_of_lars_equal_the_authors_code(source):
    weight = waves(4, 3, phase=0.5).requires_grad_()
    bias = waves(3, phase=0.9).requires_grad_()
    optimizer = Lars(
        [
            {"params": [weight], "adapt": True, "weight_decay": 0.01},
            {"params": [bias], "adapt": False},
        ],
        lr=0.3,
        momentum=0.9,
    )
    for step in range(3):
        optimizer.zero_grad()
        loss = (weight @ waves(3, 2, phase=step)).sin().sum()
        (loss + (bias * waves(3, phase=step + 0.5)).cos().sum()).backward()
        optimizer.step()
    expected = golden("optim.json")["lars"][source]
    assert weight.flatten().tolist() == pytest.approx(expected["weight"], rel=1e-12)
    assert bias.tolist() == pytest.approx(expected["bias"], rel=1e-12)


def test_a_weight_of_norm_zero_is_not_adapted():
    weight = torch.zeros(2, 2, requires_grad=True)
    optimizer = Lars(
        [{"params": [weight], "adapt": True, "weight_decay": 0.0}], lr=1.0, momentum=0.9
    )
    weight.grad = torch.ones(2, 2)
    optimizer.step()
    assert weight.tolist() == [[-1, -1], [-1, -1]]


class Plain(Method):
    """One matrix and one bias."""

    def __init__(self):
        super().__init__()
        self.projector = nn.Linear(3, 2)


def test_with_the_rate_inside_the_momentum_old_gradients_keep_the_rate_they_came_with():
    weight = nn.Parameter(torch.tensor([[8.0]]))
    group = {"params": [weight], "adapt": False, "weight_decay": 0.0}
    optimizer = Lars([group], lr=1.0, momentum=0.5, rate_inside=True)
    weight.grad = torch.tensor([[1.0]])
    optimizer.step()  # m = 1
    optimizer.param_groups[0]["lr"] = 0.0
    optimizer.step()  # m = .5
    assert weight.item() == pytest.approx(8 - 1 - 0.5)


def test_larc_adds_the_decay_to_both_sides_of_the_ratio_and_spares_what_has_no_norm():
    weights = [torch.tensor([3.0, 4.0]), torch.zeros(2)]
    gradients = [torch.tensor([0.6, 0.8]), torch.ones(2)]
    adapted, plain = Larc.adapted(weights, gradients, 0.1)
    ratio = 0.001 * 5 / (1 + 0.1 * 5)
    torch.testing.assert_close(adapted, (gradients[0] + 0.1 * weights[0]) * ratio)
    torch.testing.assert_close(plain, gradients[1])


def test_steps_drop_the_rate_at_their_epochs_and_a_warm_up_may_start_above_zero():
    optim = Optim(
        name="sgd", lr=1.0, warmup_epochs=2, first_lr=0.2, schedule="steps", milestones=(4, 6)
    )
    rates = [learning_rate(optim, 1.0, 0.0, Progress(epoch, 8)) for epoch in (0, 1, 2, 3.9, 4, 7)]
    assert rates == pytest.approx([0.2, 0.6, 1.0, 1.0, 0.1, 0.01])


def test_a_rate_by_epoch_stays_within_each_and_a_constant_module_keeps_its_peak():
    class Constant(Plain):
        constant_rate = ("projector",)

    optim = Optim(name="sgd", lr=0.1, warmup_epochs=0, by_epoch=True)
    recipe = replace(vicreg.RESNET50, optim=optim, epochs=4)
    for method, expected in ((Plain(), 0.8 * 0.5), (Constant(), 0.8)):
        optimizer = build_optimizer(method, recipe)
        set_schedules(optimizer, recipe, 2.9)
        rates = [group["lr"] for group in optimizer.param_groups]
        assert rates == pytest.approx([expected, expected])


def test_a_cosine_over_the_whole_run_is_already_below_the_peak_after_the_warm_up():
    optim = Optim(name="sgd", lr=1.0, warmup_epochs=2, whole_cosine=True)
    rates = [learning_rate(optim, 1.0, 0.0, Progress(epoch, 8)) for epoch in (1, 2, 4, 8)]
    assert rates == pytest.approx([0.5, 0.5 + 0.5 * 0.5**0.5, 0.5, 0.0])


def test_decay_of_all_reaches_the_biases():
    recipe = replace(vicreg.RESNET50, optim=replace(vicreg.RESNET50.optim, decay_all=True))
    optimizer = build_optimizer(Plain(), recipe)
    set_schedules(optimizer, recipe, 1.0)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [1e-6, 1e-6]


def test_the_learning_rate_follows_the_authors_schedule_step_by_step():
    # 12 epochs of 2 steps, 10 of warm-up, base rate .2 at batch 2048, to .001 of the peak.
    rates = [
        learning_rate(vicreg.RESNET50.optim, 1.6, 0.0016, Progress(step / 2, 12))
        for step in range(24)
    ]
    assert rates == pytest.approx(golden("optim.json")["schedules"]["vicreg_lr"], rel=1e-12)


def test_rates_scale_linearly_with_the_batch_and_end_at_the_final_rate():
    optimizer = build_optimizer(Plain(), vicreg.RESNET50)
    set_schedules(optimizer, vicreg.RESNET50, 10.0)
    assert [g["lr"] for g in optimizer.param_groups] == pytest.approx([0.2 * 8, 0.2 * 8])
    set_schedules(optimizer, vicreg.RESNET50, 1000.0)
    assert [g["lr"] for g in optimizer.param_groups] == pytest.approx([0.0016, 0.0016])
    set_schedules(optimizer, vicreg.RESNET50, 5.0)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.2 * 8 / 2)


def test_biases_have_a_rate_of_their_own_and_no_decay():
    optimizer = build_optimizer(Plain(), barlow_twins.RESNET50)
    set_schedules(optimizer, barlow_twins.RESNET50, 10.0)
    weight, bias = optimizer.param_groups
    assert (weight["weight_decay"], bias["weight_decay"]) == (1.5e-6, 0.0)
    assert weight["lr"] == pytest.approx(0.2 * 8)
    assert bias["lr"] == pytest.approx(0.0048 / 16 * 8)
    assert (weight["adapt"], bias["adapt"]) == (True, False)


def test_svibs_means_are_neither_decayed_nor_adapted_but_keep_the_full_rate():
    recipe = svib.RESNET50
    method = scale_recipe(recipe, SCALES["demo"]).method.build(
        build_backbone(BackboneSpec(name="resnet_tiny"), 16), TrainingSize(20, 3)
    )
    optimizer = build_optimizer(method, recipe)
    set_schedules(optimizer, recipe, 10.0)
    group = next(g for g in optimizer.param_groups if any(p is method.means for p in g["params"]))
    assert (group["adapt"], group["weight_decay"], len(group["params"])) == (False, 0.0, 1)
    assert group["lr"] == pytest.approx(0.3 * 1024 / 256)


def test_the_weight_decay_of_vits_rises_along_a_cosine():
    optimizer = build_optimizer(Plain(), svib.VIT_SMALL)
    for epoch, decay in ((0, 0.04), (150, 0.22), (300, 0.4)):
        set_schedules(optimizer, svib.VIT_SMALL, float(epoch))
        assert optimizer.param_groups[0]["weight_decay"] == pytest.approx(decay)
        assert optimizer.param_groups[1]["weight_decay"] == 0


def test_gradients_are_clipped_parameter_by_parameter():
    module = nn.Linear(2, 1)
    module.weight.grad = torch.tensor([[3.0, 4.0]])
    module.bias.grad = torch.tensor([0.5])
    clip_each_gradient(module, 2.5)
    assert module.weight.grad.tolist()[0] == pytest.approx([1.5, 2.0], rel=1e-5)
    assert module.bias.grad.tolist() == [0.5]
