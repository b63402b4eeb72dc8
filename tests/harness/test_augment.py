"""The executor against torchvision and Pillow: operations, parameters, whole recipes."""

import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter
from scipy.stats import ks_2samp
from torchvision import transforms as tv1
from torchvision.transforms.v2 import functional as tv2

from harness import photometrics, views
from harness.augment import apply_colours, augment, colour, crop_views
from harness.crop import BOX_SLOTS, center_crop, crop_batch, crop_image, cut_patches, draw_boxes
from harness.draws import uniforms
from harness.errors import UserError
from harness.parameters import Colours, draw_colours, draw_view
from harness.views import CenterCrop, View

EXACT = {"rtol": 0, "atol": 2e-6}  # float rounding


def pictures(n: int, height: int, width: int) -> torch.Tensor:
    """Smooth colourful uint8 images with full contrast: enlarged noise."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.rand(n, 3, 6, 7, generator=generator)
    large = torch.nn.functional.interpolate(noise, size=(height, width), mode="bicubic")
    return ((large * 1.6 - 0.3).clamp(0, 1) * 255).round().to(torch.uint8)


def pillow(image: torch.Tensor) -> Image.Image:
    return Image.fromarray(image.permute(1, 2, 0).numpy())


def column(*values: float) -> torch.Tensor:
    return torch.tensor(values).view(-1, 1, 1, 1)


def rows_first(images: torch.Tensor) -> torch.Tensor:
    return images.permute(0, 2, 1, 3).contiguous().float()


FLOATS = pictures(4, 20, 24).float() / 255
FACTORS = (0.2, 0.7, 1.3, 1.8)


@pytest.mark.parametrize(
    ("name", "share"), [("brightness", None), ("saturation", "luma"), ("contrast", "mean")]
)
def test_a_blend_is_torchvisions_brightness_saturation_or_contrast(name, share):
    factor = column(*FACTORS)
    rest = 1 - factor
    mean = photometrics.mean_per_image(photometrics.luma(FLOATS))
    grey_share = rest if share == "luma" else torch.zeros_like(rest)
    offset = rest * mean if share == "mean" else torch.zeros_like(rest)
    ours = photometrics.blend(FLOATS.clone(), factor, grey_share, offset)
    reference = getattr(tv2, f"adjust_{name}")
    theirs = torch.stack([reference(x, f) for x, f in zip(FLOATS, FACTORS, strict=True)])
    torch.testing.assert_close(ours, theirs, **EXACT)


def test_hue_shifts_are_torchvisions_for_each_image():
    turns = (-0.5, -0.13, 0.07, 0.4)
    images = FLOATS.clone()
    images[:, :, 0, 0] = 0.3  # a grey pixel has no hue
    images[:, :, 0, 1] = torch.tensor([0.8, 0.8, 0.1])  # two channels share the maximum
    ours = photometrics.shift_hue(images, torch.tensor(turns).view(-1, 1, 1))
    theirs = torch.stack([tv2.adjust_hue(x, t) for x, t in zip(images, turns, strict=True)])
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)
    assert torch.equal(ours[:, :, 0, 0], images[:, :, 0, 0])


def test_luma_is_torchvisions_grayscale():
    theirs = tv2.rgb_to_grayscale(FLOATS, num_output_channels=1)
    torch.testing.assert_close(photometrics.luma(FLOATS), theirs, **EXACT)


@pytest.mark.parametrize("sigmas", [(0.1, 0.5, 1.0, 2.0), (1.7, 1.7, 1.7, 1.7)])
def test_blur_is_torchvisions_gaussian_with_a_kernel_of_three_sigma(sigmas):
    ours = photometrics.blur(FLOATS, torch.tensor(sigmas, dtype=torch.float64))
    for image, mine, sigma in zip(FLOATS, ours, sigmas, strict=True):
        kernel = 2 * int(np.ceil(3 * sigma)) + 1
        torch.testing.assert_close(
            mine, tv2.gaussian_blur(image, [kernel] * 2, [sigma] * 2), **EXACT
        )


def test_blur_is_within_two_percent_of_simclrs_and_pillows():
    image = pictures(1, 224, 224).float() / 255
    for sigma in (0.4, 1.1, 2.0):
        ours = photometrics.blur(image, torch.tensor([sigma], dtype=torch.float64))[0]
        simclr = tv2.gaussian_blur(image[0], [23, 23], [sigma, sigma])
        assert (ours - simclr).abs().max() < 0.004
        drawn = pillow((image[0] * 255).byte()).filter(ImageFilter.GaussianBlur(sigma))
        theirs = torch.from_numpy(np.array(drawn)).permute(2, 0, 1) / 255
        assert (ours - theirs).abs().max() < 0.02


def test_solarize_posterize_sharpen_and_autocontrast_are_torchvisions():
    eight_bit = pictures(4, 20, 24)
    images = eight_bit.float() / 255
    assert torch.equal(photometrics.solarize(images, 0.5), tv2.solarize(images, 0.5))
    bits = (4, 5, 7, 8)
    ours = photometrics.posterize(images, column(*bits)) * 255
    theirs = torch.stack([tv2.posterize(x, b) for x, b in zip(eight_bit, bits, strict=True)])
    torch.testing.assert_close(ours, theirs.float(), rtol=0, atol=1e-4)
    ours = photometrics.sharpen(images, column(*FACTORS))
    theirs = [tv2.adjust_sharpness(x, f) for x, f in zip(images, FACTORS, strict=True)]
    torch.testing.assert_close(ours, torch.stack(theirs), **EXACT)
    dull = images * 0.4 + 0.2
    dull[:, 1] = 0.3  # a constant channel stays
    torch.testing.assert_close(photometrics.autocontrast(dull), tv2.autocontrast(dull), **EXACT)


def test_normalize_is_torchvisions():
    swav = views.SWAV_PIXELS
    theirs = tv2.normalize(FLOATS, list(swav.mean), list(swav.std))
    ours = photometrics.normalize(FLOATS, swav)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def neutral(n: int) -> Colours:
    off = np.zeros(n, dtype=bool)
    return Colours(
        flip=off,
        order=np.tile(np.arange(4), (n, 1)),
        factors=np.tile([1.0, 1.0, 1.0, 0.0], (n, 1)),
        adjust=off,
        bits=np.full(n, 8.0),
        sharpness=np.ones(n),
        inversion=np.full(n, 256 / 255),
        gray=off,
        sigma=np.zeros(n),
        solarize=off,
    )


def test_jitter_runs_the_four_operations_in_each_images_own_order():
    orders = np.array([[0, 1, 2, 3], [3, 2, 1, 0], [2, 0, 3, 1], [1, 3, 0, 2]])
    factors = np.array([1.35, 0.7, 1.3, 0.08])
    colours = replace(neutral(4), order=orders, factors=np.tile(factors, (4, 1)))
    ours = apply_colours(FLOATS.clone(), colours, View(size=20))
    adjust = (tv2.adjust_brightness, tv2.adjust_contrast, tv2.adjust_saturation, tv2.adjust_hue)
    for image, mine, order in zip(FLOATS, ours, orders, strict=True):
        for operation in order:
            image = adjust[operation](image, factors[operation])
        torch.testing.assert_close(mine, image, rtol=0, atol=2e-5)


def test_additive_brightness_adds_to_every_channel_and_clamps():
    order = np.array([[0, 1, 2, 3], [1, 0, 2, 3]])
    factors = np.array([[0.3, 1, 1, 0], [-0.4, 1, 1, 0]])
    colours = replace(neutral(2), order=order, factors=factors)
    view = View(size=20, brightness="additive")
    ours = apply_colours(FLOATS[:2].clone(), colours, view)
    torch.testing.assert_close(ours[0], (FLOATS[0] + 0.3).clamp(0, 1), **EXACT)
    torch.testing.assert_close(ours[1], (FLOATS[1] - 0.4).clamp(0, 1), **EXACT)


def test_flip_gray_blur_and_solarize_run_in_the_fields_order_on_the_chosen_images():
    only_first = np.array([True, False])
    colours = replace(
        neutral(2), flip=only_first, gray=only_first, sigma=np.array([0.8, 0]), solarize=only_first
    )
    ours = apply_colours(FLOATS[:2].clone(), colours, View(size=20, solarize_threshold=0.5))
    image = tv2.rgb_to_grayscale(tv2.hflip(FLOATS[0]), num_output_channels=3)
    image = tv2.solarize(tv2.gaussian_blur(image, [7, 7], [0.8, 0.8]), 0.5)
    # A pixel at the threshold may fall on either side of it.
    assert ((ours[0] - image).abs() > 1e-5).float().mean() < 0.001
    assert torch.equal(ours[1], FLOATS[1])


def test_the_adjustment_is_vissls_posterize_sharpness_solarize_autocontrast():
    colours = replace(
        neutral(2),
        adjust=np.array([True, False]),
        bits=np.full(2, 5.0),
        sharpness=np.full(2, 1.6),
        inversion=np.full(2, 150 / 255),
    )
    images = pictures(2, 20, 24)
    ours = apply_colours(images.float() / 255, colours, View(size=20))
    image = tv2.posterize(images[0], 5).float() / 255
    image = tv2.solarize(tv2.adjust_sharpness(image, 1.6), 150 / 255)
    assert ((ours[0] - tv2.autocontrast(image)).abs() > 1e-5).float().mean() < 0.001
    assert torch.equal(ours[1], images[1].float() / 255)


BOXES = np.array([[0, 0, 40, 48], [3, 5, 31, 22], [10, 1, 9, 44], [39, 47, 1, 1]])


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("size", [16, 40])
def test_both_crops_are_within_one_grey_level_of_pillows(interpolation, size):
    images = pictures(4, 40, 48)
    view = View(size=size, interpolation=interpolation)
    batch = crop_batch(rows_first(images), BOXES, view)
    filters = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}
    for image, box, crop in zip(images, BOXES, batch, strict=True):
        top, left, height, width = box.tolist()
        part = pillow(image).crop((left, top, left + width, top + height))
        drawn = np.array(part.resize((size, size), filters[interpolation]))
        theirs = torch.from_numpy(drawn).permute(2, 0, 1).float()
        # Pillow rounds after each of its two passes; negative weights enlarge the first error.
        assert (crop - theirs).abs().max() < 1.5
        assert (crop_image(image, box, view).float() - theirs).abs().max() <= 1


def test_a_crop_of_the_whole_image_at_its_own_size_changes_nothing():
    images = pictures(3, 32, 32)
    boxes = np.tile([0, 0, 32, 32], (3, 1))
    for interpolation in ("bicubic", "bilinear"):
        view = View(size=32, interpolation=interpolation)
        assert torch.equal(crop_batch(rows_first(images), boxes, view), images.float())


@pytest.mark.parametrize(
    ("height", "width", "scale"),
    [
        (32, 32, (0.08, 1.0)),
        (375, 500, (0.08, 1.0)),
        (500, 333, (0.05, 0.14)),
        (30, 200, (0.6, 1.0)),
    ],
)
def test_crop_boxes_follow_torchvisions_distribution(height, width, scale):
    n = 4_000
    sizes = np.tile([height, width], (n, 1))
    ours = draw_boxes(View(size=32, scale=scale), uniforms(0, 0, range(n), 0, BOX_SLOTS), sizes)
    assert (ours[:, :2] >= 0).all() and (ours[:, 2:] >= 1).all()
    assert (ours[:, :2] + ours[:, 2:] <= [height, width]).all()
    torch.manual_seed(0)
    image = torch.empty(3, height, width)
    get = tv1.RandomResizedCrop.get_params
    theirs = np.array([get(image, list(scale), [3 / 4, 4 / 3]) for _ in range(n)])
    for a, b in zip(ours.T, theirs.T, strict=True):
        assert ks_2samp(a, b).pvalue > 1e-4
    assert ks_2samp(ours[:, 2] / ours[:, 3], theirs[:, 2] / theirs[:, 3]).pvalue > 1e-4


def test_a_crop_that_never_fits_falls_back_to_the_largest_centred_box():
    view = View(size=32, scale=(1.0, 1.0))
    wide, tall, square = [10, 100], [100, 10], [50, 50]
    low = np.zeros((3, BOX_SLOTS))  # the ratio 3/4, which with the whole area never fits
    boxes = draw_boxes(view, low, np.array([wide, tall, square]))
    assert boxes.tolist() == [[0, 43, 10, 13], [43, 0, 13, 10], [0, 0, 50, 50]]


def test_jitter_factors_and_orders_follow_torchvisions_distribution():
    n = 4_000
    view = View(size=32, jitter=(0.4, 0.3, 1.2, 0.1), jitter_p=1.0)
    drawn = draw_view(view, 0, np.arange(n), seed=0, epoch=0)
    ours = draw_colours(view, drawn.colours)
    torch.manual_seed(0)
    jitter = tv1.ColorJitter(0.4, 0.3, 1.2, 0.1)
    ranges = (jitter.brightness, jitter.contrast, jitter.saturation, jitter.hue)
    draws = [tv1.ColorJitter.get_params(*ranges) for _ in range(n)]
    for position in range(4):
        theirs = [draw[1 + position] for draw in draws]
        assert ks_2samp(ours.factors[:, position], theirs).pvalue > 1e-4
    _, counts = np.unique(ours.order, axis=0, return_counts=True)
    assert len(counts) == 24
    expected = n / 24
    assert ((counts - expected) ** 2 / expected).sum() < 57  # chi-squared, 23 df, p = 1e-4


def test_every_operation_is_applied_with_its_own_probability():
    n = 20_000
    view = replace(
        views.ASYMMETRIC[0], jitter_p=0.8, gray_p=0.2, blur_p=0.3, solarize_p=0.1, adjust_p=0.66
    )
    colours = draw_colours(view, draw_view(view, 0, np.arange(n), seed=0, epoch=0).colours)
    applied = {
        "flip": (colours.flip, 0.5),
        "jitter": (colours.factors[:, 0] != 1, 0.8),
        "gray": (colours.gray, 0.2),
        "blur": (colours.sigma > 0, 0.3),
        "solarize": (colours.solarize, 0.1),
        "adjust": (colours.adjust, 0.66),
    }
    for name, (mask, p) in applied.items():
        assert abs(mask.mean() - p) < 4 * np.sqrt(p * (1 - p) / n), name
    masks = np.corrcoef([mask for mask, _ in applied.values()]) - np.eye(6)
    assert np.abs(masks).max() < 5 / np.sqrt(n)
    blurred = colours.sigma[colours.sigma > 0]
    assert ks_2samp(blurred, np.linspace(0.1, 2.0, 5_001)).pvalue > 1e-4
    assert np.unique(colours.bits).tolist() == [4, 5, 6, 7, 8]
    assert colours.inversion.min() == 0 and colours.inversion.max() == 256 / 255


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


@pytest.mark.parametrize(("height", "width"), [(50, 81), (81, 50), (64, 64), (40, 40)])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_centre_crops_are_within_one_grey_level_of_torchvisions(height, width, interpolation):
    image = pictures(1, height, width)[0]
    mode = {"bicubic": tv1.InterpolationMode.BICUBIC, "bilinear": tv1.InterpolationMode.BILINEAR}
    theirs = tv1.CenterCrop(33)(tv1.Resize(40, interpolation=mode[interpolation])(pillow(image)))
    ours = center_crop(image, CenterCrop(resize=40, size=33, interpolation=interpolation))
    reference_pixels = torch.from_numpy(np.array(theirs)).permute(2, 0, 1).int()
    assert ours.dtype == torch.uint8
    assert (ours.int() - reference_pixels).abs().max() <= 1


def test_a_centre_crop_larger_than_the_image_names_both_sizes():
    with pytest.raises(UserError, match=r"224 px does not fit .* 40 px; use resize >= size"):
        center_crop(pictures(1, 50, 50), CenterCrop(resize=40, size=224))
