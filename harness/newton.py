"""Linear SVMs with squared hinge loss, solved to the optimum by Newton's method, cost after cost.

Source: Chapelle, "Training a support vector machine in the primal" (Neural Computation 2007),
Sec. 4: the solution is a combination w = sum_i b_i x_i of the images inside the margin, and for a
given set of these it solves a linear system in their Gram matrix. So the width of the features
costs nothing once the Gram matrix is there, which all classes, folds and costs share; and the next
cost starts from the set of the last one, two or three systems from its own. Nothing here imports
torch: every process that solves SVMs loads this module.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

VERSION = 1  # of what is kept on disk; another where results may differ
_COLUMNS = 1024  # of the features that are in double precision at a time
_MOST_STEPS = 200  # Newton steps for a cost; more than thirty were never seen
_SMALL = 1e-10  # relative decrease of the objective after which rounding is all that is left
_HALVINGS = 40  # of a step that overshoots
_REFINEMENTS = 4  # of a single-precision solution, each worth three digits or more


class Path(NamedTuple):
    """SVMs of one problem at several costs."""

    coefficients: np.ndarray  # float64 (costs, m): weights of the images, b
    unsolved: np.ndarray  # bool (costs,): stopped short of the optimum


def gram_matrix(features: np.ndarray) -> np.ndarray:
    """Inner products (n, n) in fp64 of features (n, d), each with a 1 behind it for the bias.

    8 n² bytes (200 MB for VOC2007) and as much while it is made, and 2 n² d operations, on one
    thread: the last bit doesn't depend on how many there are.
    """
    from threadpoolctl import threadpool_limits

    total = np.ones((len(features), len(features)))
    with threadpool_limits(1):
        for start in range(0, features.shape[1], _COLUMNS):
            part = features[:, start : start + _COLUMNS].astype(np.float64)
            total += part @ part.T
    return total


def solve_path(gram: np.ndarray, targets: np.ndarray, weights: np.ndarray) -> Path:
    """Minimise |w|²/2 + sum_i c_i max(0, 1 - y_i <w, x_i>)² for several rows of c.

    Memory: 16 m² bytes at most.

    Args:
        gram: (m, m) inner products of the images x.
        targets: (m,) of 1 and -1: y.
        weights: (costs, m), positive: c of each SVM. Rising costs are fastest.

    Returns:
        The solutions, in the order of `weights`.
    """
    signs = targets.astype(np.float64)
    coefficients = np.zeros(len(signs))
    scores = np.zeros(len(signs))
    found, unsolved = [], []
    for row in weights:
        coefficients, scores, solved = _minimise(gram, signs, row, (coefficients, scores))
        found.append(coefficients)
        unsolved.append(not solved)
    return Path(np.stack(found), np.array(unsolved))


def _minimise(
    gram: np.ndarray, signs: np.ndarray, weights: np.ndarray, start: tuple[np.ndarray, np.ndarray]
) -> tuple[np.ndarray, np.ndarray, bool]:
    """Newton's method from `start`: coefficients and scores <w, x> (m,), and whether it arrived."""
    coefficients, scores = start

    def loss(scores: np.ndarray, squared_norm: np.ndarray) -> np.ndarray:
        slack = np.maximum(1 - signs * scores, 0)
        return squared_norm / 2 + weights @ (slack * slack)

    value = loss(scores, coefficients @ scores)
    for _ in range(_MOST_STEPS):
        inside = signs * scores < 1
        target = _system_solution(gram, signs, weights, np.flatnonzero(inside))
        target_scores = gram @ target
        # |w|² along the step is a parabola through three inner products.
        norms = (coefficients @ scores, coefficients @ target_scores, target @ target_scores)
        share, before, moved = 1.0, value, target_scores
        for _ in range(_HALVINGS):
            moved = scores + share * (target_scores - scores)
            rest = 1 - share
            value = loss(
                moved, rest**2 * norms[0] + 2 * rest * share * norms[1] + share**2 * norms[2]
            )
            if value <= before:
                break
            share /= 2
        coefficients = coefficients + share * (target - coefficients)
        scores = moved
        # A full step onto a point with the same set is the optimum itself.
        same = share == 1 and np.array_equal(signs * scores < 1, inside)
        if same or before - value <= _SMALL * abs(before):
            return coefficients, scores, True
    return coefficients, scores, False


def _system_solution(
    gram: np.ndarray, signs: np.ndarray, weights: np.ndarray, inside: np.ndarray
) -> np.ndarray:
    """Coefficients (m,) of the SVM whose images inside the margin are `inside` (positions)."""
    found = np.zeros(len(signs))
    if len(inside):
        matrix = gram[np.ix_(inside, inside)]
        matrix[np.diag_indices(len(inside))] += 0.5 / weights[inside]
        least = 0.5 / weights[inside].max()
        found[inside] = _cholesky_solution(matrix, signs[inside], least)
    return found


def _cholesky_solution(matrix: np.ndarray, right: np.ndarray, least: float) -> np.ndarray:
    """Solution of a positive definite system whose eigenvalues are at least `least`."""
    from scipy.linalg import cho_factor, cho_solve

    # Unit features and the bias make eigenvalues of 2 m at most. Where they are close enough,
    # single precision, at half the time, is refined to the same digits.
    if least < 1e-4 * len(matrix):
        factor = cho_factor(matrix, lower=True, overwrite_a=True, check_finite=False)
        return cho_solve(factor, right, check_finite=False)
    factor = cho_factor(matrix.astype(np.float32), lower=True, check_finite=False)
    solution = np.zeros_like(right)
    for _ in range(_REFINEMENTS):
        residual = right - matrix @ solution
        step = cho_solve(factor, residual.astype(np.float32), check_finite=False)
        solution += step
    return solution
