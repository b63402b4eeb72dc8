"""The chain of photometric operations, twice: torch's batches and OpenCV's single pictures."""

from collections.abc import Callable
from dataclasses import replace
from itertools import permutations

import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as tv2

from harness.augment import apply_colours, blend_weights
from harness.cpu_views import Canvas, colour_picture
from harness.parameters import Colours
from harness.views import RAW_PIXELS, View
from tests.harness.images import pictures

EXACT = {"rtol": 0, "atol": 2e-6}  # float rounding
PICTURES = pictures(4, 24, 24)
FLOATS = PICTURES.float() / 255

Chain = Callable[[Tensor, Colours, View], Tensor]


def in_a_batch(images: Tensor, colours: Colours, view: View) -> Tensor:
    return apply_colours(images.float() / 255, colours, view)


def one_by_one(images: Tensor, colours: Colours, view: View) -> Tensor:
    weights = blend_weights(colours, additive=view.brightness == "additive")
    canvas, out = Canvas(images.shape[-1]), torch.empty(images.shape)
    for row, image in enumerate(images):
        canvas.load(image.permute(1, 2, 0).contiguous().numpy(), flip=bool(colours.flip[row]))
        colour_picture(canvas, view, colours, row, weights[:, :, row].tolist())
        canvas.store(RAW_PIXELS, out[row].numpy())
    return out


both = pytest.mark.parametrize("chain", [in_a_batch, one_by_one])


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


@both
def test_jitter_runs_the_four_operations_in_each_images_own_order(chain: Chain):
    orders = np.array([[0, 1, 2, 3], [3, 2, 1, 0], [2, 0, 3, 1], [1, 3, 0, 2]])
    factors = np.array([1.35, 0.7, 1.3, 0.08])
    colours = replace(neutral(4), order=orders, factors=np.tile(factors, (4, 1)))
    ours = chain(PICTURES, colours, View(size=24))
    adjust = (tv2.adjust_brightness, tv2.adjust_contrast, tv2.adjust_saturation, tv2.adjust_hue)
    for image, mine, order in zip(FLOATS, ours, orders, strict=True):
        for operation in order:
            image = adjust[operation](image, factors[operation])
        torch.testing.assert_close(mine, image, rtol=0, atol=2e-5)


@both
def test_additive_brightness_adds_to_every_channel_and_clamps(chain: Chain):
    order = np.array([[0, 1, 2, 3], [1, 0, 2, 3]])
    factors = np.array([[0.3, 1, 1, 0], [-0.4, 1, 1, 0]])
    colours = replace(neutral(2), order=order, factors=factors)
    view = View(size=24, brightness="additive")
    ours = chain(PICTURES[:2], colours, view)
    torch.testing.assert_close(ours[0], (FLOATS[0] + 0.3).clamp(0, 1), **EXACT)
    torch.testing.assert_close(ours[1], (FLOATS[1] - 0.4).clamp(0, 1), **EXACT)


@both
def test_flip_gray_blur_and_solarize_run_in_the_fields_order_on_the_chosen_images(chain: Chain):
    only_first = np.array([True, False])
    colours = replace(
        neutral(2), flip=only_first, gray=only_first, sigma=np.array([0.8, 0]), solarize=only_first
    )
    ours = chain(PICTURES[:2], colours, View(size=24, solarize_threshold=0.5))
    image = tv2.rgb_to_grayscale(tv2.hflip(FLOATS[0]), num_output_channels=3)
    image = tv2.solarize(tv2.gaussian_blur(image, [7, 7], [0.8, 0.8]), 0.5)
    # A pixel at the threshold may fall on either side of it.
    assert ((ours[0] - image).abs() > 1e-5).float().mean() < 0.001
    torch.testing.assert_close(ours[1], FLOATS[1], **EXACT)


@both
def test_the_adjustment_is_vissls_posterize_sharpness_solarize_autocontrast(chain: Chain):
    colours = replace(
        neutral(2),
        adjust=np.array([True, False]),
        bits=np.full(2, 5.0),
        sharpness=np.full(2, 1.6),
        inversion=np.full(2, 150 / 255),
    )
    ours = chain(PICTURES[:2], colours, View(size=24))
    image = tv2.posterize(PICTURES[0], 5).float() / 255
    image = tv2.solarize(tv2.adjust_sharpness(image, 1.6), 150 / 255)
    assert ((ours[0] - tv2.autocontrast(image)).abs() > 1e-5).float().mean() < 0.001
    torch.testing.assert_close(ours[1], FLOATS[1], **EXACT)


@pytest.mark.parametrize("kind", ["multiplicative", "additive"])
def test_all_orders_of_weak_and_strong_jitter_then_gray_and_blur_agree_on_both_paths(kind):
    orders = np.array(list(permutations(range(4))) * 8)
    n = len(orders)
    uniform = np.random.default_rng(0).uniform(-1, 1, (n, 4))
    factors = np.array([1.0, 1.0, 1.0, 0.0]) + uniform * [0.8, 0.8, 0.8, 0.5]
    if kind == "additive":
        factors[:, 0] -= 1
    colours = replace(
        neutral(n),
        order=orders,
        factors=factors,
        gray=np.arange(n) % 5 == 0,
        sigma=np.where(np.arange(n) % 2, np.linspace(0.1, 2, n), 0),
    )
    images = PICTURES[torch.arange(n) % 4]
    view = View(size=24, brightness=kind)
    ours, theirs = one_by_one(images, colours, view), in_a_batch(images, colours, view)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)  # 0.0026 grey levels


@pytest.mark.parametrize("turns", [-0.5, -0.13, -0.004, 0.07, 0.5])
def test_single_pictures_hues_are_torchvisions_in_and_beyond_opencvs_vector_code(turns):
    images = pictures(1, 37, 37)  # 1,369 pixels: vectors and a rest
    images[0, :, 0, 0] = 77  # a grey pixel has no hue
    images[0, :, 0, 1] = torch.tensor([200, 200, 30])  # two channels share the maximum
    images[0, :, 0, 2] = 0
    colours = replace(neutral(1), factors=np.array([[1.0, 1.0, 1.0, turns]]))
    ours = one_by_one(images, colours, View(size=37))[0]
    theirs = tv2.adjust_hue(images[0].float() / 255, turns)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)
