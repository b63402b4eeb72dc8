from __future__ import annotations

import subprocess
import sys
import warnings
from dataclasses import replace

import numpy as np
import pytest
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import cross_val_score

from harness import newton, svm
from harness.precision import Ranking
from harness.svm import Images, LowShot, Problem, Solver
from tests.harness.references import vissls

SOLVER = Solver()
LIBLINEAR = Solver(method="liblinear")


def blobs(count: int, *, classes: int = 4, width: int = 30, seed: int = 0) -> Images:
    """Features that say something of three classes in four images each, and 5 % difficult ones."""
    random = np.random.default_rng(seed)
    labels = np.where(random.random((count, classes)) < 0.3, 1, -1)
    means = np.random.default_rng(9).normal(size=(classes, width))
    features = (labels > 0) @ means + 1.5 * random.normal(size=(count, width))
    labels[random.random(labels.shape) < 0.05] = 0
    return svm.images_of(features.astype(np.float32), labels, "dropped")


def problem(solver: Solver = SOLVER, **low_shot) -> Problem:
    draw = {"shots": (), "sampling": "per_class", "seed": 0} | low_shot
    train = blobs(200)
    return Problem(
        train=train,
        test=blobs(120, seed=1),
        solver=solver,
        low_shot=LowShot(**draw),
        seed=0,
        gram=newton.gram_matrix(train.features) if solver.method == "newton" else None,
    )


both_methods = pytest.mark.parametrize("solver", [SOLVER, LIBLINEAR], ids=lambda s: s.method)
COSTS = (10.0, 0.1, 1.0)


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


@both_methods
def test_cross_validation_is_scikit_learns_cross_val_score_with_vissls_settings(solver):
    task = problem(solver)
    for target in range(2):
        rows = task.train.signs[:, target] != 0
        features, targets = task.train.features[rows], task.train.signs[rows, target]
        found = np.stack([svm.cross_validate(task, COSTS, 3, (target, f)) for f in range(3)])
        for place, cost in enumerate(COSTS):
            reference = cross_val_score(
                vissls(cost), features, targets, cv=3, scoring="average_precision"
            )
            # A pair of images whose scores differ by less than liblinear's tolerance.
            assert abs(found[:, place, 0] - reference).max() < 1e-3, (cost, target)
            assert reference.min() > 0.3 and reference.max() < 0.97
        assert found[..., 1].sum() == 0


def test_decisions_are_scikit_learns_within_rounding_for_any_number_of_machines():
    task = problem(LIBLINEAR)
    rows = np.flatnonzero(task.train.signs[:, 1])
    targets = task.train.signs[rows, 1]
    expected = (
        vissls(2.0).fit(task.train.features[rows], targets).decision_function(task.test.features)
    )
    found = svm.train_and_score(task, (1, 2.0))
    assert found.shape == (120,) and found.dtype == np.float64
    assert np.allclose(found, expected, rtol=1e-12, atol=1e-14)
    pair = svm.decisions(task.fit(rows, targets, (2.0, 2.0)), np.tile(task.test.features, (20, 1)))
    assert pair.shape == (2, 2400) and np.allclose(pair, np.tile(expected, 20), rtol=1e-12)


def test_newtons_method_arrives_at_the_optimum_of_every_cost():
    task = problem()
    rows = np.flatnonzero(task.train.signs[:, 0])
    targets = task.train.signs[rows, 0].astype(float)
    machines = task.fit(rows, targets, (1000.0, 0.01, 1.0, 50.0))
    x = np.hstack([task.train.features[rows], np.ones((len(rows), 1))]).astype(np.float64)
    for cost, weight, bias in zip((1000.0, 0.01, 1.0, 50.0), *machines[:2], strict=True):
        w = np.append(weight, bias)
        slack = np.maximum(1 - targets * (x @ w), 0)
        pull = 2 * cost * np.where(targets > 0, 2.0, 1.0) * slack * targets @ x
        assert abs(w - pull).max() < 1e-8 * abs(w).max()  # gradient of the objective: 0
    assert not machines.unconverged.any()


