"""Crops against Pillow and torchvision, and where they are drawn."""

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.stats import ks_2samp
from torchvision import transforms as tv1

from harness import crop as module
from harness.crop import (
    BOX_SLOTS,
    center_crop,
    crop_batch,
    crop_image,
    crop_interleaved,
    draw_boxes,
)
from harness.draws import uniforms
from harness.errors import UserError
from harness.views import CenterCrop, View
from tests.harness.images import pictures, pillow, rows_first

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


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_the_bits_of_a_crop_dont_depend_on_how_the_image_lies_in_memory(interpolation):
    planar = pictures(1, 75, 90)[0]
    interleaved = planar.permute(1, 2, 0).contiguous()
    for box in ([0, 0, 75, 90], [3, 5, 60, 51], [10, 20, 30, 24], [7, 9, 40, 40]):
        for size in (16, 40):
            view = View(size=size, interpolation=interpolation)
            expected = crop_image(planar, np.array(box), view)
            for pixels in (interleaved, planar.permute(1, 2, 0)):
                crop = crop_interleaved(pixels.numpy(), np.array(box), view)
                assert crop.flags.c_contiguous
                assert torch.equal(torch.from_numpy(crop).permute(2, 0, 1), expected)
            assert torch.equal(
                crop_image(interleaved.permute(2, 0, 1), np.array(box), view), expected
            )


@pytest.mark.parametrize("size", [16, 36])
def test_weights_out_of_the_table_are_those_computed_for_the_batch(size, monkeypatch):
    images, view = pictures(64, 28, 32), View(size=size, scale=(0.05, 1.0))
    drawn = uniforms(0, 0, range(64), 0, BOX_SLOTS)
    boxes = draw_boxes(view, drawn, np.tile([28, 32], (64, 1)))
    tabled = crop_batch(rows_first(images), boxes, view)
    monkeypatch.setattr(module, "_TABLED", 0)
    assert torch.equal(tabled, crop_batch(rows_first(images), boxes, view))


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
