from __future__ import annotations

import subprocess
import sys
import warnings
from dataclasses import replace

import numpy as np
import pytest
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import cross_val_score

from harness import svm
from harness.precision import Ranking
from harness.svm import Images, LowShot, Problem, Solver
from tests.harness.references import vissls

SOLVER = Solver()


def blobs(count: int, *, classes: int = 4, width: int = 30, seed: int = 0) -> Images:
    """Features that say something of three classes in four images each, and 5 % difficult ones."""
    random = np.random.default_rng(seed)
    labels = np.where(random.random((count, classes)) < 0.3, 1, -1)
    means = np.random.default_rng(9).normal(size=(classes, width))
    features = (labels > 0) @ means + 1.5 * random.normal(size=(count, width))
    labels[random.random(labels.shape) < 0.05] = 0
    return svm.images_of(features.astype(np.float32), labels, "dropped")


def problem(**low_shot) -> Problem:
    draw = {"shots": (), "sampling": "per_class", "seed": 0} | low_shot
    return Problem(
        train=blobs(200), test=blobs(120, seed=1), solver=SOLVER, low_shot=LowShot(**draw), seed=0
    )


def test_features_are_divided_by_their_norm_plus_1e_5():
    labels = np.array([[1], [0], [-1]])
    features = np.array([[3.0, 4.0], [0.0, 0.0], [0.0, 1e-5]], dtype=np.float32)
    found = svm.images_of(features, labels, "dropped")
    assert found.features.dtype == np.float32
    expected = [[3 / 5.00001, 4 / 5.00001], [0.0, 0.0], [0.0, 0.5]]
    assert np.allclose(found.features, expected, rtol=1e-6, atol=0)


def test_difficult_images_are_negative_or_left_out():
    labels = np.array([[1, 0, -1], [0, 0, 1]])
    assert svm.signs(labels, "negative").tolist() == [[1, -1, -1], [-1, -1, 1]]
    assert svm.signs(labels, "dropped").tolist() == [[1, 0, -1], [0, 0, 1]]


@pytest.mark.parametrize("cost", [0.1, 10.0])
def test_cross_validation_is_scikit_learns_cross_val_score_with_vissls_settings(cost):
    task = problem()
    for target in range(2):
        rows = task.train.signs[:, target] != 0
        features, targets = task.train.features[rows], task.train.signs[rows, target]
        reference = cross_val_score(
            vissls(cost), features, targets, cv=3, scoring="average_precision"
        )
        precision, stopped = svm.cross_validate(task, 3, (target, cost))
        assert precision == reference.mean() and stopped == 0
        assert 0.3 < precision < 0.95


def test_decisions_are_scikit_learns_within_rounding_for_any_number_of_machines():
    task = problem()
    rows = np.flatnonzero(task.train.signs[:, 1])
    machine = vissls(2.0).fit(task.train.features[rows], task.train.signs[rows, 1])
    expected = machine.decision_function(task.test.features)
    found = svm.train_and_score(task, (1, 2.0))
    assert found.shape == (120,) and found.dtype == np.float64
    assert np.allclose(found, expected, rtol=1e-12, atol=1e-14)
    pair = svm.decisions([machine, machine], np.tile(task.test.features, (20, 1)))
    assert pair.shape == (2, 2400) and np.allclose(pair, np.tile(expected, 20), rtol=1e-12)


def test_an_svm_that_stops_early_is_counted_and_does_not_warn():
    task = problem()
    short = replace(task, solver=replace(SOLVER, max_iter=3))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert svm.cross_validate(short, 3, (0, 1000.0))[1] == 3
    assert not [w for w in caught if issubclass(w.category, ConvergenceWarning)]


def test_each_class_draws_its_own_positive_images_and_negatives_for_every_other_class():
    signs = blobs(200).signs
    draw = LowShot(shots=(4,), sampling="per_class", seed=0)
    seen = []
    for sample in range(3):
        rows = draw.rows(signs, 2, 4, sample)
        assert signs[rows, 2].tolist() == [1] * 4 + [-1] * 12
        assert len(set(rows.tolist())) == 16
        assert np.array_equal(rows, draw.rows(signs, 2, 4, sample))
        seen.append(rows.tolist())
    assert seen[0] != seen[1] != seen[2]
    assert replace(draw, seed=1).rows(signs, 2, 4, 0).tolist() not in seen


def test_every_image_is_as_likely_to_be_drawn():
    signs = blobs(200).signs
    draw = LowShot(shots=(5,), sampling="per_class", seed=0)
    rows = np.concatenate([draw.rows(signs, 0, 5, sample) for sample in range(400)])
    counts = np.bincount(rows, minlength=200)[signs[:, 0] == 1]
    expected = 400 * 5 / len(counts)
    # Standard deviation sqrt(expected); five of them either side.
    assert (abs(counts - expected) < 5 * expected**0.5).all()


def test_pooled_draws_serve_every_class_and_repeat_images_of_two_classes():
    labels = np.array([[1, 1, -1], [1, -1, -1], [-1, -1, 1], [-1, -1, 1], [0, -1, 1]])
    signs = svm.signs(labels, "dropped")
    draw = LowShot(shots=(2,), sampling="pooled", seed=0)
    for sample in range(8):
        # Both images of class 0, the only one of class 1, two of three of class 2.
        rows = draw.rows(signs, 1, 2, sample)
        assert rows[:3].tolist() == [0, 1, 0] and len(rows) == 5
        assert set(rows[3:].tolist()) < {2, 3, 4}
        # Image 4 shows only difficult objects of class 0.
        assert draw.rows(signs, 0, 2, sample).tolist() == [r for r in rows.tolist() if r != 4]


@pytest.mark.parametrize("sampling", ["per_class", "pooled"])
def test_low_shot_scores_are_those_of_svms_fitted_one_by_one(sampling):
    task = problem(shots=(2, 5), sampling=sampling)
    found = svm.low_shot_scores(task, ((0.1, 1.0), (0.5, 2.0)), (3, 1))
    precision = svm.low_shot_precision(task, (0.5, 2.0), (3, 1))
    assert found.shape == (2, 2, 120) and precision.shape == (2, 2)
    for place, (shots, cost) in enumerate([(2, 0.1), (2, 1.0), (5, 0.5), (5, 2.0)]):
        rows = task.low_shot.rows(task.train.signs, 3, shots, 1)
        machine = vissls(cost).fit(task.train.features[rows], task.train.signs[rows, 3])
        scores = machine.decision_function(task.test.features)
        assert np.allclose(found[place // 2, place % 2], scores, rtol=1e-10, atol=1e-12)
        if shots == 5:
            expected = Ranking.of(scores, task.test.signs[:, 3]).precision()
            assert precision[1, place % 2] == expected


def test_a_digest_changes_with_every_feature_and_label():
    task = problem()
    assert task.digest() == problem().digest()
    task.test.features[7, 3] += 1e-7
    after = task.digest()
    assert after != problem().digest()
    task.train.signs[0, 0] = 1 - task.train.signs[0, 0]
    assert task.digest() != after


def test_workers_that_solve_svms_do_not_import_torch():
    code = "import sys, harness.svm; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
