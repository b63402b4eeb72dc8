"""The distributions of colour parameters against torchvision's."""

from dataclasses import replace

import numpy as np
import torch
from scipy.stats import ks_2samp
from torchvision import transforms as tv1

from harness import views
from harness.parameters import draw_colours, draw_view
from harness.views import View


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
