"""Average precision of a ranking, as VISSL measures it on VOC2007, and its interval.

Source: vissl @09270ed, vissl/utils/svm_utils/evaluate.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from harness.bootstrap import interval
from harness.protocol import Estimate


class Ranking(NamedTuple):
    """Test images by falling decision of one class, those left out removed.

    VISSL leaves the order of equal decisions to numpy's unstable sort, which differs between
    machines; here the later image comes first.
    """

    order: np.ndarray  # int64 (m,): positions in the split
    positive: np.ndarray  # int64 (p,): places in `order` of the positive images

    @classmethod
    def of(cls, scores: np.ndarray, signs: np.ndarray) -> Ranking:
        """Rank images by `scores` (n,), of `signs` (n,): 1, -1 or 0 for those left out."""
        order = np.argsort(scores, kind="stable")[::-1]
        order = order[signs[order] != 0]
        return cls(order, np.flatnonzero(signs[order] > 0))

    def precision(self, weights: np.ndarray | None = None) -> float:
        """Average precision in [0, 1]: the area under the envelope of precision over recall.

        The envelope at a recall is the best precision at that recall or a larger one; it is not
        VOC's 11-point mean (vissl @09270ed, svm_utils/evaluate.py).

        Args:
            weights: How often each image of the split counts, (n,); None: once.

        Returns:
            NaN if no positive image counts.
        """
        if weights is None:
            found = np.arange(1.0, len(self.positive) + 1)
            seen = self.positive + 1.0
        else:
            counts = weights[self.order]
            found = counts[self.positive].cumsum()
            seen = counts.cumsum()[self.positive]
        if not len(found) or not found[-1]:
            return float("nan")
        # The envelope only ever rises at a positive image.
        precision = found / np.maximum(seen, 1)
        envelope = np.maximum.accumulate(precision[::-1])[::-1]
        return float(np.diff(found, prepend=0) @ envelope / found[-1])


def mean_precision(rankings: Sequence[Ranking], weights: np.ndarray | None = None) -> float:
    """Mean average precision in percent, over the rankings that have a positive image.

    Args:
        rankings: One per class, or one per class and sample.
        weights: See `Ranking.precision`.
    """
    found = np.array([ranking.precision(weights) for ranking in rankings])
    found = found[~np.isnan(found)]
    return 100 * float(found.mean()) if len(found) else float("nan")


def estimate(rankings: Sequence[Ranking], images: int) -> Estimate:
    """`mean_precision` with its interval over the test images.

    Copies of a positive image share a place in the ranking, which lifts the precision of samples
    drawn with replacement (by a point and more on 400 images); the interval is shifted by as much.

    Args:
        rankings: See `mean_precision`.
        images: How many the split has.
    """
    value = mean_precision(rankings)
    drawn = []

    def statistic(rows: np.ndarray) -> float:
        drawn.append(mean_precision(rankings, np.bincount(rows, minlength=images)))
        return drawn[-1]

    found = interval(value, statistic, images)
    assert found.low is not None and found.high is not None
    bias = float(np.nanmean(drawn)) - value
    return Estimate(value, found.low - bias, found.high - bias)
