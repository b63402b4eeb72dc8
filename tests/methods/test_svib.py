import math

import pytest
import torch
from torch.nn import functional as F

from harness.backbone import build_backbone
from harness.loader import Batch
from harness.method import TrainImages
from harness.recipe import BackboneSpec, Progress, TrainingSize
from methods.svib import RESNET50, VIT_SMALL, SVIBConfig, kl_from_uniform, svib_terms
from tests.golden.inputs import waves

TEMPERATURES = {"sigma_student": 0.32, "sigma_teacher": 0.2}


def unit(*shape: int, phase: float) -> torch.Tensor:
    return F.normalize(waves(*shape, phase=phase), dim=-1)


def images(views: int) -> Batch:
    unseen = torch.full((6,), -1)
    return Batch([torch.randn(6, 3, 16, 16) for _ in range(views)], unseen, torch.arange(6))


def tiny(**switches) -> torch.nn.Module:
    torch.manual_seed(0)
    backbone = build_backbone(BackboneSpec(name="resnet_tiny"), 16)
    return (
        SVIBConfig(means=8, hidden=16, bottleneck=4, **switches)
        .build(backbone, TrainingSize(20, 3))
        .train()
    )


def test_two_means_have_a_closed_form():
    # z1 = (1, 0), z2 = (0.6, 0.8), means = the axes: every probability is a logistic function.
    means = torch.eye(2, dtype=torch.float64)
    z1 = torch.tensor([1.0, 0.0], dtype=torch.float64).expand(2, 1, 2)
    z2 = torch.tensor([0.6, 0.8], dtype=torch.float64).expand(2, 1, 2)
    terms = svib_terms(z1, z2, means, **TEMPERATURES, beta=0.3)
    p = 1 / (1 + math.exp((0.8 - 0.6) / 0.04))  # teacher's probability of the first mean
    q = 1 / (1 + math.exp(-1 / 0.1024))  # student's
    ce = -(p * math.log(q) + (1 - p) * math.log(1 - q))
    kl = p * math.log(2 * p) + (1 - p) * math.log(2 * (1 - p))
    assert terms["CE"].item() == pytest.approx(ce, rel=1e-12)
    assert terms["KL"].item() == pytest.approx(0.3 * kl, rel=1e-12)


def test_the_ce_averages_every_teacher_crop_with_every_other_student_crop():
    student, teacher, means = (
        unit(4, 3, 5, phase=0.1),
        unit(2, 3, 5, phase=1.3),
        unit(7, 5, phase=2),
    )
    pairs = [
        F.cross_entropy(student[v] @ means.T / 0.32**2, (teacher[t] @ means.T / 0.04).softmax(1))
        for t in range(2)
        for v in range(4)
        if v != t
    ]
    terms = svib_terms(student, teacher, means, **TEMPERATURES, beta=0.5)
    assert terms["CE"].item() == pytest.approx(torch.stack(pairs).mean().item(), rel=1e-12)


def test_the_gradient_of_the_kl_reaches_the_means_and_nothing_else():
    student = unit(3, 4, 5, phase=0.1).requires_grad_()
    means = unit(6, 5, phase=2).requires_grad_()
    terms = svib_terms(student, unit(2, 4, 5, phase=1.3), means, **TEMPERATURES, beta=0.5)
    by_student, by_means = torch.autograd.grad(terms["KL"], (student, means), allow_unused=True)
    assert by_student is None
    assert by_means.abs().max() > 1e-3


def test_the_kl_reaches_no_weight_of_the_network_but_the_means():
    method = tiny()
    batch = images(views=3)
    method.losses(batch, Progress(0.0, 10))["KL"].backward()
    reached = {name for name, p in method.named_parameters() if p.grad is not None}
    assert reached == {"means"}


def test_the_gradient_of_the_kl_equals_finite_differences():
    teacher = unit(2, 3, 4, phase=1.3)
    means = unit(5, 4, phase=2).requires_grad_()

    def kl(values):
        return svib_terms(teacher, teacher, values, **TEMPERATURES, beta=0.5)["KL"]

    assert torch.autograd.gradcheck(kl, means)