def test_conjugate_gradients_and_cholesky_factors_find_the_same_machines(monkeypatch):
    task = problem()
    rows = np.flatnonzero(task.train.signs[:, 0])
    targets = task.train.signs[rows, 0]
    exact = task.fit(rows, targets, (0.01, 1.0, 1000.0))
    monkeypatch.setattr(newton, "_DENSE", 20)
    calls = []
    original = newton._System._by_products

    def watched(self, inside, start, tolerance):
        calls.append((original(self, inside, start, tolerance), self.weights.max()))
        return calls[-1][0]

    monkeypatch.setattr(newton._System, "_by_products", watched)
    found = task.fit(rows, targets, (0.01, 1.0, 1000.0))
    assert np.abs(found.weight - exact.weight).max() < 1e-5 * np.abs(exact.weight).max()
    assert not found.unconverged.any()
    assert {cost for solution, cost in calls if solution is not None} >= {0.02, 2.0}
    # Given one product they get nowhere, and the factor takes over.
    monkeypatch.setattr(newton, "_MOST_PRODUCTS", 1)
    again = task.fit(rows, targets, (0.01, 1.0, 1000.0))
    assert np.abs(again.weight - exact.weight).max() < 1e-9 * np.abs(exact.weight).max()


def test_newtons_machines_rank_as_those_of_liblinear_at_a_tighter_tolerance():
    task = problem()
    for target in range(4):
        rows = np.flatnonzero(task.train.signs[:, target])
        targets = task.train.signs[rows, target]
        column = task.test.signs[:, target]
        costs = (0.01, 1.0, 100.0)
        ours = svm.decisions(task.fit(rows, targets, costs), task.test.features)
        for cost, scores in zip(costs, ours, strict=True):
            machine = vissls(cost).set_params(tol=1e-8, max_iter=1_000_000)
            machine.fit(task.train.features[rows], targets)
            theirs = machine.decision_function(task.test.features)
            assert abs(scores - theirs).max() < 1e-4 * abs(theirs).max()
            difference = Ranking.of(scores, column).precision()
            difference -= Ranking.of(theirs, column).precision()
            assert abs(difference) < 1e-3


def test_liblinear_comes_to_newtons_precision_where_it_is_given_the_passes():
    task = problem()
    patient = problem(replace(LIBLINEAR, max_iter=1_000_000))
    hurried = problem(LIBLINEAR)
    ours, theirs, stopped = (
        svm.cross_validate(x, (1000.0,), 3, (1, 0))[0] for x in (task, patient, hurried)
    )
    assert stopped[1] == 1 and theirs[1] == ours[1] == 0
    assert abs(ours[0] - theirs[0]) < 1e-3


def test_an_svm_that_stops_early_is_counted_and_does_not_warn():
    task = problem(replace(LIBLINEAR, max_iter=3))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert svm.cross_validate(task, (1000.0,), 3, (0, 1))[0, 1] == 1
    assert not [w for w in caught if issubclass(w.category, ConvergenceWarning)]


def test_newtons_method_that_stops_early_is_counted(monkeypatch):
    monkeypatch.setattr(newton, "_MOST_STEPS", 1)
    assert svm.cross_validate(problem(), (1000.0,), 3, (0, 1))[0, 1] == 1


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


@both_methods
@pytest.mark.parametrize("sampling", ["per_class", "pooled"])
def test_low_shot_scores_are_those_of_svms_fitted_one_by_one(sampling, solver):
    task = problem(solver, shots=(2, 5), sampling=sampling)
    found = svm.low_shot_scores(task, ((0.1, 1.0), (0.5, 2.0)), (3, 1))
    precision = svm.low_shot_precision(task, (0.5, 2.0), (3, 1))
    assert found.shape == (2, 2, 120) and precision.shape == (2, 2)
    for place, (shots, cost) in enumerate([(2, 0.1), (2, 1.0), (5, 0.5), (5, 2.0)]):
        rows = task.low_shot.rows(task.train.signs, 3, shots, 1)
        machine = vissls(cost).fit(task.train.features[rows], task.train.signs[rows, 3])
        scores = machine.decision_function(task.test.features)
        close = {"rtol": 1e-10, "atol": 1e-12} if solver is LIBLINEAR else {"rtol": 0, "atol": 2e-3}
        assert np.allclose(found[place // 2, place % 2], scores, **close)
        if shots == 5:
            expected = Ranking.of(scores, task.test.signs[:, 3]).precision()
            assert abs(precision[1, place % 2] - expected) < (
                1e-15 if solver is LIBLINEAR else 0.01
            )


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
