from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from harness import train
from harness.checkpoint import load_backbone
from harness.evaluate import pretrain_cost
from harness.execution import Execution
from harness.recipe import Recipe, pretrain_key
from harness.snapshots import evaluated_after, is_finished, is_lost, snapshot_steps, trunk_file
from tests.harness.test_train import Killed, tiny
from tests.recipes import TRAINED

FIG3 = TRAINED["svib:VIT_SMALL_ABLATION"]


@pytest.mark.parametrize("steps", [*range(5, 60), 250_200])
def test_five_points_of_a_run_of_five_steps_or_more_are_distinct_and_in_order(steps):
    found = snapshot_steps(FIG3, steps)
    assert list(found.values()) == [[20], [40], [60], [80]]
    assert sorted(found) == list(found) and max(found) < steps


def test_at_the_papers_scale_they_fall_on_the_ends_of_epochs_20_40_60_and_80():
    per_epoch = 1_281_167 // FIG3.batch_size
    found = snapshot_steps(FIG3, per_epoch * FIG3.epochs)
    assert found == {per_epoch * epoch: [epoch] for epoch in (20, 40, 60, 80)}


def test_a_run_shorter_than_its_points_keeps_one_trunk_under_several_names():
    assert snapshot_steps(FIG3, 1) == {1: [20, 40, 60, 80]}
    assert snapshot_steps(FIG3, 2) == {1: [20, 40, 60], 2: [80]}


def test_files_and_keys_tell_the_moment_and_the_end_is_what_it_was():
    names = ["backbone-20.pt", "backbone.pt", "backbone.pt"]
    assert [trunk_file(20), trunk_file(100), trunk_file()] == names
    assert (evaluated_after(20), evaluated_after(100)) == (("after 20 % of the steps",), ())


def test_what_is_kept_on_the_way_is_no_part_of_what_a_run_is():
    assert pretrain_key(replace(FIG3, snapshots=()), 0) == pretrain_key(FIG3, 0)


def weights(path: Path) -> dict[str, torch.Tensor]:
    return load_backbone(path)[0].state_dict()


def teacher_at(recipe: Recipe, runs: Path, step: int) -> dict[str, torch.Tensor]:
    """The evaluated trunk after a step of a run that keeps nothing."""
    seen = {}

    def on_step(run: train.Run) -> None:
        if run.step == step:
            state = run.method.evaluated.state_dict()
            seen.update({name: value.clone() for name, value in state.items()})

    train.pretrain(replace(recipe, snapshots=()), 0, runs, on_step=on_step)
    return seen


def killed_at(step: int, recipe: Recipe, runs: Path) -> None:
    def on_step(run: train.Run) -> None:
        if run.step == step:
            raise Killed

    with pytest.raises(Killed):
        train.pretrain(recipe, 0, runs, Execution(save_every=0), on_step=on_step)


@pytest.fixture
def recipe(tiny_images) -> Recipe:
    """Nine steps, kept after 2, 4, 5 and 7."""
    return tiny(FIG3, tiny_images)


def test_a_snapshot_is_the_evaluated_trunk_at_that_step_and_the_end_is_not_changed_by_it(
    recipe, tmp_path
):
    train.pretrain(recipe, 0, tmp_path / "kept")
    folder = tmp_path / "kept" / pretrain_key(recipe, 0)
    for percent, step in ((20, 2), (60, 5), (100, 9)):
        expected = teacher_at(recipe, tmp_path / f"bare{step}", step)
        found = weights(folder / trunk_file(percent))
        torch.testing.assert_close(found, expected, rtol=0, atol=0)
    assert not torch.equal(*(weights(folder / trunk_file(p))["trunk.cls_token"] for p in (60, 80)))


def test_a_snapshot_tells_its_moment_and_no_cost(recipe, tmp_path):
    folder = train.pretrain(recipe, 0, tmp_path).parent
    _, early = load_backbone(folder / "backbone-40.pt")
    _, end = load_backbone(folder / "backbone.pt")
    assert early["after"] == 40 and "after" not in end
    assert pretrain_cost(early) is None
    assert pretrain_cost(end).seconds > 0


def test_a_killed_run_keeps_the_same_snapshots_as_an_undisturbed_one(recipe, tmp_path, monkeypatch):
    monkeypatch.setattr(train, "LOG_EVERY", 1)
    train.pretrain(recipe, 0, tmp_path / "straight")
    for step in (2, 4, 6):  # at a snapshot, at the next, between two
        killed_at(step, recipe, tmp_path / "killed")
    train.pretrain(recipe, 0, tmp_path / "killed")
    for percent in (20, 40, 60, 80, 100):
        name = f"{pretrain_key(recipe, 0)}/{trunk_file(percent)}"
        pair = (weights(tmp_path / runs / name) for runs in ("killed", "straight"))
        torch.testing.assert_close(*pair, rtol=0, atol=0)


def test_a_finished_run_without_its_snapshots_trains_again_and_its_end_stays(
    recipe, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(train, "LOG_EVERY", 1)
    end = train.pretrain(replace(recipe, snapshots=()), 0, tmp_path, Execution(save_every=0))
    before = end.read_bytes()
    assert is_lost(recipe, end.parent, step=8, steps=9)
    assert not is_lost(recipe, end.parent, step=1, steps=9)
    assert not is_finished(recipe, end.parent)
    killed_at(6, recipe, tmp_path)
    assert "again: a trunk on its way is lost" in capsys.readouterr().err
    steps = {int(path.name[5:14]) for path in end.parent.glob("step-*.pt")}
    assert steps == {5, 6}  # none of the first training, from which this one could not go on
    train.pretrain(recipe, 0, tmp_path)
    assert "at step 6/9" in capsys.readouterr().err
    assert is_finished(recipe, end.parent)
    assert end.read_bytes() == before
    lines = (end.parent / "log.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == list(range(1, 10))


def test_a_run_that_diverges_says_so_at_every_moment_that_it_did_not_reach(recipe, tmp_path):
    def poison(run: train.Run) -> None:
        if run.step == 4:
            with torch.no_grad():
                run.method.means.fill_(float("nan"))

    with pytest.raises(train.NonFiniteLossError) as caught:
        train.pretrain(recipe, 0, tmp_path, on_step=poison)
    assert train.keep_diverged(caught.value)
    folder = tmp_path / pretrain_key(recipe, 0)
    told = {p: load_backbone(folder / trunk_file(p))[1] for p in (20, 40, 60, 80, 100)}
    assert [bool(info.get("diverged")) for info in told.values()] == [False] * 2 + [True] * 3
    assert told[80]["after"] == 80
    with pytest.raises(train.NonFiniteLossError, match="it has diverged; delete"):
        train.pretrain(recipe, 0, tmp_path)
