import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from baselines import pirl
from baselines.pirl import PIRL, RESNET50, RESNET50_MLP, PIRLConfig
from harness.batchnorm import set_batchnorm
from harness.loader import Batch
from harness.optim import learning_rate
from harness.recipe import Progress, TrainingSize
from harness.scale import SCALES, scale_recipe
from tests.golden import losses_of
from tests.golden.inputs import waves

INDICES = [0, 3, 5, 8]
START = Progress(0.0, 10)


def on_features(config: PIRLConfig, images: int, width: int) -> PIRL:
    """PIRL whose images and patches are their features already."""
    trunk = nn.Identity()
    trunk.dim = width
    torch.manual_seed(0)
    return config.build(trunk, TrainingSize(images, 3)).double()


def batch_of(view: torch.Tensor, patches: torch.Tensor, indices: list[int] = INDICES) -> Batch:
    return Batch([view, patches], torch.full((len(view),), -1), torch.tensor(indices), seed=5)


def candidates(case: dict, draw: int) -> torch.Tensor:
    """What the authors' code was given in the place of random draws."""
    i, j = torch.arange(case["n"])[:, None], torch.arange(case["negatives"] + 1)
    rows = (3 * i * i + 5 * i * j + j * j + draw) % case["images"]
    rows[:, 0] = torch.tensor(case["indices"])
    return rows


@pytest.mark.parametrize(
    "case", losses_of("pirl"), ids=lambda case: f"{case['loss_type']}, eps={case['eps']}"
)
def test_two_steps_equal_the_authors_code(case, monkeypatch):
    n, d = case["n"], case["d"]
    config = PIRLConfig(
        width=d,
        negatives=case["negatives"],
        loss=case["loss_type"],
        temperature=case["temperature"],
    )
    method = on_features(config, case["images"], d)
    method.image_head = nn.Identity()
    monkeypatch.setattr(PIRL, "embed_patches", lambda self, patches: patches)
    method.memory.rows.copy_(F.normalize(waves(case["images"], d, phase=0.7), dim=1))
    draws = iter(range(4))
    monkeypatch.setattr(pirl, "draw_candidates", lambda *_: candidates(case, next(draws)))
    tolerance = 1e-9 if case["eps"] == 0 else 1e-6  # their guard against log 0
    for step, expected in enumerate((case, case["second_step"])):
        patches, view = (waves(n, d, phase=p + step).requires_grad_() for p in (0.1, 0.5))
        progress = Progress(step / 7, 10)
        loss = sum(method.losses(batch_of(view, patches, case["indices"]), progress).values())
        loss.backward()
        method.after_step(progress)
        assert loss.item() == pytest.approx(expected["loss"], rel=tolerance)
        for x, gradient in zip((patches, view), expected["gradients"], strict=True):
            torch.testing.assert_close(
                x.grad.flatten().tolist(), gradient, rtol=tolerance, atol=1e-7 * tolerance
            )
        torch.testing.assert_close(
            method.memory.rows.flatten().tolist(), expected["memory"], rtol=1e-12, atol=1e-14
        )
        if case["loss_type"] == "nce":
            assert method.normaliser.item() == pytest.approx(expected["normaliser"], rel=1e-12)


@pytest.mark.parametrize(
    ("loss", "expected"),
    [
        # P = 1 / images for every row: h = 1 / (1 + m) for m = 20
        ("nce", math.log(21) + 20 * math.log(21 / 20)),
        ("cross_entropy", math.log(21)),
    ],
)
def test_an_empty_bank_costs_as_much_as_not_knowing(loss, expected):
    method = on_features(PIRLConfig(width=6, negatives=20, loss=loss, patch_weight=0.25), 9, 6)
    method.memory.rows.zero_()
    terms = method.losses(batch_of(waves(4, 6, phase=0.1), waves(4, 9, 6, phase=1.3)), START)
    assert terms["patches"].item() == pytest.approx(0.25 * expected)
    assert terms["image"].item() == pytest.approx(0.75 * expected)


