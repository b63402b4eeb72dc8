from pathlib import Path

import pytest
import torch

from harness import dist
from harness.nce import draw_candidates, similarities
from tests.gloo import run_on
from tests.golden.inputs import waves

INDICES = torch.tensor([3, 1, 17, 9])


@pytest.mark.parametrize("images", [5, 500], ids=["all products", "copied rows"])
def test_both_forms_give_the_products_with_the_rows_and_their_gradient(images):
    z, bank = waves(3, 4, phase=0.1).requires_grad_(), waves(images, 4, phase=0.7)
    rows = torch.tensor([[0, 2, 2, 4], [1, 1, 1, 1], [4, 3, 2, 1]])  # rows repeat
    expected = torch.einsum("nd,nkd->nk", z, bank[rows])
    found = similarities(z, bank, rows)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    weights = waves(3, 4, phase=2.0)
    ours = torch.autograd.grad((found * weights).sum(), z)
    theirs = torch.autograd.grad((expected * weights).sum(), z)
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


def test_half_precision_embeddings_meet_the_bank_in_full_precision():
    z, bank = waves(3, 4, phase=0.1).bfloat16(), waves(500, 4, phase=0.7).float()
    rows = torch.tensor([[0, 2]] * 3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = similarities(z, bank, rows)
    torch.testing.assert_close(found, z.float() @ bank[[0, 2]].T)


def drawn() -> torch.Tensor:
    generator = torch.Generator().manual_seed(5)
    return draw_candidates(generator, INDICES[dist.rank() :: dist.world()], 6, images=20)


def test_an_image_has_its_own_row_first_and_random_ones_after_it():
    rows = drawn()
    assert rows[:, 0].equal(INDICES)
    assert rows.equal(drawn())
    assert rows.min() >= 0 and rows.max() < 20


def test_random_rows_are_uniform_over_all_images():
    generator = torch.Generator().manual_seed(0)
    rows = draw_candidates(generator, INDICES, 50_000, images=20)[:, 1:]
    # 10,000 expected of each, standard deviation 97
    assert (rows.flatten().bincount(minlength=20) - 10_000).abs().max() < 500


def test_an_image_gets_the_same_rows_on_one_and_on_two_processes(tmp_path: Path):
    first, second = run_on(2, drawn, tmp_path)
    assert torch.stack([first, second], dim=1).flatten(0, 1).equal(drawn())
