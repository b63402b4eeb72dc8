"""What a run gets of its training set: which images, in which order, with which labels."""

from collections.abc import Iterable
from dataclasses import replace
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import torch

from baselines import pseudo_label, s4l_rotation, supervised, vicreg
from harness import dist, loader
from harness.errors import UserError
from harness.recipe import Recipe
from harness.scale import SCALES, scale_recipe
from harness.supervision import UNSEEN
from harness.training_images import TrainingImages, open_training
from tests.gloo import run_on

DEMO = SCALES["demo"]  # 4,000 train images of mnist5k


def demo(recipe: Recipe, **changes) -> Recipe:
    return replace(scale_recipe(recipe, DEMO), **changes)


def together(lists: Iterable[list]) -> list:
    return list(chain.from_iterable(lists))


HALVES = demo(s4l_rotation.RESNET50V2_10)
ONE_PERCENT = demo(s4l_rotation.RESNET50V2_1)
LABELLED = demo(supervised.RESNET50V2_10)
TWO_PHASES = demo(pseudo_label.RESNET50V2_10)


@pytest.fixture(autouse=True)
def quick_views(monkeypatch):
    """A view is a single pixel that tells the image and the number that its crop is drawn by."""

    def augment(images, indices, *, views, seed, epoch):
        pixels = torch.from_numpy(np.asarray(indices)).float() + epoch / 1024
        return [pixels.view(-1, 1, 1, 1) for _ in views]

    monkeypatch.setattr(loader, "augment", augment)


def steps_of(data: TrainingImages, epoch: int, start: int = 0) -> list[tuple[list, list]]:
    """Places and labels of each step of an epoch on this process."""
    return [(b.indices.tolist(), b.labels.tolist()) for b in data.epoch(epoch, start)]


@pytest.fixture(scope="module")
def truth() -> np.ndarray:
    return open_training(demo(supervised.RESNET50), 0).images.labels


def test_labels_that_a_recipe_does_not_show_are_minus_one(truth):
    none = open_training(demo(vicreg.RESNET50), 0).images.labels
    some = open_training(HALVES, 0)
    assert (none == UNSEEN).all() and (truth >= 0).all()
    assert len(some.labelled) == 400 and np.bincount(truth[some.labelled]).tolist() == [40] * 10
    assert (some.images.labels[some.labelled] == truth[some.labelled]).all()
    assert (np.delete(some.images.labels, some.labelled) == UNSEEN).all()


def test_other_seeds_label_other_images_and_one_percent_is_part_of_ten():
    ten, other, one = (
        set(open_training(recipe, seed).labelled.tolist())
        for recipe, seed in ((HALVES, 0), (HALVES, 1), (ONE_PERCENT, 0))
    )
    assert one < ten and len(one) == 40 and ten != other


@pytest.mark.parametrize("recipe", [HALVES, LABELLED, TWO_PHASES, demo(supervised.RESNET50)])
def test_an_epoch_is_as_many_steps_as_a_pass_over_all_images(recipe):
    data = open_training(recipe, 0)
    assert data.steps_per_epoch == 4000 // recipe.batch_size == len(steps_of(data, 1))


def test_half_of_each_batch_is_labelled(truth):
    data = open_training(HALVES, 0)
    known = set(data.labelled.tolist())
    for places, labels in steps_of(data, 0):
        assert [place in known for place in places] == [True] * 16 + [False] * 16
        assert labels == [*truth[places[:16]].tolist(), *[UNSEEN] * 16]


def test_labelled_images_come_once_a_pass_and_passes_go_on_from_epoch_to_epoch():
    data = open_training(HALVES, 0)
    halves = [places[:16] for epoch in (0, 1) for places, _ in steps_of(data, epoch)]
    # 125 steps an epoch, 25 a pass over 400 images
    for start in range(0, 250, 25):
        one_pass = together(halves[start : start + 25])
        assert sorted(one_pass) == data.labelled.tolist()
    assert halves[0] != halves[25]
    uneven = open_training(replace(HALVES, batch_size=48), 0)  # 83 steps an epoch, 16 a pass
    halves = [places[:24] for epoch in (0, 1) for places, _ in steps_of(uneven, epoch)]
    for start in range(0, 160, 16):  # the sixth pass begins in the first epoch
        assert len(set(together(halves[start : start + 16]))) == 384


