import math
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from baselines.swav import (
    RESNET50,
    RESNET50_256,
    RESNET50_TWO_CROPS,
    VIT_SMALL,
    SwAV,
    SwAVConfig,
    swav_terms,
)
from harness import dist
from harness.backbone import Backbone
from harness.loader import Batch
from harness.optim import learning_rate
from harness.recipe import BackboneSpec, Progress, TrainingSize
from harness.scale import SCALES, scale_recipe
from harness.sinkhorn import sinkhorn
from harness.train import _Losses
from tests.gloo import run_on
from tests.golden import golden
from tests.golden.inputs import waves

GOLDEN = golden("swav.json")
SINKHORN, LOSSES, RUN = GOLDEN["sinkhorn"], GOLDEN["losses"], GOLDEN["run"]
STEPS = 3  # of an epoch of 12 images
TINY = SwAVConfig(projector=(6, 4), prototypes=5, frozen_epochs=2 / STEPS, queue=8, queue_epochs=1)


class Linear(Backbone):
    """Four average pixels per channel, and a matrix."""

    def __init__(self):
        super().__init__(BackboneSpec(name="resnet_tiny"), 8)
        self.dim = 5
        self.trunk = torch.nn.Linear(12, 5, bias=False)

    def forward(self, images, reading=None):
        return self.trunk(F.adaptive_avg_pool2d(images, 2).flatten(1))


def build(config: SwAVConfig = TINY) -> SwAV:
    method = SwAV(config, Linear(), TrainingSize(12, 3)).double().train()
    with torch.no_grad():
        for i, parameter in enumerate(method.parameters()):
            parameter.copy_(waves(*parameter.shape, phase=0.3 * i))
    method._normalise_prototypes()
    return method


def make_batch(step: int) -> Batch:
    """This process's share of four images: two crops of 8 px, one of 4."""
    views = [waves(4, 3, s, s, phase=0.1 + v + 0.7 * step) for v, s in enumerate((8, 8, 4))]
    mine = slice(dist.rank(), None, dist.world())
    unseen = torch.full((4,), -1)
    return Batch([view[mine] for view in views], unseen[mine], torch.arange(4)[mine])


def run(steps: int) -> tuple[SwAV, list[float]]:
    """Train `steps` steps by SGD, on one process or several."""
    method = build()
    dist.sync_batchnorm(method)
    losses: torch.nn.Module = _Losses(method)
    if dist.world() > 1:
        losses = DistributedDataParallel(losses, broadcast_buffers=False)
    optimizer = torch.optim.SGD(method.parameters(), lr=0.1, momentum=0.9)
    values = []
    for step in range(steps):
        progress = Progress(step / STEPS, 3)
        optimizer.zero_grad()
        loss = losses(make_batch(step), progress)["CE"]
        loss.backward()
        method.after_backward(progress)
        optimizer.step()
        method.after_step(progress)
        values.append(dist.all_reduce_mean(loss.detach()).item())
    return method, values


def queue_of(method: SwAV, crop: int) -> torch.Tensor:
    """Embeddings of a crop, sorted: the authors' code puts the newest first."""
    rows = method.queue.rows[:, 4 * crop : 4 * crop + 4]
    return rows[rows[:, 0].argsort()]


@pytest.mark.parametrize("case", SINKHORN.values(), ids=SINKHORN)
def test_assignments_equal_the_authors_code(case):
    scores = waves(case["n"], case["prototypes"], phase=0.1)
    found = sinkhorn(scores, epsilon=0.05, iterations=3).flatten().tolist()
    assert found == pytest.approx(case["assignments"], rel=1e-9, abs=1e-300)


@pytest.mark.parametrize("case", LOSSES.values(), ids=LOSSES)
def test_loss_and_gradient_equal_the_authors_code(case):
    scores = waves(case["crops"], case["n"], case["prototypes"], phase=0.1).requires_grad_()
    assignments = sinkhorn(scores[:2].detach(), epsilon=0.05, iterations=3)
    loss = swav_terms(scores, assignments, temperature=0.1)["CE"]
    loss.backward()
    assert loss.item() == pytest.approx(case["loss"], rel=1e-12)
    assert scores.grad.flatten().tolist() == pytest.approx(
        case["gradients"][0], rel=1e-9, abs=1e-14
    )


def test_nine_steps_with_freeze_queue_and_three_crops_equal_the_authors_code():
    method, losses = run(9)
    assert losses == pytest.approx(RUN["losses"], rel=1e-9)
    for name, weight in (
        ("prototypes", method.prototypes.weight),
        ("trunk", method.backbone.trunk.weight),
    ):
        assert weight.flatten().tolist() == pytest.approx(RUN[name], rel=1e-8, abs=1e-12)
    for crop, expected in enumerate(torch.tensor(RUN["queue"], dtype=torch.float64).view(2, 8, 4)):
        expected = expected[expected[:, 0].argsort()]
        torch.testing.assert_close(queue_of(method, crop), expected, rtol=1e-8, atol=1e-12)


def run_and_report() -> dict[str, torch.Tensor]:
    method, losses = run(7)
    state = {key: value for key, value in method.state_dict().items() if "num_batches" not in key}
    return state | {"losses": torch.tensor(losses)}