def test_the_targets_of_the_ce_carry_no_gradient_unless_asked():
    student, teacher = unit(2, 4, 5, phase=0.1), unit(2, 4, 5, phase=1.3)
    means = unit(6, 5, phase=2)

    def gradient(where):
        leaf = means.clone().requires_grad_()
        terms = svib_terms(student, teacher, leaf, **TEMPERATURES, beta=0.5, bottleneck_on=where)
        return torch.autograd.grad(terms["CE"], leaf)[0]

    frozen = (teacher @ means.T / 0.04).softmax(-1)
    leaf = means.clone().requires_grad_()
    log_p = F.log_softmax(student @ F.normalize(leaf, dim=1).T / 0.32**2, dim=-1)
    expected = -((frozen[0] * log_p[1] + frozen[1] * log_p[0]).sum(1).mean()) / 2
    torch.testing.assert_close(gradient("means"), torch.autograd.grad(expected, leaf)[0])
    assert not torch.allclose(gradient("means"), gradient("means_and_targets"))


def test_the_bottleneck_on_the_student_trains_the_student():
    student = unit(3, 4, 5, phase=0.1).requires_grad_()
    terms = svib_terms(
        student,
        unit(2, 4, 5, phase=1.3),
        unit(6, 5, phase=2),
        **TEMPERATURES,
        beta=0.5,
        bottleneck_on="student",
    )
    assert torch.autograd.grad(terms["KL"], student)[0].abs().max() > 1e-6


def test_the_kl_is_zero_for_uniform_rows_and_log_k_for_certain_ones():
    assert kl_from_uniform(torch.full((3, 8), 1 / 8)).item() == pytest.approx(0, abs=1e-6)
    assert kl_from_uniform(torch.eye(8)).item() == pytest.approx(math.log(8))


def test_the_order_of_the_means_does_not_matter():
    student, teacher, means = (
        unit(3, 4, 5, phase=0.1),
        unit(2, 4, 5, phase=1.3),
        unit(6, 5, phase=2),
    )
    plain = svib_terms(student, teacher, means, **TEMPERATURES, beta=0.5)
    turned = svib_terms(student, teacher, means.flip(0), **TEMPERATURES, beta=0.5)
    for name, value in plain.items():
        assert turned[name].item() == pytest.approx(value.item(), rel=1e-12)


def test_beta_decays_exponentially_from_a_half_to_a_hundredth():
    config = SVIBConfig()
    assert config.beta_at(0.0) == pytest.approx(0.5)
    assert config.beta_at(0.5) == pytest.approx(math.sqrt(0.5 * 0.01))
    assert config.beta_at(1.0) == pytest.approx(0.01)
    assert SVIBConfig(beta=0.1, final_beta=None).beta_at(0.7) == 0.1


def test_without_the_bottleneck_there_is_no_kl():
    batch = images(views=2)
    assert set(tiny(information_bottleneck=False).losses(batch, Progress(0.0, 10))) == {"CE"}


def test_means_are_reinitialised_from_teacher_features_but_not_after_the_last_epoch():
    method = tiny()
    pictures = torch.randn(8, 3, 16, 16)
    before = method.means.detach().clone()
    replaced = method.after_epoch(
        Progress(1.0, 2), TrainImages(lambda n: iter(pictures[:n].split(4)), iter)
    )
    assert replaced == [method.means]
    with torch.no_grad():
        features = torch.cat([method.teacher(half) for half in pictures.split(4)])
    torch.testing.assert_close(method.means.detach(), features)
    assert not torch.allclose(method.means, before)
    assert method.after_epoch(Progress(2.0, 2), TrainImages(lambda n: iter([]), iter)) == []
    assert (
        tiny(reinitialise=False).after_epoch(
            Progress(1.0, 2), TrainImages(lambda n: iter([]), iter)
        )
        == []
    )


def test_the_teacher_follows_the_student_by_its_momentum():
    method = tiny()
    teacher = method.teacher[1].layers[0].weight.clone()
    with torch.no_grad():
        method.head.layers[0].weight.add_(1.0)
    method.after_step(Progress(0.0, 10))
    torch.testing.assert_close(method.teacher[1].layers[0].weight, teacher + 0.004)


def test_defaults_are_the_papers():
    config = VIT_SMALL.method
    assert (config.means, config.hidden, config.bottleneck) == (65536, 2048, 256)
    assert (config.sigma_student, config.sigma_teacher) == (0.32, 0.2)
    assert (config.beta, config.final_beta, config.reinitialise) == (0.5, 0.01, True)
    assert (VIT_SMALL.epochs, RESNET50.epochs) == (300, 300)
    assert (len(VIT_SMALL.views), len(RESNET50.views)) == (2 + 10, 2 + 6)
    assert (RESNET50.optim.name, RESNET50.optim.lr, RESNET50.optim.weight_decay) == (
        "lars",
        0.3,
        1e-6,
    )
    assert (VIT_SMALL.optim.weight_decay, VIT_SMALL.optim.final_weight_decay) == (0.04, 0.4)
