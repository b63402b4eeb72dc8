from __future__ import annotations

import numpy as np
import pytest

from harness import bootstrap


def test_the_interval_of_an_accuracy_is_the_binomials():
    hits = np.repeat([True, False], [700, 300])
    estimate = bootstrap.accuracy(hits)
    # 2.5 and 97.5 % quantiles of Binomial(1000, .7): 671 and 728.
    assert (estimate.value, estimate.low, estimate.high) == pytest.approx((70.0, 67.1, 72.8))


def test_no_resample_of_a_perfect_score_is_lower():
    assert bootstrap.accuracy(np.ones(50, dtype=bool)) == (100.0, 100.0, 100.0)


def test_drawing_images_gives_the_binomials_interval_too():
    hits = np.repeat([1.0, 0.0], [700, 300])
    drawn = bootstrap.interval(70.0, lambda rows: 100 * hits[rows].mean(), 1000)
    exact = bootstrap.accuracy(hits > 0)
    assert drawn.value == 70.0
    assert drawn.low == pytest.approx(exact.low, abs=0.5)
    assert drawn.high == pytest.approx(exact.high, abs=0.5)
    assert drawn == bootstrap.interval(70.0, lambda rows: 100 * hits[rows].mean(), 1000)
