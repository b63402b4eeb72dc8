"""Whole recipes against torchvision, and the same views on every path."""

import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter
from torchvision import transforms as tv1

from harness import views
from harness.augment import augment, colour, crop_views
from harness.cpu_views import views_on_cpu
from harness.crop import cut_patches
from harness.parameters import draw_view
from harness.views import View
from tests.harness.images import pictures, pillow


def reference(view: View) -> tv1.Compose:
    """The recipe in torchvision's and Pillow's own operations, on Pillow images."""
    modes = {"bicubic": tv1.InterpolationMode.BICUBIC, "bilinear": tv1.InterpolationMode.BILINEAR}
    jitter = tv1.ColorJitter(*view.jitter)
    if view.brightness == "additive":
        shift = view.jitter[0]

        def brighten(image: Image.Image) -> Image.Image:
            levels = 255 * random.uniform(-shift, shift)
            return image.point(lambda value: value + levels)

        parts = [
            tv1.Lambda(brighten),
            *(tv1.ColorJitter(*row) for row in np.diag([1, *view.jitter[1:]])[1:].tolist()),
        ]
        jitter = tv1.RandomOrder(parts)
    sigma = view.blur_sigma
    blur = tv1.Lambda(lambda x: x.filter(ImageFilter.GaussianBlur(random.uniform(*sigma))))
    return tv1.Compose(
        [
            tv1.RandomResizedCrop(
                view.size, scale=view.scale, interpolation=modes[view.interpolation]
            ),
            tv1.RandomHorizontalFlip(view.flip_p),
            tv1.RandomApply([jitter], p=view.jitter_p),
            tv1.RandomGrayscale(view.gray_p),
            tv1.RandomApply([blur], p=view.blur_p),
            tv1.RandomSolarize(128, p=view.solarize_p),
            tv1.ToTensor(),
            tv1.Normalize(view.pixels.mean, view.pixels.std),
        ]
    )


RECIPES = {
    "asymmetric": views.ASYMMETRIC,
    "imsvd": views.IMSVD,
    "vicreg paper": views.VICREG_PAPER[:1],
    "dino": views.DINO_DEFAULT[:3],
    "dino vit": views.DINO_VIT[:3],
    "dino resnet": views.DINO_RESNET[:3],
    "moco v2": views.MOCO_V2[:1],
    "simclr v1": views.SIMCLR_V1[:1],
    "simclr v2": views.SIMCLR_V2[:1],
    "swav": views.SWAV[1:3],
    "swav two crops": views.SWAV_TWO_CROPS[:1],
    "npid": views.NPID,
    "pirl image": (replace(views.PIRL[0], adjust_p=0.0),),
}


def statistics(batch: torch.Tensor) -> torch.Tensor:
    """Per image: mean of each channel, spread, colourfulness, edge strength: (n, 6)."""
    mean, spread = batch.mean(dim=(2, 3)), batch.std(dim=(1, 2, 3))
    colourful = batch.std(dim=1).mean(dim=(1, 2))
    edges = batch.diff(dim=3).abs().mean(dim=(1, 2, 3))
    return torch.cat([mean, torch.stack([spread, colourful, edges], dim=1)], dim=1)


def resized(recipe, sizes):
    return tuple(replace(view, size=sizes[view.size]) for view in recipe)


@pytest.mark.parametrize("name", RECIPES)
def test_whole_recipes_have_the_statistics_of_a_torchvision_pipeline(name):
    n = 700
    recipe = resized(RECIPES[name], {224: 32, 96: 16})
    image = pictures(1, 40, 40)
    ours = augment(image.expand(n, -1, -1, -1), np.arange(n), recipe, seed=0, epoch=0)
    torch.manual_seed(0)
    random.seed(0)
    for view, batch in zip(recipe, ours, strict=True):
        pipeline, source = reference(view), pillow(image[0])
        a = statistics(batch)
        b = statistics(torch.stack([pipeline(source) for _ in range(n)]))
        error = ((a.var(dim=0) + b.var(dim=0)) / n).sqrt()
        assert ((a.mean(dim=0) - b.mean(dim=0)).abs() < 4.5 * error + 0.01).all()
        torch.testing.assert_close(a.std(dim=0), b.std(dim=0), rtol=0.15, atol=0.02)