def test_the_other_half_is_drawn_without_repetition_within_a_pass():
    data = open_training(HALVES, 0)
    others = [places[16:] for places, _ in steps_of(data, 0)]
    assert all(len(set(together(others[s : s + 25]))) == 400 for s in range(0, 125, 25))
    assert len(set(together(others))) > 1300  # of 3,600


def test_an_image_looks_different_in_every_pass():
    data = open_training(HALVES, 0)
    seen: dict[int, list[torch.Tensor]] = {}
    for batch in data.epoch(0, 0):
        for row, place in enumerate(batch.indices.tolist()[:16]):
            seen.setdefault(place, []).append(batch.views[0][row])
    crops = seen[int(data.labelled[0])]
    assert len(crops) == 5
    assert all(not torch.equal(a, b) for n, a in enumerate(crops) for b in crops[:n])


@pytest.mark.parametrize("recipe", [HALVES, ONE_PERCENT, LABELLED, TWO_PHASES])
@pytest.mark.parametrize("epoch", [0, 1])
def test_a_resumed_epoch_goes_on_where_it_stopped(recipe, epoch):
    data = open_training(recipe, 0)
    whole = list(data.epoch(epoch, 120))
    rest = list(data.epoch(epoch, 123))
    assert len(whole) == 5 and len(rest) == 2
    for a, b in zip(whole[3:], rest, strict=True):
        assert torch.equal(a.indices, b.indices) and torch.equal(a.labels, b.labels)
        assert torch.equal(a.views[0], b.views[0])


def test_the_supervised_baseline_sees_labelled_images_alone():
    data = open_training(LABELLED, 0)
    for places, labels in steps_of(data, 0, 100):
        assert set(places) <= set(data.labelled.tolist()) and UNSEEN not in labels


def test_pseudo_labels_come_after_a_phase_on_labelled_images():
    data = open_training(TWO_PHASES, 0)
    assert TWO_PHASES.method.first.epochs == 1
    first, second = (steps_of(data, epoch) for epoch in (0, 1))
    assert set(together(places for places, _ in first)) == set(data.labelled.tolist())
    assert sorted(together(places for places, _ in second)) == list(range(4000))


def test_every_scale_has_labels_enough_for_a_batch():
    for module in (supervised, pseudo_label, s4l_rotation):
        for name, images in (("demo", 4000), ("cifar10-mini", 10_000), ("cifar10", 50_000)):
            recipe = scale_recipe(module.RESNET50V2_1, SCALES[name])
            assert recipe.batch_size <= images // 100, (module.__name__, name)
            # and the rate is that of the scale's batches
            plain = scale_recipe(vicreg.RESNET50, SCALES[name])
            rates = [r.optim.lr * r.batch_size for r in (recipe, plain)]
            assert rates[0] == pytest.approx(rates[1])


def test_a_batch_of_more_labelled_images_than_there_are_is_refused():
    data = open_training(replace(ONE_PERCENT, batch_size=128), 0)
    with pytest.raises(UserError, match="64 labelled images, as many as a batch of 128 takes"):
        next(data.epoch(0, 0))


def on_processes() -> list[torch.Tensor]:
    """Places and labels of some global batches, in their order."""
    found = []
    for recipe in (HALVES, LABELLED, TWO_PHASES):
        for batch in open_training(recipe, 0).epoch(0, 122):
            found.append(dist.gather_batch(torch.stack([batch.indices, batch.labels], dim=1)))
    return found


def test_two_processes_share_the_batches_of_one(tmp_path: Path):
    alone = on_processes()
    for found in run_on(2, on_processes, tmp_path):
        assert len(found) == len(alone) == 9
        assert all(torch.equal(a, b) for a, b in zip(found, alone, strict=True))
