import math

import pytest
import torch

from baselines.byol import (
    RESNET50,
    RESNET50_100,
    RESNET50_300,
    VIT_SMALL,
    BYOLConfig,
    byol_terms,
)
from harness.backbone import build_backbone
from harness.loader import Batch
from harness.method import ema_update
from harness.optim import Lars, cosine, learning_rate
from harness.recipe import BackboneSpec, Optim, Progress, TrainingSize
from tests.golden import golden
from tests.golden.inputs import waves

GOLDEN = golden("byol.json")
LOSSES = GOLDEN["losses"]


def tiny() -> torch.nn.Module:
    torch.manual_seed(0)
    backbone = build_backbone(BackboneSpec(name="resnet_tiny"), 16)
    config = BYOLConfig(projector=(16, 8), predictor=(16, 8), teacher_momentum=0.9)
    return config.build(backbone, TrainingSize(20, 3)).train()


def images() -> Batch:
    views = [waves(6, 3, 16, 16, phase=phase).float() for phase in (0.1, 1.3)]
    return Batch(views, torch.full((6,), -1), torch.arange(6))


@pytest.mark.parametrize("case", LOSSES.values(), ids=LOSSES)
def test_loss_and_gradient_equal_the_authors_code(case):
    predictions = waves(2, case["n"], case["d"], phase=0.1).requires_grad_()
    targets = waves(2, case["n"], case["d"], phase=1.3).requires_grad_()
    loss = byol_terms(predictions, targets)["regression"]
    loss.backward()
    assert loss.item() == pytest.approx(case["loss"], rel=1e-12)
    expected = case["gradients"][0]
    assert predictions.grad.flatten().tolist() == pytest.approx(expected, rel=1e-9, abs=1e-14)
    assert targets.grad is None


def test_the_targets_momentum_and_weights_equal_the_authors_code():
    case = GOLDEN["ema"]
    momenta = [cosine(0.99, 1.0, step / case["steps"]) for step in case["at"]]
    assert momenta == pytest.approx(case["tau"], rel=1e-12)
    target, online = torch.nn.Linear(6, 1, bias=False), torch.nn.Linear(6, 1, bias=False)
    target.weight.data = waves(1, 6, phase=0.4)
    for step in range(3):
        online.weight.data = waves(1, 6, phase=step + 2.0)
        ema_update(target, online, cosine(0.99, 1.0, step / 3))
    assert target.weight.flatten().tolist() == pytest.approx(case["target_after_3"], rel=1e-12)


def test_six_steps_of_the_optimiser_and_its_schedule_equal_the_authors_code():
    case = GOLDEN["lars"]
    # 3 epochs of 2 steps, 1 of warm-up, base rate .3 at batch 512
    optim = Optim(name="lars", lr=0.3, warmup_epochs=1)
    weight, bias = waves(4, 3, phase=0.5).requires_grad_(), waves(3, phase=0.9).requires_grad_()
    groups = [
        {"params": [weight], "adapt": True, "weight_decay": 0.01},
        {"params": [bias], "adapt": False},
    ]
    optimizer = Lars(groups, lr=0.0, momentum=0.9)
    rates = [learning_rate(optim, 0.6, 0.0, Progress(step / 2, 3)) for step in range(6)]
    for step, rate in enumerate(rates):
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.zero_grad()
        loss = (weight @ waves(3, 2, phase=step)).sin().sum()
        (loss + (bias * waves(3, phase=step + 0.5)).cos().sum()).backward()
        optimizer.step()
    assert rates == pytest.approx(case["rates"], rel=1e-6)  # the authors' rates are fp32
    assert weight.flatten().tolist() == pytest.approx(case["weight"], rel=1e-6)
    assert bias.tolist() == pytest.approx(case["bias"], rel=1e-6)


