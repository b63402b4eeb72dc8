from __future__ import annotations

import math

import numpy as np
import pytest

from harness.precision import Ranking, estimate, mean_precision


def waves(count: int, *, levels: int, share: float, phase: float) -> tuple[np.ndarray, np.ndarray]:
    """Scores (of few levels, if any) and signs that go along with them to some degree."""
    i = np.arange(count)
    scores = np.sin(1.7 * i + phase)
    signs = np.where(np.cos(2.3 * i + phase) + 0.5 * scores > share, 1, -1)
    return np.round(scores * levels) / levels if levels else scores, signs


def test_a_case_computed_by_hand():
    # Ranked: + - - + - +. Precision at the positives: 1, 1/2, 1/2; nothing later is better.
    scores, signs = np.array([6.0, 5.0, 4.0, 3.0, 2.0, 1.0]), np.array([1, -1, -1, 1, -1, 1])
    assert Ranking.of(scores, signs).precision() == pytest.approx(2 / 3, abs=1e-15)
    # Ranked: - + + -. Precision 1/2, then 2/3: the envelope lifts the first to 2/3.
    assert Ranking.of(scores[:4], np.array([-1, 1, 1, -1])).precision() == pytest.approx(2 / 3)
    assert Ranking.of(scores[:4], np.array([1, 1, -1, -1])).precision() == 1.0


# vissl @09270ed, vissl/utils/svm_utils/evaluate.py, get_precision_recall(signs, scores)[3]. Where
# scores are equal its result depends on the machine's sort, so 1e-9 x index was added to them.
GOLDEN = [
    ({"count": 15, "levels": 0, "share": 0.3, "phase": 0.1}, 0.47692307692307695),
    ({"count": 60, "levels": 0, "share": 0.8, "phase": 2.0}, 0.5136554621848739),
    ({"count": 300, "levels": 0, "share": 1.2, "phase": 0.5}, 0.2081866376206421),
    ({"count": 12, "levels": 0, "share": -0.9, "phase": 0.4}, 1.0),
    ({"count": 14, "levels": 2, "share": 0.3, "phase": 0.1}, 0.43809523809523804),
    ({"count": 16, "levels": 1, "share": -0.2, "phase": 0.7}, 0.4690934065934066),
    ({"count": 300, "levels": 4, "share": 1.2, "phase": 0.5}, 0.18236869538878148),
]


@pytest.mark.parametrize(("case", "expected"), GOLDEN)
def test_average_precision_is_that_of_vissls_code(case, expected):
    assert Ranking.of(*waves(**case)).precision() == pytest.approx(expected, abs=1e-12)


def test_images_left_out_do_not_count_wherever_they_rank():
    scores, signs = waves(60, levels=0, share=0.8, phase=2.0)
    more = np.concatenate([scores, [9.0, 0.0, -9.0]])
    left_out = np.concatenate([signs, [0, 0, 0]])
    assert Ranking.of(more, left_out).precision() == Ranking.of(scores, signs).precision()


def test_a_weight_counts_as_that_many_copies_of_an_image():
    scores, signs = waves(80, levels=0, share=0.5, phase=1.0)
    weights = np.random.default_rng(0).integers(0, 4, 80)
    copies = Ranking.of(np.repeat(scores, weights), np.repeat(signs, weights))
    weighted = Ranking.of(scores, signs).precision(weights)
    assert weighted == pytest.approx(copies.precision(), abs=1e-14)
    assert Ranking.of(scores, signs).precision(np.ones(80, dtype=int)) == pytest.approx(
        Ranking.of(scores, signs).precision(), abs=1e-15
    )


def test_without_positive_images_there_is_no_precision_and_the_mean_is_over_the_others():
    scores, signs = waves(30, levels=0, share=0.5, phase=1.0)
    none = Ranking.of(scores, np.full(30, -1))
    assert math.isnan(none.precision())
    some = Ranking.of(scores, signs)
    assert mean_precision([none, some]) == 100 * some.precision()
    assert math.isnan(mean_precision([none]))


def test_the_interval_is_around_the_value_and_narrows_with_more_images():
    widths = []
    for count in (200, 3200):
        scores, signs = waves(count, levels=0, share=0.5, phase=1.0)
        found = estimate([Ranking.of(scores, signs)], count)
        assert found.value == 100 * Ranking.of(scores, signs).precision()
        assert found.low is not None and found.high is not None
        assert found.low < found.value < found.high
        widths.append(found.high - found.low)
    # As one over the square root of the number of images.
    assert 3.0 < widths[0] / widths[1] < 5.5
