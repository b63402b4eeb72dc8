import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from baselines import npid
from baselines.npid import NPID, RESNET50, NPIDConfig
from harness.loader import Batch
from harness.nce import nce, partition
from harness.optim import learning_rate
from harness.recipe import Progress, TrainingSize
from harness.scale import SCALES, scale_recipe
from tests.golden import losses_of
from tests.golden.inputs import waves


def on_embeddings(config: NPIDConfig, images: int) -> NPID:
    """NPID whose images are its embeddings before they are normalised."""
    trunk = nn.Identity()
    trunk.dim = config.width
    method = config.build(trunk, TrainingSize(images, 3)).double()
    method.projector = nn.Identity()
    return method


def batch_of(x: torch.Tensor, indices: list[int], seed: int = 0) -> Batch:
    return Batch([x], torch.full((len(x),), -1), torch.tensor(indices), seed)


def candidates(case: dict, step: int) -> torch.Tensor:
    """What the authors' code was given in the place of random draws."""
    i, j = torch.arange(case["n"])[:, None], torch.arange(case["negatives"] + 1)
    rows = (3 * i * i + 5 * i * j + j * j + step) % case["images"]
    rows[:, 0] = torch.tensor(case["indices"])
    return rows


@pytest.mark.parametrize("case", losses_of("npid"), ids=lambda case: f"eps={case['eps']}")
def test_two_steps_equal_the_authors_code(case, monkeypatch):
    n, d = case["n"], case["d"]
    method = on_embeddings(NPIDConfig(width=d, negatives=case["negatives"]), case["images"])
    method.memory.rows.copy_(F.normalize(waves(case["images"], d, phase=0.7), dim=1))
    tolerance = 1e-9 if case["eps"] == 0 else 1e-6  # their guard against log 0
    for step, expected in enumerate((case, case["second_step"])):
        monkeypatch.setattr(npid, "draw_candidates", lambda *_, s=step: candidates(case, s))
        x = waves(n, d, phase=0.1 + step).requires_grad_()
        loss = method.losses(batch_of(x, case["indices"]), Progress(step / 7, 10))["NCE"]
        loss.backward()
        method.after_step(Progress(step / 7, 10))
        assert loss.item() == pytest.approx(expected["loss"], rel=tolerance)
        assert method.normaliser.item() == pytest.approx(expected["normaliser"], rel=1e-12)
        torch.testing.assert_close(
            x.grad.flatten().tolist(),
            expected["gradients"][0],
            rtol=tolerance,
            atol=1e-7 * tolerance,
        )
        torch.testing.assert_close(
            method.memory.rows.flatten().tolist(), expected["memory"], rtol=1e-12, atol=1e-14
        )


def test_candidates_as_likely_as_noise_cost_log_2_each():
    # P = exp(0) / Z = 1 / 6 is what 6 / 36 of noise gives: h = 1/2 for the row and its 6 negatives
    loss = nce(torch.zeros(3, 7, dtype=torch.float64), torch.tensor(6.0), images=36)
    assert loss.item() == pytest.approx(7 * math.log(2))


def test_a_certain_match_costs_what_its_negatives_weigh():
    logits = torch.tensor([[60.0, 0.0, 0.0]], dtype=torch.float64)
    # m / images = 2 / 8 and Z = 2: each negative has P = 1/2, h = (1/2) / (1/2 + 1/4) = 2/3
    assert nce(logits, torch.tensor(2.0), images=8).item() == pytest.approx(2 * math.log(3))


def test_the_constant_of_orthogonal_rows_is_the_number_of_images():
    assert partition(torch.zeros(4, 5), images=50).item() == 50


def test_the_constant_stays_that_of_the_first_batch():
    method = on_embeddings(NPIDConfig(width=6, negatives=5), 9)
    method.losses(batch_of(waves(4, 6, phase=0.1), [0, 3, 5, 8]), Progress(0.0, 10))
    first = method.normaliser.item()
    method.losses(batch_of(waves(4, 6, phase=1.3), [0, 3, 5, 8]), Progress(0.1, 10))
    assert method.normaliser.item() == first != 1


def test_a_turn_of_bank_and_embeddings_changes_nothing():
    turn, _ = torch.linalg.qr(waves(6, 6, phase=2.0))
    losses = []
    for matrix in (torch.eye(6, dtype=torch.float64), turn):
        method = on_embeddings(NPIDConfig(width=6, negatives=20), 9)
        method.memory.rows.copy_(F.normalize(waves(9, 6, phase=0.7), dim=1) @ matrix)
        batch = batch_of(waves(4, 6, phase=0.1) @ matrix, [0, 3, 5, 8])
        losses.append(method.losses(batch, Progress(0.0, 10))["NCE"].item())
    assert losses[0] == pytest.approx(losses[1], rel=1e-12)


def test_small_scales_centre_the_embedding_and_the_papers_does_not():
    scaled = scale_recipe(RESNET50, SCALES["demo"]).method
    assert scaled.centred and not RESNET50.method.centred
    trunk = nn.Identity()
    trunk.dim = 6
    z = scaled.build(trunk, TrainingSize(9, 3)).double().projector(waves(4, 6, phase=0.1))
    torch.testing.assert_close(z.mean(dim=0), torch.zeros(128).double())


def test_defaults_are_the_papers():
    config = NPIDConfig()
    assert (config.width, config.negatives) == (128, 4096)
    assert (config.temperature, config.bank_momentum) == (0.07, 0.5)
    assert (RESNET50.epochs, RESNET50.batch_size) == (200, 256)
    rates = [
        learning_rate(RESNET50.optim, 0.03, 0.0, Progress(epoch, 200))
        for epoch in (0, 119.9, 120, 159.9, 160, 200)
    ]
    assert rates == pytest.approx([0.03, 0.03, 0.003, 0.003, 0.0003, 0.0003])
    assert RESNET50.optim.weight_decay == 1e-4 and RESNET50.optim.decay_all
