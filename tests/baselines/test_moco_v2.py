import math

import pytest
import torch
from torch.nn import functional as F

from baselines.moco_v2 import RESNET50, VIT_SMALL, MoCoV2, MoCoV2Config, moco_terms
from harness import dist
from harness.batchnorm import average_running_statistics, set_batchnorm
from harness.loader import Batch
from harness.recipe import Progress
from tests.baselines.tiny import TinyTrunk, fill
from tests.gloo import run_on
from tests.golden import golden
from tests.golden.inputs import waves

CASES = golden("moco_v2.json")
LOSSES = [case for name, case in CASES.items() if name.startswith("moco_")]
RUNS = [case for name, case in CASES.items() if name.startswith("three_steps")]


def unit(*shape: int, phase: float) -> torch.Tensor:
    return F.normalize(waves(*shape, phase=phase), dim=-1)


def tiny(group: int | None) -> MoCoV2:
    config = MoCoV2Config(
        hidden=(5,), width=4, queue=16, key_momentum=0.9, final_key_momentum=0.9,
        batch_norm_group=group,
    )  # fmt: skip
    method = MoCoV2(config, TinyTrunk()).double().train()
    fill(method.student)
    fill(method.teacher)
    method.queue.rows.copy_(unit(16, 4, phase=2.2))
    return method


def step_batch(step: int) -> Batch:
    """This process's share of eight images."""
    mine = slice(dist.rank(), None, dist.world())
    views = [waves(8, 6, phase=phase + step)[mine] for phase in (0.1, 1.3)]
    return Batch(views, torch.full((8,), -1)[mine], torch.arange(8)[mine], seed=step)


def three_steps(group: int) -> dict:
    """Loss, gradient and state of three steps of plain SGD at rate 0.1."""
    method, losses = tiny(group), []
    set_batchnorm(method, method.batch_norm_group, 8)
    parameters = list(method.student.parameters())
    for step in range(3):
        keys = torch.cat([p.flatten().clone() for p in method.teacher.parameters()])
        loss = method.losses(step_batch(step), Progress(0.0, 10))["InfoNCE"]
        losses.append(dist.all_reduce_mean(loss.detach()).item())
        gradients = torch.autograd.grad(loss, parameters)
        gradients = [dist.all_reduce_mean(gradient) for gradient in gradients]
        with torch.no_grad():
            torch._foreach_add_(parameters, gradients, alpha=-0.1)
        method.after_step(Progress(0.0, 10))
        average_running_statistics(method)
    buffers = dict(method.named_buffers())
    return {
        "loss": losses,
        "gradients": torch.cat([gradient.flatten() for gradient in gradients]).tolist(),
        "key_encoder": keys.tolist(),
        "queue_rows": method.queue.rows.flatten().tolist(),
        "running": torch.cat([b for name, b in buffers.items() if ".running_" in name]).tolist(),
    }


@pytest.mark.parametrize("case", LOSSES, ids=lambda case: f"n={case['n']}")
def test_loss_and_gradient_equal_the_authors_code(case):
    query = waves(case["n"], case["d"], phase=0.1).requires_grad_()
    loss = moco_terms(
        F.normalize(query, dim=1),
        unit(case["n"], case["d"], phase=1.3),
        unit(case["queue"], case["d"], phase=2.2),
        temperature=case["temperature"],
    )["InfoNCE"]
    loss.backward()
    assert loss.item() == pytest.approx(case["loss"], rel=1e-9)
    gradient = query.grad.flatten().tolist()
    torch.testing.assert_close(gradient, case["gradients"][0], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("case", RUNS, ids=lambda case: f"gpus={case['groups']}")
def test_three_steps_equal_those_of_the_authors_code_on_as_many_gpus_as_groups(case):
    check(three_steps(8 // case["groups"]), case)


def test_three_steps_on_two_processes_equal_those_of_the_authors_code_on_two(tmp_path):
    for found in run_on(2, three_steps, tmp_path, 4):
        check(found, CASES["three_steps_2_gpus"])


def check(found: dict, case: dict) -> None:
    """Losses and gradient, the key encoder, the queue's rows, and what batch norm remembers."""
    expected = {key: case[key] for key in ("loss", "key_encoder", "queue_rows", "running")}
    expected["gradients"] = case["gradients"][0]
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


def test_a_key_like_its_query_among_orthogonal_negatives_costs_the_log_of_their_share():
    axes = torch.eye(6, dtype=torch.float64)
    terms = moco_terms(axes[:1], axes[:1], axes[1:], temperature=0.2)
    expected = math.log(1 + 5 * math.exp(-1 / 0.2))
    assert terms["InfoNCE"].item() == pytest.approx(expected, rel=1e-12)


def test_turning_the_space_and_the_order_of_the_queue_change_nothing():
    query, key, queue = (unit(n, 6, phase=n) for n in (4, 5, 9))
    turn, _ = torch.linalg.qr(waves(6, 6, phase=2.0))
    plain = moco_terms(query, key[:4], queue, temperature=0.2)["InfoNCE"]
    turned = moco_terms(query @ turn, key[:4] @ turn, queue.flip(0) @ turn, temperature=0.2)
    assert turned["InfoNCE"].item() == pytest.approx(plain.item(), rel=1e-12)


def test_keys_come_back_in_the_order_of_their_images_and_enter_the_queue_in_it():
    method = tiny(4)
    set_batchnorm(method, method.batch_norm_group, 8)
    images = step_batch(0).views[1]
    assert not method.keys(images, seed=0).allclose(method.keys(images, seed=1))
    keys = method.eval().keys(images, seed=0)
    torch.testing.assert_close(keys, F.normalize(method.teacher(images), dim=1))
    method.batch_keys = keys
    method.after_step(Progress(0.0, 10))
    assert method.queue.rows[:8].equal(keys)


def test_the_query_encoder_is_evaluated():
    method = tiny(4)
    assert method.evaluated is method.backbone


def test_defaults_are_the_papers():
    config = MoCoV2Config()
    assert (config.queue, config.width, config.temperature) == (65536, 128, 0.2)
    assert (config.key_momentum, config.final_key_momentum) == (0.999, 0.999)
    assert config.batch_norm_group == 256 // 8
    assert (RESNET50.epochs, RESNET50.batch_size, RESNET50.optim.lr) == (200, 256, 0.03)
    assert RESNET50.optim.decay_all and RESNET50.optim.weight_decay == 1e-4


def test_the_vit_is_trained_as_dinos_authors_say():
    method, optim = VIT_SMALL.method, VIT_SMALL.optim
    assert (method.temperature, method.queue, len(method.hidden)) == (0.1, 65536, 2)
    assert (method.key_momentum, method.final_key_momentum) == (0.996, 1.0)
    assert (optim.name, optim.lr, optim.weight_decay) == ("adamw", 5e-4, 0.05)
    assert optim.final_weight_decay is None and len(VIT_SMALL.views) == 2
