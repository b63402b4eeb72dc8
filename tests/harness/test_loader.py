"""Batches: who gets which image, resuming, workers, and the same views for everyone."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from harness import views
from harness.augment import augment
from harness.data import ImageSet, open_split
from harness.draws import permutation
from harness.errors import UserError
from harness.loader import Batch, Plan, eval_batches, steps_per_epoch, train_batches
from harness.views import IMAGENET_PIXELS, CenterCrop, View

RECIPE = (
    View(size=24, blur_p=0.5, solarize_p=0.2),
    View(size=16, scale=(0.05, 0.4), interpolation="bilinear"),
)
CENTRE = CenterCrop(resize=32, size=28)


def in_memory(n: int = 50) -> ImageSet:
    generator = torch.Generator().manual_seed(0)
    return ImageSet(
        name="noise",
        split="train",
        classes=["a", "b", "c"],
        labels=np.arange(n) % 3,
        checksum="0",
        images=torch.randint(0, 256, (n, 3, 32, 32), dtype=torch.uint8, generator=generator),
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """50 JPEGs of different sizes in two classes, the same in both splits."""
    root = tmp_path_factory.mktemp("images")
    for split in ("train", "val"):
        for number in range(50):
            target = root / split / ("even" if number % 2 == 0 else "odd")
            target.mkdir(parents=True, exist_ok=True)
            pixels = np.random.default_rng(number).integers(0, 256, (5, 5, 3), dtype=np.uint8)
            image = Image.fromarray(pixels).resize((40 + number, 90 - number))
            image.save(target / f"{number:02}.jpg")
    return root


def epoch(data: ImageSet, plan: Plan, batch_size: int = 8, seed: int = 0) -> list[Batch]:
    return list(train_batches(data, RECIPE, seed=seed, epoch=3, batch_size=batch_size, plan=plan))


def by_image(batches: list[Batch]) -> dict[int, list[torch.Tensor]]:
    return {
        int(index): [view[row] for view in batch.views]
        for batch in batches
        for row, index in enumerate(batch.indices)
    }


def assert_same(first: list[Batch], second: list[Batch]) -> None:
    assert len(first) == len(second)
    for a, b in zip(first, second, strict=True):
        assert torch.equal(a.indices, b.indices) and torch.equal(a.labels, b.labels)
        assert all(torch.equal(x, y) for x, y in zip(a.views, b.views, strict=True))


def test_an_epoch_follows_the_permutation_in_batches_with_the_images_labels():
    batches = epoch(in_memory(), Plan())
    assert len(batches) == 6  # 50 // 8
    order = permutation(0, 3, 50)[:48]
    assert torch.cat([batch.indices for batch in batches]).tolist() == order.tolist()
    assert torch.cat([batch.labels for batch in batches]).tolist() == (order % 3).tolist()
    assert [tuple(view.shape) for view in batches[0].views] == [(8, 3, 24, 24), (8, 3, 16, 16)]
    assert all(view.dtype == torch.float32 for view in batches[0].views)


def test_views_in_memory_are_the_executors():
    data = in_memory()
    batch = epoch(data, Plan())[2]
    assert data.images is not None
    images = data.images[batch.indices]
    expected = augment(images, batch.indices.numpy(), RECIPE, seed=0, epoch=3)
    assert all(torch.equal(a, b) for a, b in zip(batch.views, expected, strict=True))


@pytest.mark.parametrize("kind", ["memory", "files"])
def test_two_ranks_share_a_step_and_give_each_image_the_views_of_one_rank(kind, folder):
    data = in_memory() if kind == "memory" else open_split(str(folder), "train")
    single = epoch(data, Plan(), batch_size=8)
    ranks = [epoch(data, Plan(rank=rank, world=2), batch_size=4) for rank in (0, 1)]
    for step, batch in enumerate(single):
        for rank in (0, 1):
            assert torch.equal(ranks[rank][step].indices, batch.indices[rank::2])
            for mine, whole in zip(ranks[rank][step].views, batch.views, strict=True):
                assert torch.equal(mine, whole[rank::2])


@pytest.mark.parametrize("kind", ["memory", "files"])
def test_a_resumed_epoch_goes_on_where_it_stopped(kind, folder):
    data = in_memory() if kind == "memory" else open_split(str(folder), "train")
    assert_same(epoch(data, Plan(start_step=4)), epoch(data, Plan())[4:])
    assert epoch(data, Plan(start_step=6)) == []


def test_workers_deliver_the_same_bits_as_the_process_itself(folder):
    data = open_split(str(folder), "train")
    assert_same(epoch(data, Plan(workers=2), batch_size=40), epoch(data, Plan(), batch_size=40))


def test_loading_leaves_torchs_global_generator_alone(folder):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    next(
        train_batches(
            open_split(str(folder), "train"), RECIPE, seed=0, epoch=0, batch_size=4, plan=Plan()
        )
    )
    epoch(in_memory(), Plan())
    assert torch.equal(torch.rand(3), expected)


def test_a_subset_is_permuted_within_itself_and_keeps_the_data_sets_indices():
    kept = np.array([3, 5, 8, 13, 21, 34])
    batches = epoch(in_memory(), Plan(indices=kept), batch_size=2)
    seen = torch.cat([batch.indices for batch in batches])
    assert seen.tolist() == kept[permutation(0, 3, 6)].tolist()
    whole = by_image(epoch(in_memory(), Plan(drop_last=False)))
    for index, own in by_image(batches).items():
        assert all(torch.equal(a, b) for a, b in zip(own, whole[index], strict=True))


def test_without_drop_last_every_image_comes_once():
    for world in (1, 3):
        ranks = [
            epoch(in_memory(), Plan(rank=r, world=world, drop_last=False)) for r in range(world)
        ]
        seen = [int(index) for batches in ranks for batch in batches for index in batch.indices]
        assert sorted(seen) == list(range(50))


def test_steps_per_epoch_count_what_train_batches_yields():
    assert steps_per_epoch(50, 8, Plan()) == 6
    assert steps_per_epoch(50, 8, Plan(drop_last=False)) == 7
    assert steps_per_epoch(50, 8, Plan(world=2)) == 3


def test_a_batch_larger_than_the_data_set_names_the_numbers():
    message = r"a batch of 60 images \(30 on each of 2 processes\) cannot be drawn from 50; use"
    with pytest.raises(UserError, match=message):
        epoch(in_memory(), Plan(world=2), batch_size=30)


@pytest.mark.parametrize("kind", ["memory", "files"])
@pytest.mark.parametrize("world", [1, 3])
def test_evaluation_counts_every_image_once_in_order(kind, world, folder):
    data = in_memory() if kind == "memory" else open_split(str(folder), "val")
    for rank in range(world):
        plan = Plan(rank=rank, world=world)
        batches = list(eval_batches(data, CENTRE, IMAGENET_PIXELS, batch_size=7, plan=plan))
        indices = torch.cat([batch.indices for batch in batches])
        assert indices.tolist() == list(range(rank, 50, world))
        assert all(len(batch.views) == 1 for batch in batches)
        assert max(len(batch.labels) for batch in batches) == 7


def test_evaluation_pixels_are_normalised_centre_crops_whatever_the_batch_size(folder):
    data = open_split(str(folder), "val")
    whole = torch.cat(
        [
            b.views[0]
            for b in eval_batches(data, CENTRE, IMAGENET_PIXELS, batch_size=50, plan=Plan())
        ]
    )
    small = torch.cat(
        [
            b.views[0]
            for b in eval_batches(data, CENTRE, IMAGENET_PIXELS, batch_size=3, plan=Plan(workers=1))
        ]
    )
    assert torch.equal(whole, small)
    raw = eval_batches(data, CENTRE, views.RAW_PIXELS, batch_size=50, plan=Plan())
    pixels = torch.cat([b.views[0] for b in raw])
    assert pixels.min() >= 0 and pixels.max() <= 1
    mean = torch.tensor(IMAGENET_PIXELS.mean).view(3, 1, 1)
    std = torch.tensor(IMAGENET_PIXELS.std).view(3, 1, 1)
    torch.testing.assert_close(whole, (pixels - mean) / std, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_corrupt_image_stops_the_epoch_with_one_sentence_that_names_it(tmp_path, workers):
    for name in ("a", "b"):
        for split in ("train", "val"):
            (tmp_path / split / name).mkdir(parents=True)
            Image.new("RGB", (40, 40)).save(tmp_path / split / name / "1.jpg")
    (tmp_path / "train/b/1.jpg").write_bytes(b"broken")
    data = open_split(str(tmp_path), "train")
    with pytest.raises(UserError, match=r"^[^\n]*train/b/1\.jpg is not a readable image[^\n]*$"):
        epoch(data, Plan(workers=workers), batch_size=2)


needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")


@needs_gpu
@pytest.mark.parametrize("kind", ["memory", "files"])
def test_a_gpu_busy_with_a_step_gets_the_views_of_an_idle_one(kind, folder):
    data = in_memory() if kind == "memory" else open_split(str(folder), "train")
    plan = Plan(device="cuda", workers=2)
    expected = []
    for batch in train_batches(data, RECIPE, seed=0, epoch=3, batch_size=8, plan=plan):
        torch.cuda.synchronize()
        expected.append([view.cpu() for view in batch.views])
    weight = torch.randn(4096, 4096, device="cuda")
    sums = []
    for batch in train_batches(data, RECIPE, seed=0, epoch=3, batch_size=8, plan=plan):
        for _ in range(20):  # the next batches are made meanwhile
            weight = weight @ weight / weight.norm()
        sums.append([view.double().sum() for view in batch.views])
    for found, views_ in zip(sums, expected, strict=True):
        assert [x.item() for x in found] == pytest.approx([v.double().sum().item() for v in views_])
