"""Claim: VOC07's SVMs are solved several times faster than by LinearSVC, one after the other.

A repetition is the eleven costs of one class and two of its folds, as many images and numbers as
VOC2007's of a ResNet-50. Ours takes a core for each class and fold, as `harness.tasks` does, on two
cores here; then one core for both folds. A thirtieth of the Gram matrix, which twenty classes and
three folds share, is counted. Precision is compared where LinearSVC converges: where it stops at
its limit of passes, another seed of its own changes it by points. Seconds by the clock.
`python benchmarks/voc07_svm.py [--quick] [--json]`
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import joblib
import numpy as np
import torch

from benchmarks import timing
from harness import newton, svm
from harness.svm import LowShot, Problem, Solver
from protocols.voc07_svm import COSTS

_FOLDS = 3
_CLASSES = 20  # of VOC2007, whose cross-validations share the Gram matrix
_AT_ONCE = 2  # of the folds
_PEER = "LinearSVC, one after the other"


def features(images: int, width: int, shares: tuple[float, ...]) -> svm.Images:
    """Features without negative numbers and with a falling spectrum, as a ResNet's are.

    Classes are directions among the leading ones; one label in fifty is wrong.
    """
    random = np.random.default_rng(0)
    labels = np.where(random.random((images, len(shares))) < shares, 1, -1)
    factors = random.normal(size=(images, 400)) * 3 / np.sqrt(np.arange(1, 401))
    factors += 0.08 * (labels > 0) @ random.normal(size=(len(shares), 400))
    mixed = factors @ random.normal(size=(400, width)) / 20
    mixed += 0.3 * random.normal(size=mixed.shape)
    labels[random.random(labels.shape) < 0.02] *= -1
    return svm.images_of(np.maximum(mixed, 0).astype(np.float32), labels, "negative")


def main() -> None:
    """Measure and print."""
    options = timing.options(__doc__)
    torch.set_num_threads(1)
    images, width = (300, 40) if options.quick else (5011, 2048)
    shares = (0.3, 0.4) if options.quick else (0.04, 0.06, 0.08, 0.15, 0.4)
    trained = features(images, width, shares)
    started = time.perf_counter()
    gram = newton.gram_matrix(trained.features)
    shared = (time.perf_counter() - started) * _AT_ONCE / (_CLASSES * _FOLDS)
    ours = Problem(
        train=trained,
        test=trained,
        solver=Solver(),
        low_shot=LowShot(shots=(), sampling="per_class", seed=0),
        seed=0,
        gram=gram,
    )
    theirs = replace(ours, solver=Solver(method="liblinear"), gram=None)
    times: dict[str, list[float]] = {"ours": [], "two cores": [], "LinearSVC": []}
    worst, converged = 0.0, 0
    with joblib.Parallel(n_jobs=_AT_ONCE) as workers:
        solve_two(ours, 0, workers)  # starts the workers
        for number in range(len(shares)):
            runs: dict[str, Callable[[], np.ndarray]] = {
                "ours": partial(solve_two, ours, number),
                "two cores": partial(solve_two, ours, number, workers),
                "LinearSVC": partial(solve_two, theirs, number),
            }
            found = {}
            for who, run in runs.items():
                started = time.perf_counter()
                found[who] = run()
                gram_share = 0.0 if who == "LinearSVC" else shared
                times[who].append(time.perf_counter() - started + gram_share)
            assert np.array_equal(found["ours"], found["two cores"])
            both = found["ours"][..., 1] + found["LinearSVC"][..., 1] == 0
            difference = np.abs(found["ours"] - found["LinearSVC"])[both, 0]
            worst = max(worst, 100 * float(difference.max(initial=0.0)))
            converged += int(both.sum())
    case = f"{images:,} images × {width:,}, {len(COSTS)} costs"
    fits = len(shares) * _AT_ONCE * len(COSTS)
    on_two = {"ours": times["two cores"], _PEER: times["LinearSVC"]}
    on_one = {"ours": times["ours"], _PEER: times["LinearSVC"]}
    claims = [
        timing.claim(f"{case}, two cores", on_two, _PEER, speed=True, must=4, stretch=10),
        timing.claim(f"{case}, one core", on_one, _PEER, speed=True),
        timing.error_claim(
            f"{case}, points of AP, {converged} of {fits} fits", "LinearSVC", worst, 0.1
        ),
    ]
    timing.show_claims(claims, as_json=options.json)


def solve_two(problem: Problem, number: int, workers: joblib.Parallel | None = None) -> np.ndarray:
    """Cross-validation of a class on two folds: (folds, costs, 2); see `svm.cross_validate`."""
    solve = partial(svm.cross_validate, problem, COSTS, _FOLDS)
    tasks = [(number, fold) for fold in range(_AT_ONCE)]
    if workers is None:
        return np.stack([solve(task) for task in tasks])
    found: Any = workers(joblib.delayed(solve)(task) for task in tasks)
    return np.stack(found)


if __name__ == "__main__":
    main()
