from pathlib import Path

import torch
from torch.nn import functional as F

from harness import dist
from harness.memory import MemoryBank, Queue
from tests.gloo import run_on
from tests.golden.inputs import waves


def numbered(first: int, count: int) -> torch.Tensor:
    """Rows (count, 2) that tell their number."""
    return torch.arange(first, first + count).double()[:, None].expand(-1, 2)


def filled(*counts: int) -> Queue:
    """A queue of 5 rows after batches of so many rows, numbered on from 0."""
    queue, first = Queue(5, 2).double(), 0
    for count in counts:
        queue.enqueue(numbered(first, count)[dist.rank() :: dist.world()])
        first += count
    return queue


def test_a_queue_starts_with_random_unit_rows():
    rows = Queue(50, 8).rows
    torch.testing.assert_close(rows.norm(dim=1), torch.ones(50))
    assert rows.mean(dim=0).norm() < 0.5


def test_a_batch_takes_the_places_of_the_oldest_rows():
    queue = filled(5, 2)
    assert queue.rows[:, 0].tolist() == [5, 6, 2, 3, 4]
    assert queue.cursor.item() == 2


def test_a_batch_that_reaches_beyond_the_end_goes_on_at_the_start():
    queue = filled(4, 3)
    assert queue.rows[:, 0].tolist() == [5, 6, 2, 3, 4]
    assert queue.cursor.item() == 2


def test_of_a_batch_larger_than_the_queue_the_last_rows_stay():
    queue = filled(2, 12)
    assert sorted(queue.rows[:, 0].tolist()) == [9, 10, 11, 12, 13]
    queue.enqueue(numbered(14, 2))
    assert sorted(queue.rows[:, 0].tolist()) == [11, 12, 13, 14, 15]  # the oldest went first


def test_a_queue_keeps_no_gradient():
    queue = Queue(5, 2)
    queue.enqueue(torch.ones(2, 2, requires_grad=True) * 2)
    assert not queue.rows.requires_grad


def test_a_restored_queue_goes_on_where_it_was():
    queue, other = filled(3), Queue(5, 2).double()
    other.load_state_dict(queue.state_dict())
    for q in (queue, other):
        q.enqueue(numbered(3, 4))
    assert other.rows.equal(queue.rows)


def bank_of(images: int, width: int) -> MemoryBank:
    bank = MemoryBank(images, width).double()
    bank.rows.copy_(F.normalize(waves(images, width, phase=0.7), dim=1))
    return bank


def moved() -> MemoryBank:
    """A bank of 9 images after two batches of 4, the second of which has images of the first."""
    bank, share = bank_of(9, 3), slice(dist.rank(), None, dist.world())
    for indices, phase in (([8, 1, 4, 2], 0.1), ([2, 7, 8, 0], 1.3)):
        z = F.normalize(waves(4, 3, phase=phase), dim=1)
        bank.update(torch.tensor(indices)[share], z[share], 0.25)
    return bank


def test_a_bank_starts_with_rows_of_about_unit_length():
    rows = MemoryBank(2000, 48).rows
    assert rows.abs().max() <= 0.25  # 1 / sqrt(48 / 3)
    assert abs(rows.square().sum(dim=1).mean().item() - 1) < 0.01


def test_a_row_becomes_the_normalised_mean_of_itself_and_the_embedding():
    bank = MemoryBank(4, 2).double()
    bank.rows.copy_(torch.tensor([[1.0, 0.0]] * 4))
    bank.update(torch.tensor([2]), torch.tensor([[0.0, 1.0]], dtype=torch.float64), 0.25)
    # .25 (1, 0) + .75 (0, 1), of length sqrt(10) / 4
    expected = torch.tensor([1.0, 3.0], dtype=torch.float64) / 10**0.5
    torch.testing.assert_close(bank.rows[2], expected)
    assert bank.rows[[0, 1, 3]].tolist() == [[1.0, 0.0]] * 3


def test_rows_of_images_that_were_not_seen_stay():
    bank, start = moved(), bank_of(9, 3)
    assert bank.rows[[3, 5, 6]].equal(start.rows[[3, 5, 6]])
    torch.testing.assert_close(bank.rows.norm(dim=1), torch.ones(9).double())


def memories() -> dict[str, torch.Tensor]:
    queue, larger = filled(2, 4, 2), filled(2, 12)
    return {"queue": queue.rows, "larger": larger.rows, "bank": moved().rows}


def test_two_processes_remember_what_one_does(tmp_path: Path):
    alone = memories()
    for found in run_on(2, memories, tmp_path):
        for name, rows in alone.items():
            assert found[name][: len(rows)].equal(rows), name