def test_views_are_the_same_for_any_batching_and_number_of_threads():
    images = pictures(37, 32, 32)
    recipe = resized(views.DINO_DEFAULT[:3], {224: 28, 96: 16})
    indices = np.arange(100, 137)
    whole = augment(images, indices, recipe, seed=1, epoch=2)
    threads = torch.get_num_threads()
    try:
        for count, size in [(1, 1), (1, 5), (2, 16), (2, 36)]:
            torch.set_num_threads(count)
            parts = [
                augment(images[i : i + size], indices[i : i + size], recipe, seed=1, epoch=2)
                for i in range(0, 37, size)
            ]
            for number, view in enumerate(whole):
                assert torch.equal(torch.cat([part[number] for part in parts]), view)
    finally:
        torch.set_num_threads(threads)


def test_views_change_with_seed_epoch_image_and_position_in_the_recipe():
    image = pictures(1, 32, 32)
    recipe = (View(size=16),) * 2
    base = augment(image, np.array([7]), recipe, seed=1, epoch=2)
    others = [
        base[1],
        augment(image, np.array([8]), recipe, seed=1, epoch=2)[0],
        augment(image, np.array([7]), recipe, seed=2, epoch=2)[0],
        augment(image, np.array([7]), recipe, seed=1, epoch=3)[0],
    ]
    assert all(not torch.equal(base[0], other) for other in others)


def test_files_and_memory_get_the_same_views_up_to_the_rounding_of_the_crop():
    images = pictures(6, 40, 48)
    recipe = tuple(
        replace(view, jitter=(0.4, 0.4, 0.2, 0.0)) for view in (View(size=24), View(size=16))
    )
    indices = np.arange(6)
    in_memory = augment(images, indices, recipe, seed=0, epoch=0)
    crops = crop_views(list(images), indices, recipe, seed=0, epoch=0)
    from_files = colour(crops, indices, recipe, seed=0, epoch=0)
    for a, b in zip(in_memory, from_files, strict=True):
        # One grey level of the crop, at most 1.4**3 times as large after the jitter.
        assert (a - b).abs().max() < 2.8 * 1.3 / 255 / 0.224


@pytest.mark.parametrize("name", [*RECIPES, "pirl", "byol", "crop and flip"])
def test_single_pictures_are_the_views_of_batches_of_crops(name):
    more = {"pirl": views.PIRL, "byol": views.BYOL, "crop and flip": (views.CROP_AND_FLIP,)}
    recipe = {**RECIPES, **more}[name]
    decoded = pictures(3, 120, 150).permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
    images = [decoded[0], decoded[1, :, :90], pictures(1, 90, 100)[0]]
    indices = np.arange(5, 8)
    ours = views_on_cpu(images, indices, recipe, seed=3, epoch=1)
    crops = crop_views(images, indices, recipe, seed=3, epoch=1)
    theirs = colour(crops, indices, recipe, seed=3, epoch=1)
    assert all(batch.is_contiguous() for batch in crops)
    for mine, batch in zip(ours, theirs, strict=True):
        differences = (mine - batch).abs()
        # 0.006 grey levels, and a pixel in a thousand on the other side of a threshold.
        assert (differences > 1e-4).float().mean() < 1e-3
        assert mine.shape == batch.shape and mine.is_contiguous()


def test_pirls_patches_are_one_jittered_64_px_square_of_each_cell_in_random_order():
    view = views.PIRL[1]
    # Every pixel says where it lies: row in the first channel, column in the second.
    rows, columns = torch.meshgrid(torch.arange(255.0), torch.arange(255.0), indexing="ij")
    crops = torch.stack([rows, columns, rows]).expand(200, -1, -1, -1)
    drawn = draw_view(view, 1, np.arange(200), seed=0, epoch=0)
    patches = cut_patches(crops, view, drawn.patches)
    assert patches.shape == (200, 9, 3, 64, 64)
    tops, lefts = patches[:, :, 0, 0, 0], patches[:, :, 1, 0, 0]
    assert torch.equal(patches[:, :, 0, -1, 0], tops + 63)
    cells = (tops // 85 * 3 + lefts // 85).int()
    assert torch.equal(cells.sort(dim=1).values, torch.arange(9).int().expand(200, 9))
    assert (cells == torch.arange(9)).float().mean() == pytest.approx(1 / 9, abs=0.04)
    assert (
        set((tops % 85).unique().tolist()) == set(range(22)) == set((lefts % 85).unique().tolist())
    )
    ours = augment(pictures(2, 300, 280), np.arange(2), views.PIRL, seed=0, epoch=0)
    assert [tuple(view.shape) for view in ours] == [(2, 3, 224, 224), (2, 9, 3, 64, 64)]
    assert all(view.isfinite().all() for view in ours)
