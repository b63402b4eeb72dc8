"""The chain of photometric operations: order, and who gets what."""

from dataclasses import replace

import numpy as np
import torch
from torchvision.transforms.v2 import functional as tv2

from harness.augment import apply_colours
from harness.parameters import Colours
from harness.views import View
from tests.harness.images import FLOATS, pictures

EXACT = {"rtol": 0, "atol": 2e-6}  # float rounding


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
