"""Bootstrap intervals: how far a number would move with other images of the same kind.

They say nothing of other seeds. Efron and Tibshirani 1993, percentile method, 95 %.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from harness.protocol import Estimate

COVERAGE = 0.95
_TAILS = ((1 - COVERAGE) / 2, (1 + COVERAGE) / 2)


def accuracy(hits: np.ndarray) -> Estimate:
    """Share of true values in percent, with its interval.

    The number of hits among n images drawn with replacement is binomial, so the quantiles are
    known exactly and nothing needs to be drawn.

    Args:
        hits: bool (n,), one per image.
    """
    from scipy.stats import binom

    n, share = len(hits), float(np.mean(hits))
    low, high = (100 * float(binom.ppf(q, n, share)) / n for q in _TAILS)
    return Estimate(100 * share, low, high)


def mean_share(shares: np.ndarray) -> Estimate:
    """Mean share in percent, with its interval.

    The mean of so many images drawn with replacement is normal, so nothing needs to be drawn.

    Args:
        shares: (n,) in [0, 1], one per image.
    """
    from scipy.stats import norm

    mean, error = float(shares.mean()), float(shares.std()) / len(shares) ** 0.5
    low, high = (mean + error * float(norm.ppf(q)) for q in _TAILS)
    return Estimate(100 * mean, 100 * max(low, 0.0), 100 * min(high, 1.0))


def interval(
    value: float, statistic: Callable[[np.ndarray], float], images: int, *, draws: int = 1000
) -> Estimate:
    """`value` with the interval of a statistic over images drawn with replacement.

    Args:
        value: The statistic of all images.
        statistic: Of positions (images,), with repetitions.
        images: How many there are.
        draws: Of samples; always the same ones.
    """
    return between(value, [statistic(positions) for positions in samples(images, draws)])


def samples(images: int, draws: int) -> Iterator[np.ndarray]:
    """Positions (images,) drawn with replacement, `draws` times; always the same ones."""
    generator = np.random.default_rng(0)
    for _ in range(draws):
        yield generator.integers(0, images, images)


def between(value: float, found: Sequence[float] | np.ndarray) -> Estimate:
    """`value` with the interval that `found`, the statistic of each sample, leaves; NaN counts not.

    Args:
        value: The statistic of all images.
        found: (draws,).
    """
    low, high = np.nanquantile(found, _TAILS)
    return Estimate(value, float(low), float(high))
