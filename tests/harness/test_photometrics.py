"""Each photometric operation against torchvision and Pillow, for fixed parameters."""

import numpy as np
import pytest
import torch
from PIL import ImageFilter
from torchvision.transforms.v2 import functional as tv2

from harness import photometrics, views
from tests.harness.images import FLOATS, column, pictures, pillow

EXACT = {"rtol": 0, "atol": 2e-6}  # float rounding


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