def test_seven_steps_through_the_queue_are_the_same_on_two_processes(tmp_path: Path):
    alone = run_and_report()
    for rank in run_on(2, run_and_report, tmp_path):
        for key, value in alone.items():
            torch.testing.assert_close(rank[key], value, rtol=1e-9, atol=1e-9)


def test_each_row_of_an_assignment_sums_to_1_and_many_iterations_balance_the_prototypes():
    q = sinkhorn(waves(2, 12, 4, phase=0.4), epsilon=0.5, iterations=200)
    torch.testing.assert_close(q.sum(-1), torch.ones(2, 12, dtype=torch.float64))
    torch.testing.assert_close(q.sum(-2), torch.full((2, 4), 3.0, dtype=torch.float64))


def test_two_images_that_prefer_one_prototype_share_both_by_preference():
    # exp(scores / eps) = [[4, 1], [1, 1]]; one iteration: columns / 5 and / 2, then rows to 1
    scores = torch.tensor([[math.log(4.0), 0.0], [0.0, 0.0]], dtype=torch.float64)
    expected = torch.tensor([[8 / 13, 5 / 13], [2 / 7, 5 / 7]], dtype=torch.float64)
    torch.testing.assert_close(sinkhorn(scores, epsilon=1.0, iterations=1), expected)


def test_assignments_survive_a_tiny_epsilon_and_half_precision():
    scores = waves(6, 5, phase=0.1).float()
    sharp = sinkhorn(scores, epsilon=1e-3, iterations=3)
    assert sharp.isfinite().all() and sharp.max() == 1
    half = sinkhorn(scores.bfloat16(), epsilon=0.05, iterations=3)
    assert half.dtype == torch.float32


def test_a_constant_added_to_all_scores_or_to_a_prototypes_changes_no_assignment():
    scores = waves(6, 5, phase=0.1)
    plain = sinkhorn(scores, epsilon=0.05, iterations=3)
    for shift in (7.0, torch.arange(5, dtype=torch.float64)):
        torch.testing.assert_close(sinkhorn(scores + shift, epsilon=0.05, iterations=3), plain)


def test_equal_scores_cost_log_k():
    zeros = torch.zeros(4, 5, 9, dtype=torch.float64)
    assignments = sinkhorn(zeros[:2], epsilon=0.05, iterations=3)
    loss = swav_terms(zeros, assignments, temperature=0.1)["CE"]
    assert loss.item() == pytest.approx(math.log(9))


def test_the_prototypes_stay_on_the_sphere_and_still_in_the_first_iterations():
    start = build().prototypes.weight
    torch.testing.assert_close(start.norm(dim=1), torch.ones(5, dtype=torch.float64))
    torch.testing.assert_close(run(2)[0].prototypes.weight, start)
    moved = run(3)[0].prototypes.weight
    assert (moved - start).norm() > 1e-3
    torch.testing.assert_close(moved.norm(dim=1), torch.ones(5, dtype=torch.float64))


def test_the_queue_joins_in_once_it_is_full_and_not_before():
    method = build()
    joined = [method._queue_is_full(Progress(step / STEPS, 9), 4) for step in range(8)]
    assert joined == [False] * 5 + [True] * 3  # filled by steps 3 and 4


def test_recipes_freeze_the_prototypes_as_many_iterations_as_the_authors_runs():
    for recipe, steps, frozen in ((RESNET50, 312, 313), (RESNET50_256, 5004, 5005)):
        assert 1281167 // recipe.batch_size == steps
        epochs = [step / steps for step in range(2 * steps)]
        assert sum(epoch < recipe.method.frozen_epochs for epoch in epochs) == frozen


def test_recipes_are_the_authors_runs():
    assert SwAVConfig() == SwAVConfig(
        projector=(2048, 128), prototypes=3000, temperature=0.1, epsilon=0.05, iterations=3
    )
    rates = [
        learning_rate(RESNET50.optim, 4.8, 0.0048, Progress(epoch, 800)) for epoch in (0, 10, 800)
    ]
    assert rates == pytest.approx([0.3, 4.8, 0.0048])
    assert RESNET50.optim.lr * RESNET50.batch_size / 256 == pytest.approx(4.8)
    assert RESNET50.optim.decay_all
    assert [len(recipe.views) for recipe in (RESNET50, RESNET50_TWO_CROPS, VIT_SMALL)] == [8, 2, 12]
    small = RESNET50_256
    assert (small.method.queue, small.method.queue_epochs) == (3840, 15)
    assert (small.optim.lr, small.optim.final_lr, small.optim.warmup_epochs) == (0.6, 0.0006, 0)
    assert (VIT_SMALL.epochs, VIT_SMALL.optim.weight_decay) == (300, 0.05)


def test_small_scales_sharpen_the_assignments_and_start_the_queue_as_early_in_the_run():
    method = scale_recipe(RESNET50_256, SCALES["cifar10-mini"]).method
    assert (method.prototypes, method.epsilon) == (256, 0.01)
    assert (method.queue, method.queue_epochs) == (1024, 2)
    assert method.frozen_epochs == RESNET50_256.method.frozen_epochs
