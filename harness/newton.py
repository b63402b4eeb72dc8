"""Linear SVMs with squared hinge loss, solved to the optimum by Newton's method, cost after cost.

Source: Chapelle, "Training a support vector machine in the primal" (Neural Computation 2007),
Sec. 4: the solution is a combination w = sum_i b_i x_i of the images inside the margin, and for a
given set of these it solves a linear system in their Gram matrix. So the width of the features
costs nothing once the Gram matrix is there, which all classes, folds and costs share; and the next
cost starts from the set of the last one, two or three systems from its own. Small costs leave most
images inside the margin, but their systems are well conditioned: a few products by conjugate
gradients. Large costs leave few: a Cholesky factor. Nothing here imports torch: every process that
solves SVMs loads this module.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

VERSION = 1  # of what is kept on disk; another where results may differ
_COLUMNS = 1024  # of the features that are in double precision at a time
_MOST_STEPS = 200  # Newton steps for a cost; more than thirty were never seen
_SMALL = 1e-9  # relative decrease of the objective after which it is as good as minimal
_HALVINGS = 40  # of a step that overshoots
_DENSE = 2048  # images inside the margin up to which a Cholesky factor is cheaper
_MOST_PRODUCTS = 150  # by conjugate gradients before the factor is cheaper after all
_TOLERANCES = (
    1e-2,
    1e-4,
    1e-6,
)  # of conjugate gradients' residuals: first step of a cost, second, …


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

    Memory: 20 m² bytes at most.

    Args:
        gram: (m, m) inner products of the images x.
        targets: (m,) of 1 and -1: y.
        weights: (costs, m), positive: c of each SVM. Rising costs are fastest.

    Returns:
        The solutions, in the order of `weights`.
    """
    signs = targets.astype(np.float64)
    rough = gram.astype(np.float32) if len(gram) > _DENSE else gram
    state = _State(np.zeros(len(signs)), np.zeros(len(signs)))
    found, unsolved = [], []
    for row in weights:
        state, solved = _minimise(_System(gram, rough, signs, row), state)
        found.append(state.coefficients)
        unsolved.append(not solved)
    return Path(np.stack(found), np.array(unsolved))


class _State(NamedTuple):
    """An SVM: w as the sum of its images, and <w, x> of each: (m,) both."""

    coefficients: np.ndarray
    scores: np.ndarray


class _System(NamedTuple):
    """What an SVM is trained on."""

    gram: np.ndarray  # (m, m)
    rough: np.ndarray  # the same in fp32
    signs: np.ndarray  # (m,): y
    weights: np.ndarray  # (m,): c

    def loss(self, scores: np.ndarray, squared_norm: np.ndarray) -> np.ndarray:
        """The objective, a scalar."""
        slack = np.maximum(1 - self.signs * scores, 0)
        return squared_norm / 2 + self.weights @ (slack * slack)

    def solution(self, inside: np.ndarray, start: np.ndarray, tolerance: float) -> _State:
        """The SVM whose images inside the margin are those of a mask (m,)."""
        if inside.sum() > _DENSE:
            found = self._by_products(inside, start, tolerance)
            if found is not None:
                return _State(found, self.gram @ found)
        return self._by_factor(inside)

    def _by_factor(self, inside: np.ndarray) -> _State:
        from scipy.linalg import cho_factor, cho_solve

        places = np.flatnonzero(inside)
        found = np.zeros(len(self.signs))
        if not len(places):
            return _State(found, np.zeros(len(self.signs)))
        rows = self.gram[places]
        matrix = rows[:, places]
        matrix[np.diag_indices(len(places))] += 0.5 / self.weights[places]
        factor = cho_factor(matrix, lower=True, overwrite_a=True, check_finite=False)
        found[places] = cho_solve(factor, self.signs[places], check_finite=False)
        return _State(found, found[places] @ rows)

    def _by_products(
        self, inside: np.ndarray, start: np.ndarray, tolerance: float
    ) -> np.ndarray | None:
        """Conjugate gradients; None if they don't get there."""
        ridge = 0.5 / self.weights

        def product(x: np.ndarray) -> np.ndarray:
            return np.where(inside, self.rough @ x.astype(np.float32) + ridge * x, 0.0)

        found = np.where(inside, start, 0.0)
        residual = np.where(inside, self.signs, 0.0) - product(found)
        direction, squared = residual, residual @ residual
        goal = tolerance**2 * inside.sum()
        for _ in range(_MOST_PRODUCTS):
            if squared <= goal:
                return found
            image = product(direction)
            step = squared / (direction @ image)
            found = found + step * direction
            residual = residual - step * image
            before, squared = squared, residual @ residual
            direction = residual + squared / before * direction
        return None


def _minimise(system: _System, state: _State) -> tuple[_State, bool]:
    """Newton's method from `state`, and whether it arrived."""
    value = system.loss(state.scores, state.coefficients @ state.scores)
    for number in range(_MOST_STEPS):
        tolerance = _TOLERANCES[min(number, len(_TOLERANCES) - 1)]
        inside = system.signs * state.scores < 1
        before = value
        target = system.solution(inside, state.coefficients, tolerance)
        state, value, share = _moved(system, state, target, value)
        if tolerance > _TOLERANCES[-1] and inside.sum() > _DENSE:
            continue
        # A full step onto a point with the same set is the optimum itself.
        same = share == 1 and np.array_equal(system.signs * state.scores < 1, inside)
        if same or before - value <= _SMALL * abs(before):
            return state, True
    return state, False


def _moved(
    system: _System, state: _State, target: _State, value: np.ndarray
) -> tuple[_State, np.ndarray, float]:
    """A step to `target`, or as far towards it as the objective falls; its value there; the share.

    |w|² along the step is a parabola through three inner products.
    """
    own = state.coefficients @ state.scores
    mixed = state.coefficients @ target.scores
    other = target.coefficients @ target.scores
    share = 1.0
    for _ in range(_HALVINGS):
        rest = 1 - share
        scores = rest * state.scores + share * target.scores
        norm = rest**2 * own + 2 * rest * share * mixed + share**2 * other
        if (found := system.loss(scores, norm)) <= value:
            coefficients = rest * state.coefficients + share * target.coefficients
            return _State(coefficients, scores), found, share
        share /= 2
    return state, value, 0.0
