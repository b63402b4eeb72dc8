"""Linear SVMs on frozen features, one per class, as in VISSL.

Source: vissl @09270ed, vissl/utils/svm_utils, whose solver is liblinear. Nothing here imports
torch: every process that solves SVMs loads this module.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from harness import draws, newton
from harness.errors import UserError
from harness.precision import Ranking

Difficult = Literal["negative", "dropped"]
Sampling = Literal["per_class", "pooled"]
_NORM_OFFSET = 1e-5  # keeps a feature of zeros at zero
_ROWS = 1024  # test images whose features are in double precision at a time


@dataclass(frozen=True, kw_only=True)
class Solver:
    """Linear SVMs: squared hinge, L2, bias regularised; who minimises that, and how closely."""

    # liblinear's dual coordinate descent, as in VISSL, or Newton's method, to the optimum
    method: Literal["newton", "liblinear"] = "newton"
    positive_weight: float = 2.0  # of the loss on positive images; negative ones have 1
    tol: float = 1e-4  # liblinear: when to stop
    max_iter: int = 2000  # liblinear: passes over the images, at most


class Images(NamedTuple):
    """Features of a split, and what they show."""

    features: np.ndarray  # float32 (n, d), normalised
    signs: np.ndarray  # int8 (n, classes): 1 positive, -1 negative, 0 left out


@dataclass(frozen=True, kw_only=True)
class LowShot:
    """How few images per class are drawn from trainval, again and again."""

    shots: tuple[int, ...]  # positive images of each class
    sampling: Sampling
    seed: int

    def rows(self, signs: np.ndarray, target: int, shots: int, sample: int) -> np.ndarray:
        """The images (m,) that train the SVM of class `target`; they depend on nothing else.

        per_class: `shots` positive images and (classes - 1) x shots negative ones, drawn for that
        class alone (vissl @09270ed, extra_scripts/create_low_shot_samples.py). pooled: the images
        drawn for all classes, `shots` positive ones each, fewer where there are no more, and twice
        where two classes drew them (PCL @964da1f, voc.py).

        Args:
            signs: (n, classes), see `Images`.
            target: Position of the class.
            shots: Positive images drawn of a class.
            sample: Number of the draw.
        """
        classes = signs.shape[1]

        def drawn(number: int, sign: int, count: int) -> np.ndarray:
            pool = np.flatnonzero(signs[:, number] == sign)
            tag = f"{shots} shots, sample {sample}, class {number}, sign {sign}"
            return pool[draws.subset(self.seed, tag, len(pool), min(count, len(pool)))]

        if self.sampling == "per_class":
            negative = drawn(target, -1, (classes - 1) * shots)
            return np.concatenate([drawn(target, 1, shots), negative])
        rows = np.concatenate([drawn(number, 1, shots) for number in range(classes)])
        return rows[signs[rows, target] != 0]


class Machines(NamedTuple):
    """SVMs of one class, in double precision."""

    weight: np.ndarray  # (machines, d)
    bias: np.ndarray  # (machines,)
    unconverged: np.ndarray  # bool (machines,)


@dataclass(frozen=True, kw_only=True)
class Problem:
    """All that SVMs are trained and tested on."""

    train: Images
    test: Images
    solver: Solver
    low_shot: LowShot
    seed: int  # of the order of images in liblinear; VISSL takes numpy's global state as it is
    gram: np.ndarray | None = None  # `newton.gram_matrix` of the train images, for that method

    def fit(self, rows: np.ndarray, targets: np.ndarray, costs: Sequence[float]) -> Machines:
        """The SVMs of one class at several costs, on one thread.

        Args:
            rows: (m,) train images, some perhaps twice.
            targets: (m,) of 1 and -1.
            costs: C of each, the weight of the loss against the squared norm.
        """
        from threadpoolctl import threadpool_limits

        # one thread, so that the last bit doesn't depend on how many cores there are
        with threadpool_limits(1):
            if self.solver.method == "liblinear":
                return self._by_liblinear(rows, targets, costs)
            return self._by_newton(rows, targets, costs)

    def _by_newton(self, rows: np.ndarray, targets: np.ndarray, costs: Sequence[float]) -> Machines:
        assert self.gram is not None
        rising = np.argsort(costs, kind="stable")
        weight = np.where(targets > 0, self.solver.positive_weight, 1.0)
        path = newton.solve_path(
            self.gram[np.ix_(rows, rows)], targets, np.array(costs)[rising, None] * weight
        )
        # An SVM is the sum of its images, each with its coefficient; the bias that of the ones.
        features = self.train.features
        total = np.zeros((len(costs), features.shape[1]))
        for start in range(0, len(rows), _ROWS):
            part = slice(start, start + _ROWS)
            total += path.coefficients[:, part] @ features[rows[part]].astype(np.float64)
        place = np.argsort(rising)
        return Machines(total[place], path.coefficients.sum(axis=1)[place], path.unsolved[place])

    def _by_liblinear(
        self, rows: np.ndarray, targets: np.ndarray, costs: Sequence[float]
    ) -> Machines:
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.svm import LinearSVC

        weights, biases, unconverged = [], [], []
        features = self.train.features[rows]
        for cost in costs:
            machine = LinearSVC(
                C=cost,
                class_weight={1: self.solver.positive_weight, -1: 1.0},
                dual=True,  # pyright: ignore[reportArgumentType]
                tol=self.solver.tol,
                max_iter=self.solver.max_iter,
                random_state=self.seed,
            )
            with warnings.catch_warnings():
                # Large costs seldom converge in 2000 passes, in VISSL neither. They are counted.
                warnings.simplefilter("ignore", ConvergenceWarning)
                machine.fit(features, targets)
            weights.append(machine.coef_[0])
            biases.append(np.ravel(machine.intercept_)[0])
            unconverged.append(machine.n_iter_ >= machine.max_iter)
        return Machines(np.stack(weights), np.array(biases), np.array(unconverged))

    def digest(self) -> str:
        """SHA-256 of the images, and the version of scikit-learn: results depend on both."""
        import sklearn

        total = hashlib.sha256(f"{newton.VERSION} {sklearn.__version__}".encode())
        for array in (*self.train, *self.test):
            total.update(np.ascontiguousarray(array).data)
        return total.hexdigest()


def images_of(features: np.ndarray, labels: np.ndarray, difficult: Difficult) -> Images:
    """Features (n, d) divided by their norm + 1e-5, and the signs of labels (n, classes)."""
    norms = np.linalg.norm(features, axis=1, keepdims=True)
    return Images(features / (norms + _NORM_OFFSET), signs(labels, difficult))


def signs(labels: np.ndarray, difficult: Difficult) -> np.ndarray:
    """int8 signs of `Images` from VOC's labels, 1, 0 (only difficult objects) or -1."""
    left_out = -1 if difficult == "negative" else 0
    return np.where(labels == 0, left_out, labels).astype(np.int8)


