import math
from dataclasses import replace

import pytest
import torch

from baselines.dissl import RESNET50, RESNET50_D8192, DISSLConfig, dissl_terms, marginal_entropy
from harness.backbone import build_backbone
from harness.optim import learning_rate
from harness.recipe import BackboneSpec, Progress, TrainingSize
from tests.golden import losses_of
from tests.golden.inputs import waves

SIZE = TrainingSize(images=20, classes=3)


@pytest.mark.parametrize(
    "case", losses_of("dissl"), ids=lambda case: f"{case['crops']}x{case['n']}x{case['classes']}"
)
def test_loss_and_gradients_equal_the_authors_code(case):
    n, classes = case["n"], case["classes"]
    teacher = waves(2, n, classes, phase=0.1).requires_grad_()
    student = waves(case["crops"], n, classes, phase=1.3).requires_grad_()
    loss = sum(dissl_terms(student, teacher, invariance=case["invariance"]).values())
    loss.backward()
    assert loss.item() == pytest.approx(case["loss"], rel=1e-9)
    for x, gradient in zip((student, teacher), case["gradients"], strict=True):
        torch.testing.assert_close(x.grad.flatten().tolist(), gradient, rtol=1e-6, atol=1e-12)


def test_certain_and_even_assignments_that_the_student_knows_leave_the_entropy_alone():
    logits = 100 * torch.eye(4, dtype=torch.float64).repeat(2, 1, 1)
    terms = dissl_terms(logits, logits)
    assert terms["distillation"].item() == pytest.approx(0, abs=1e-12)
    assert terms["invariance"].item() == pytest.approx(0, abs=1e-12)
    assert terms["maximality"].item() == pytest.approx(-2.3 * math.log(4))


def test_assignments_that_know_nothing_cost_log_k_three_times():
    logits = torch.zeros(2, 5, 8, dtype=torch.float64)
    terms = dissl_terms(logits, logits)
    assert terms["distillation"].item() == pytest.approx(math.log(8))
    assert terms["maximality"].item() == pytest.approx(-2.3 * math.log(8))
    assert terms["invariance"].item() == pytest.approx(0.6 * math.log(8))


def test_a_class_that_nothing_is_assigned_to_gets_a_finite_gradient():
    logits = torch.tensor([[[0.0, 200.0], [0.0, 200.0]]] * 2, requires_grad=True)
    marginal_entropy((logits / 0.5).softmax(dim=-1)).backward()
    assert logits.grad.isfinite().all()


def test_exchanging_the_two_views_or_the_classes_changes_nothing():
    student, teacher = waves(2, 5, 7, phase=1.3), waves(2, 5, 7, phase=0.1)
    plain = dissl_terms(student, teacher)
    for turned in (
        dissl_terms(student.flip(0), teacher.flip(0)),
        dissl_terms(student.flip(2), teacher.flip(2)),
    ):
        for name, value in plain.items():
            assert turned[name].item() == pytest.approx(value.item(), rel=1e-12)


def test_the_teacher_is_trained_by_the_distillation_too():
    teacher = waves(2, 5, 7, phase=0.1).requires_grad_()
    dissl_terms(waves(2, 5, 7, phase=1.3), teacher)["distillation"].backward()
    assert teacher.grad.abs().max() > 1e-3


def test_the_heads_are_those_of_the_released_settings():
    backbone = build_backbone(BackboneSpec(name="resnet_tiny"), 16)
    small = {"classes": 9, "bottleneck": 4}
    plain = DISSLConfig(hidden=(6,), **small).build(backbone, SIZE)
    assert shapes(plain.teacher) == [(6, 128), (128, 6), (4, 128), (9, 4)]
    assert shapes(plain.student) == [(4, 128), (9, 4)]
    wide = DISSLConfig(hidden=(6, 6), squeeze_first=True, **small).build(backbone, SIZE)
    assert shapes(wide.teacher) == [(4, 128), (6, 4), (6, 6), (4, 6), (9, 4)]
    assert shapes(wide.student) == shapes(plain.student)


def shapes(head: torch.nn.Module) -> list[tuple[int, ...]]:
    """Of its matrices."""
    return [tuple(p.shape) for p in head.parameters() if p.ndim == 2]


def test_defaults_are_those_of_the_released_weights():
    config = DISSLConfig()
    assert (config.classes, config.bottleneck, config.hidden) == (16384, 512, (2048,))
    assert (config.maximality, config.invariance) == (2.3, 0.6)
    assert (config.teacher_temperature, config.student_temperature) == (0.5, 1.0)
    assert (RESNET50.epochs, RESNET50.batch_size) == (100, 2560)
    assert RESNET50_D8192.method == replace(config, hidden=(2048, 2048), squeeze_first=True)
    view = RESNET50.views[0]
    assert (view.jitter, view.scale, view.blur_p) == ((0.8, 0.8, 0.8, 0.2), (0.08, 1.0), 0.5)
    assert view.pixels.std == (0.229, 0.224, 0.225)


def test_the_rate_warms_up_to_three_and_goes_on_along_a_cosine_of_the_whole_run():
    optim = RESNET50.optim
    peak = optim.lr * RESNET50.batch_size / 256
    assert peak == pytest.approx(3.0)
    rates = [learning_rate(optim, peak, 0.0, Progress(e, 100)) for e in (0, 5, 50, 100)]
    assert rates == pytest.approx([1e-3, 1e-3 + (3 - 1e-3) / 2, 1.5, 0])
    assert learning_rate(optim, peak, 0.0, Progress(10, 100)) == pytest.approx(2.9265848)