def test_the_loss_is_0_for_equal_directions_4_for_right_angles_and_8_for_opposite_ones():
    one = torch.tensor([[2.0, 0.0], [0.0, 3.0]])
    for predictions, expected in ((5 * one, 0.0), (one.flip(1), 4.0), (-one, 8.0)):
        terms = byol_terms(torch.stack([predictions] * 2), torch.stack([one] * 2))
        assert terms["regression"].item() == pytest.approx(expected, abs=1e-6)


def test_each_prediction_meets_the_other_views_target():
    # cos(q1, z'2) = 1, cos(q2, z'1) = cos 60°; q1 and z'1 stand at right angles
    q1, q2 = torch.tensor([[1.0, 0.0]]), torch.tensor([[math.sqrt(0.75), 0.5]])
    z1, z2 = torch.tensor([[0.0, 1.0]]), torch.tensor([[1.0, 0.0]])
    terms = byol_terms(torch.stack([q1, q2]), torch.stack([z1, z2]))
    assert terms["regression"].item() == pytest.approx(4 - 2 * (1 + 0.5))


def test_a_rotation_and_the_lengths_of_all_rows_change_nothing():
    predictions, targets = waves(2, 5, 4, phase=0.1), waves(2, 5, 4, phase=1.3)
    rotation, _ = torch.linalg.qr(waves(4, 4, phase=0.7))
    lengths = torch.arange(1, 6, dtype=torch.float64).view(5, 1)
    plain = byol_terms(predictions, targets)["regression"]
    other = byol_terms(predictions @ rotation * lengths, targets @ rotation / lengths)["regression"]
    assert other.item() == pytest.approx(plain.item(), rel=1e-12)


def test_the_target_starts_elsewhere_and_moves_a_tenth_of_the_way():
    method = tiny()
    before = [p.clone() for p in method.teacher.parameters()]
    online = list(method.student.parameters())
    matrices = [(t, o) for t, o in zip(before, online, strict=True) if t.ndim > 1]
    assert all((t != o).any() for t, o in matrices)
    assert not any(p.requires_grad for p in method.teacher.parameters())
    method.after_step(Progress(0.0, 10))
    for old, new, student in zip(before, method.teacher.parameters(), online, strict=True):
        torch.testing.assert_close(new, 0.9 * old + 0.1 * student)


def test_the_targets_batch_norm_keeps_its_own_averages():
    method = tiny()
    method.losses(images(), Progress(0.0, 10))
    online, target = (dict(net.named_buffers()) for net in (method.student, method.teacher))
    assert int(target["1.1.num_batches_tracked"]) == 2  # one for each view
    assert not torch.equal(target["1.1.running_mean"], online["1.1.running_mean"])
    averages = target["1.1.running_mean"].clone()
    method.after_step(Progress(0.0, 10))
    assert torch.equal(target["1.1.running_mean"], averages)


def test_the_online_trunk_is_what_is_evaluated():
    method = tiny()
    assert method.evaluated is method.backbone


def test_recipes_are_the_authors_presets():
    presets = {
        r.epochs: (r.optim.lr, r.optim.weight_decay, r.method.teacher_momentum)
        for r in (RESNET50, RESNET50_300, RESNET50_100)
    }
    assert presets == {
        1000: (0.2, 1.5e-6, 0.996),
        300: (0.3, 1e-6, 0.99),
        100: (0.45, 1e-6, 0.99),
    }
    assert RESNET50.batch_size == 4096
    assert (BYOLConfig().projector, BYOLConfig().predictor) == ((4096, 256), (4096, 256))
    assert [(v.blur_p, v.solarize_p, v.brightness) for v in RESNET50.views] == [
        (1.0, 0.0, "additive"),
        (0.1, 0.2, "additive"),
    ]
    assert RESNET50.backbone.zero_init_residual
    assert (VIT_SMALL.epochs, VIT_SMALL.batch_size, VIT_SMALL.optim.weight_decay) == (
        300,
        1024,
        0.05,
    )
    assert len(VIT_SMALL.views) == 2
