"""Classifiers as the papers' code configures them, to compare with."""

from __future__ import annotations

from sklearn.svm import LinearSVC


def vissls(cost: float, **settings) -> LinearSVC:
    """The classifier as vissl @09270ed configures it, with a seed."""
    return LinearSVC(
        C=cost,
        class_weight={1: 2, -1: 1},
        intercept_scaling=1.0,
        penalty="l2",
        loss="squared_hinge",
        tol=0.0001,
        dual=True,  # pyright: ignore[reportArgumentType]
        max_iter=2000,
        random_state=0,
        **settings,
    )
