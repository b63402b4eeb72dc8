"""Linear SVMs on frozen features, one per class, as in VISSL.

Source: vissl @09270ed, vissl/utils/svm_utils. Nothing here imports torch: every process that
solves SVMs loads this module.
"""

from __future__ import annotations

import hashlib
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np

from harness import draws
from harness.errors import UserError
from harness.precision import Ranking

if TYPE_CHECKING:
    from sklearn.svm import LinearSVC

Difficult = Literal["negative", "dropped"]
Sampling = Literal["per_class", "pooled"]
_NORM_OFFSET = 1e-5  # keeps a feature of zeros at zero
_ROWS = 1024  # test images whose features are in double precision at a time


@dataclass(frozen=True, kw_only=True)
class Solver:
    """Settings of liblinear's dual coordinate descent: squared hinge, L2, bias regularised."""

    positive_weight: float = 2.0  # of the loss on positive images; negative ones have 1
    tol: float = 1e-4  # when to stop
    max_iter: int = 2000  # passes over the images, at most


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


@dataclass(frozen=True, kw_only=True)
class Problem:
    """All that SVMs are trained and tested on."""

    train: Images
    test: Images
    solver: Solver
    low_shot: LowShot
    seed: int  # of the order of images in the solver; VISSL takes whatever numpy's global state is

    def fit(self, features: np.ndarray, targets: np.ndarray, cost: float) -> LinearSVC:
        """The SVM of one class; whether it converged is `unconverged`'s to say.

        Args:
            features: (n, d).
            targets: (n,) of 1 and -1.
            cost: C, the weight of the loss against the squared norm.
        """
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.svm import LinearSVC

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
            return machine.fit(features, targets)

    def digest(self) -> str:
        """SHA-256 of the images, and the version of scikit-learn: results depend on both."""
        import sklearn

        total = hashlib.sha256(sklearn.__version__.encode())
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


def unconverged(machine: LinearSVC) -> bool:
    """Whether the solver stopped at its limit of passes."""
    return bool(machine.n_iter_ >= machine.max_iter)


def decisions(machines: list[LinearSVC], features: np.ndarray) -> np.ndarray:
    """Signed distances times |w|, in double precision: float64 (machines, n).

    On one thread, so that the last bit does not depend on how many cores there are.
    """
    from threadpoolctl import threadpool_limits

    weight = np.stack([machine.coef_[0] for machine in machines], axis=1)
    bias = np.concatenate([machine.intercept_ for machine in machines])
    starts = range(0, len(features), _ROWS)
    with threadpool_limits(1):
        parts = [features[s : s + _ROWS].astype(np.float64) @ weight + bias for s in starts]
    return np.concatenate(parts).T


def cross_validate(problem: Problem, folds: int, task: tuple[int, float]) -> np.ndarray:
    """How well a cost does on folds of trainval that were held out.

    Folds are contiguous stretches of each sign, unshuffled, and average precision is
    scikit-learn's, without envelope: what its `cross_val_score` does in VISSL.

    Args:
        problem: Trainval and the solver.
        folds: How many.
        task: Position of the class, and the cost.

    Returns:
        float64 (2,): mean average precision in [0, 1], number of fits that did not converge.
    """
    from sklearn.metrics import average_precision_score
    from sklearn.model_selection import StratifiedKFold

    target, cost = task
    rows, targets = _rows_of(problem.train, target)
    found = []
    for kept, held in StratifiedKFold(folds).split(rows, targets):
        features = problem.train.features
        machine = problem.fit(features[rows[kept]], targets[kept], cost)
        scores = machine.decision_function(features[rows[held]])
        found.append((average_precision_score(targets[held], scores), unconverged(machine)))
    precision, stopped = np.array(found).T
    return np.array([precision.mean(), stopped.sum()])


def train_and_score(problem: Problem, task: tuple[int, float]) -> np.ndarray:
    """Decisions (test images,) of the SVM that all of trainval makes for (class, cost)."""
    target, cost = task
    rows, targets = _rows_of(problem.train, target)
    machine = problem.fit(problem.train.features[rows], targets, cost)
    return decisions([machine], problem.test.features)[0]


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
    features, all_signs = problem.train
    machines = []
    for shots, trials in zip(problem.low_shot.shots, costs, strict=True):
        rows = problem.low_shot.rows(all_signs, target, shots, sample)
        drawn, targets = features[rows], all_signs[rows, target]
        if len(set(targets.tolist())) < 2:
            raise UserError(
                f"sample {sample} of {shots} shots shows class {target} in all of its images or in"
                " none; use other shots or another seed."
            )
        machines += [problem.fit(drawn, targets, cost) for cost in trials]
    found = decisions(machines, problem.test.features)
    return found.reshape(len(problem.low_shot.shots), -1, found.shape[1])


def low_shot_precision(
    problem: Problem, costs: tuple[float, ...], task: tuple[int, int]
) -> np.ndarray:
    """Average precision on **test** of what `low_shot_scores` trains: float64 (shots, costs)."""
    found = low_shot_scores(problem, (costs,) * len(problem.low_shot.shots), task)
    column = problem.test.signs[:, task[0]]
    return np.array([[Ranking.of(row, column).precision() for row in part] for part in found])