def decisions(machines: Machines, features: np.ndarray) -> np.ndarray:
    """Signed distances times |w|, in double precision: float64 (machines, n).

    On one thread, so that the last bit does not depend on how many cores there are.
    """
    from threadpoolctl import threadpool_limits

    starts = range(0, len(features), _ROWS)
    with threadpool_limits(1):
        parts = [
            features[s : s + _ROWS].astype(np.float64) @ machines.weight.T + machines.bias
            for s in starts
        ]
    return np.concatenate(parts).T


def cross_validate(
    problem: Problem, costs: Sequence[float], folds: int, task: tuple[int, int]
) -> np.ndarray:
    """How well each cost does on a fold of trainval that was held out.

    Folds are contiguous stretches of each sign, unshuffled, and average precision is
    scikit-learn's, without envelope: what its `cross_val_score` does in VISSL.

    Args:
        problem: Trainval and the solver.
        costs: Values of C.
        folds: How many.
        task: Position of the class, and number of the fold.

    Returns:
        float64 (costs, 2): average precision in [0, 1], and 1 where the fit did not converge.
    """
    from sklearn.metrics import average_precision_score
    from sklearn.model_selection import StratifiedKFold

    target, fold = task
    rows, targets = _rows_of(problem.train, target)
    kept, held = list(StratifiedKFold(folds).split(rows, targets))[fold]
    machines = problem.fit(rows[kept], targets[kept], costs)
    scores = decisions(machines, problem.train.features[rows[held]])
    precision = [average_precision_score(targets[held], row) for row in scores]
    return np.stack([precision, machines.unconverged], axis=1)


def train_and_score(problem: Problem, task: tuple[int, float]) -> np.ndarray:
    """Decisions (test images,) of the SVM that all of trainval makes for (class, cost)."""
    target, cost = task
    rows, targets = _rows_of(problem.train, target)
    return decisions(problem.fit(rows, targets, (cost,)), problem.test.features)[0]


def _rows_of(images: Images, target: int) -> tuple[np.ndarray, np.ndarray]:
    """The images that a class does not leave out, and their signs."""
    rows = np.flatnonzero(images.signs[:, target])
    return rows, images.signs[rows, target]


def low_shot_scores(
    problem: Problem, costs: tuple[tuple[float, ...], ...], task: tuple[int, int]
) -> np.ndarray:
    """Decisions of the SVMs that one draw makes for a class.

    Args:
        problem: Its `low_shot` says what is drawn.
        costs: For each of its shots.
        task: Position of the class, and number of the draw.

    Returns:
        float64 (shots, costs, test images).
    """
    target, sample = task
    found = []
    for shots, trials in zip(problem.low_shot.shots, costs, strict=True):
        rows = problem.low_shot.rows(problem.train.signs, target, shots, sample)
        targets = problem.train.signs[rows, target]
        if len(set(targets.tolist())) < 2:
            raise UserError(
                f"sample {sample} of {shots} shots shows class {target} in all of its images or in"
                " none; use other shots or another seed."
            )
        found.append(decisions(problem.fit(rows, targets, trials), problem.test.features))
    return np.stack(found)


def low_shot_precision(
    problem: Problem, costs: tuple[float, ...], task: tuple[int, int]
) -> np.ndarray:
    """Average precision on **test** of what `low_shot_scores` trains: float64 (shots, costs)."""
    found = low_shot_scores(problem, (costs,) * len(problem.low_shot.shots), task)
    column = problem.test.signs[:, task[0]]
    return np.array([[Ranking.of(row, column).precision() for row in part] for part in found])