def test_the_bank_moves_towards_the_image_whatever_the_patches_are():
    rows = []
    for phase in (1.3, 2.9):
        method = on_features(PIRLConfig(width=6, negatives=20), 9, 6)
        before = method.memory.rows.clone()
        method.losses(batch_of(waves(4, 6, phase=0.1), waves(4, 9, 6, phase=phase)), START)
        method.after_step(START)
        rows.append(method.memory.rows)
        unseen = [1, 2, 4, 6, 7]
        assert rows[-1][unseen].equal(before[unseen])
        assert not rows[-1][INDICES].isclose(before[INDICES]).any()
    assert rows[0].equal(rows[1])


def test_rows_are_unit_vectors_from_the_start():
    method = on_features(PIRLConfig(width=6), 9, 6)
    torch.testing.assert_close(method.memory.rows.norm(dim=1), torch.ones(9).double())


def test_an_images_patches_are_joined_in_their_order():
    method = on_features(PIRLConfig(width=6), 9, 6)
    method.patch_head, method.join = nn.Identity(), nn.Identity()
    patches = waves(4, 9, 6, phase=0.1)
    assert method.embed_patches(patches).equal(patches.flatten(1))


def test_batch_norm_takes_the_patches_of_a_groups_images_together():
    method = on_features(PIRLConfig(width=6), 9, 6)
    method.backbone = nn.BatchNorm1d(6).double()
    method.patch_head, method.join = nn.Identity(), nn.Identity()
    set_batchnorm(method, 2, batch_size=4)  # images 0 and 2, then 1 and 3
    patches = waves(4, 9, 6, phase=0.1)
    found = method.embed_patches(patches).view(4, 9, 6)
    for start in (0, 1):
        group = patches[start::2]
        deviation = (group.var(dim=(0, 1), correction=0) + 1e-5).sqrt()
        torch.testing.assert_close(found[start::2], (group - group.mean(dim=(0, 1))) / deviation)


def test_small_scales_centre_the_embeddings_and_the_papers_does_not():
    scaled = scale_recipe(RESNET50, SCALES["demo"]).method
    assert scaled.centred and not RESNET50.method.centred
    method = on_features(scaled, 9, 6)
    embeddings = (
        method.image_head(waves(4, 6, phase=0.1)),
        method.embed_patches(waves(4, 9, 6, phase=0.1)),
    )
    for z in embeddings:
        torch.testing.assert_close(z.mean(dim=0), torch.zeros(128).double())


def test_defaults_are_the_papers():
    config = PIRLConfig()
    assert (config.negatives, config.temperature, config.bank_momentum) == (32000, 0.07, 0.5)
    assert (config.patch_weight, config.patches, config.width) == (0.5, 9, 128)
    assert (RESNET50.epochs, RESNET50.batch_size) == (800, 1024)
    peak = RESNET50.optim.lr * 1024 / 256
    rates = [
        learning_rate(RESNET50.optim, peak, RESNET50.optim.final_lr, Progress(epoch, 800))
        for epoch in (0, 0.9, 400, 800)
    ]
    assert rates == pytest.approx([0.12, 0.12, 0.06006, 0.00012])
    patches = RESNET50.views[1]
    assert (patches.size, patches.patch_grid, patches.patch_size) == (255, 3, 64)


def test_heads_are_the_papers():
    trunk = nn.Identity()
    trunk.dim = 2048
    method = PIRLConfig().build(trunk, TrainingSize(10, 3))
    shapes = [tuple(p.shape) for p in method.parameters() if p.ndim == 2]
    assert shapes == [(128, 2048), (128, 2048), (128, 9 * 128)]
    improved = RESNET50_MLP.method.build(trunk, TrainingSize(10, 3))
    shapes = [tuple(p.shape) for p in improved.parameters() if p.ndim == 2]
    assert shapes == [(2048, 2048), (128, 2048), (2048, 2048), (128, 2048), (128, 9 * 128)]
    assert (RESNET50_MLP.method.loss, RESNET50_MLP.method.temperature) == ("cross_entropy", 0.1)
