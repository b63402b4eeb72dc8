import math

import pytest
import torch

from baselines.dino import RESNET50, VIT_SMALL, DINOConfig, dino_terms
from harness.backbone import build_backbone
from harness.loader import Batch
from harness.recipe import BackboneSpec, Progress, TrainingSize
from tests.golden import losses_of
from tests.golden.inputs import waves


def images(views: int) -> Batch:
    unseen = torch.full((6,), -1)
    return Batch([torch.randn(6, 3, 16, 16) for _ in range(views)], unseen, torch.arange(6))


def tiny(**switches) -> torch.nn.Module:
    torch.manual_seed(0)
    backbone = build_backbone(BackboneSpec(name="resnet_tiny"), 16)
    return (
        DINOConfig(prototypes=8, hidden=16, bottleneck=4, **switches)
        .build(backbone, TrainingSize(20, 3))
        .train()
    )


@pytest.mark.parametrize("case", losses_of("dino"), ids=lambda case: f"V={case['crops']}")
def test_loss_and_gradient_equal_the_authors_code(case):
    crops, n, k = case["crops"], case["n"], case["prototypes"]
    student = waves(crops, n, k, phase=0.1).requires_grad_()
    terms = dino_terms(
        student,
        waves(2, n, k, phase=1.3),
        waves(k, phase=2.2) * 0.3,
        student_temperature=0.1,
        teacher_temperature=case["teacher_temperature"],
    )
    terms["CE"].backward()
    assert terms["CE"].item() == pytest.approx(case["loss"], rel=1e-9)
    gradient = student.grad.flatten().tolist()
    torch.testing.assert_close(gradient, case["gradients"][0], rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("case", losses_of("dino"), ids=lambda case: f"V={case['crops']}")
def test_the_centre_moves_as_in_the_authors_code(case):
    method = tiny()
    k = case["prototypes"]
    method.centre = waves(k, phase=2.2) * 0.3
    method.batch_centre = waves(2, case["n"], k, phase=1.3).mean(dim=(0, 1))
    method.after_step(Progress(0.0, 10))
    torch.testing.assert_close(method.centre.tolist(), case["centre"], rtol=1e-9, atol=1e-12)


def test_a_centre_equal_to_the_teachers_logits_makes_its_targets_uniform():
    student = waves(2, 3, 6, phase=0.1)
    terms = dino_terms(
        student,
        torch.zeros(2, 3, 6, dtype=torch.float64) + torch.arange(6),
        torch.arange(6, dtype=torch.float64),
        student_temperature=0.1,
        teacher_temperature=0.04,
    )
    expected = -(student / 0.1).log_softmax(-1).mean(-1).mean()
    assert terms["CE"].item() == pytest.approx(expected.item(), rel=1e-12)


def test_equal_logits_everywhere_cost_log_k():
    zeros = torch.zeros(4, 5, 9, dtype=torch.float64)
    terms = dino_terms(
        zeros, zeros[:2], zeros[0, 0], student_temperature=0.1, teacher_temperature=0.04
    )
    assert terms["CE"].item() == pytest.approx(math.log(9))


def test_the_order_of_the_prototypes_does_not_matter():
    student, teacher, centre = (
        waves(4, 3, 7, phase=0.1),
        waves(2, 3, 7, phase=1.3),
        waves(7, phase=2),
    )
    temperatures = {"student_temperature": 0.1, "teacher_temperature": 0.04}
    plain = dino_terms(student, teacher, centre, **temperatures)["CE"]
    turned = dino_terms(student.flip(2), teacher.flip(2), centre.flip(0), **temperatures)["CE"]
    assert turned.item() == pytest.approx(plain.item(), rel=1e-12)


def test_the_last_layer_has_no_gradient_in_the_first_epoch_only():
    method = tiny(fixed_gain=False)
    batch = images(views=3)
    for epoch, frozen in ((0.5, True), (1.0, False)):
        method.zero_grad(set_to_none=True)
        method.losses(batch, Progress(epoch, 10))["CE"].backward()
        method.after_backward(Progress(epoch, 10))
        assert all((p.grad is None) == frozen for p in method.head[1].parameters())


def test_the_teachers_temperature_warms_up_epoch_by_epoch():
    config = DINOConfig(teacher_temperature=0.07, temperature_epochs=4)
    temperatures = [config.teacher_temperature_at(epoch) for epoch in range(6)]
    assert temperatures == pytest.approx([0.04, 0.05, 0.06, 0.07, 0.07, 0.07])
    assert DINOConfig().teacher_temperature_at(0) == 0.04


def test_recipes_are_the_released_runs():
    assert (VIT_SMALL.method.prototypes, RESNET50.method.prototypes) == (65536, 60000)
    assert (VIT_SMALL.method.fixed_gain, RESNET50.method.fixed_gain) == (False, True)
    assert (len(VIT_SMALL.views), len(RESNET50.views)) == (2 + 10, 2 + 6)
    assert (VIT_SMALL.batch_size, RESNET50.batch_size) == (1024, 4080)
    assert (VIT_SMALL.optim.lr, RESNET50.optim.lr) == (5e-4, 0.3)
