import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from harness import train
from harness.checkpoint import load_backbone
from harness.errors import UserError
from harness.execution import Execution
from harness.recipe import BackboneSpec, Recipe, pretrain_key
from harness.scale import SCALES, scale_recipe
from harness.views import shrink_views
from tests.gloo import run_on
from tests.recipes import TRAINED

SCALE = replace(SCALES["demo"], width=64, prototypes=16, local_crops=1)


class Killed(BaseException):
    """Stands for the end of the process: nothing may catch it."""


def tiny(recipe: Recipe, dataset: str) -> Recipe:
    """The recipe on 48 images: 3 epochs of 3 steps, views of 16 and 8 px."""
    small = scale_recipe(recipe, SCALE)
    return replace(
        small,
        dataset=dataset,
        views=shrink_views(small.views, {32: 16, 16: 8, 36: 18, 8: 4}),
        backbone=BackboneSpec(
            name=small.backbone.name, drop_path=0.2 if "vit" in small.backbone.name else 0.0
        ),
        batch_size=16,
        epochs=3,
        labelled=50.0 if 0 < small.labelled < 100 else small.labelled,
        optim=replace(small.optim, warmup_epochs=1, clip_grad=3.0),
    )


@pytest.fixture
def eager_checkpoints(monkeypatch):
    """A checkpoint after every step."""
    monkeypatch.setattr(train, "LOG_EVERY", 1)


def whole_state(recipe: Recipe, runs: Path, *, kill_at: int | None = None) -> dict:
    """Train; everything there is at the end: weights, optimiser, teacher, means, centre."""
    seen = {}

    def on_step(run: train.Run) -> None:
        if run.step == kill_at:
            raise Killed
        if run.step == run.steps:
            seen["method"] = {k: v.clone() for k, v in run.method.state_dict().items()}
            seen["optimizer"] = run.optimizer.state_dict()["state"]

    train.pretrain(recipe, 0, runs, Execution(save_every=0), on_step=on_step)
    return seen


@pytest.mark.parametrize("name", TRAINED)
def test_a_killed_and_resumed_run_equals_an_uninterrupted_one_to_the_last_bit(
    name, tiny_images, tmp_path, eager_checkpoints
):
    recipe = tiny(TRAINED[name], tiny_images)
    straight = whole_state(recipe, tmp_path / "straight")
    for step in (2, 4, 6):  # within an epoch, after SVIB's re-initialisation, at an epoch's end
        with pytest.raises(Killed):
            whole_state(recipe, tmp_path / "killed", kill_at=step)
    resumed = whole_state(recipe, tmp_path / "killed")
    torch.testing.assert_close(resumed, straight, rtol=0, atol=0)
    files = [
        load_backbone(folder / pretrain_key(recipe, 0) / "backbone.pt")[0]
        for folder in (
            tmp_path / "straight",
            tmp_path / "killed",
        )
    ]
    torch.testing.assert_close(files[0].state_dict(), files[1].state_dict(), rtol=0, atol=0)


def test_the_log_of_a_resumed_run_has_every_step_once(tiny_images, tmp_path, eager_checkpoints):
    recipe = tiny(TRAINED["vicreg:RESNET50"], tiny_images)
    with pytest.raises(Killed):
        whole_state(recipe, tmp_path, kill_at=5)
    whole_state(recipe, tmp_path)
    lines = (tmp_path / pretrain_key(recipe, 0) / "log.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == list(range(1, 10))
    assert json.loads(lines[-1])["seconds_left"] == 0
    assert {"invariance", "variance", "covariance", "images_per_s"} <= json.loads(lines[0]).keys()


def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(
    tiny_images, tmp_path, eager_checkpoints, capsys
):
    recipe = tiny(TRAINED["imsvd:RESNET50"], tiny_images)
    straight = whole_state(recipe, tmp_path / "straight")
    with pytest.raises(Killed):
        whole_state(recipe, tmp_path, kill_at=5)
    newest = max((tmp_path / pretrain_key(recipe, 0)).glob("step-*.pt"))
    damaged = bytearray(newest.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    newest.write_bytes(damaged)
    resumed = whole_state(recipe, tmp_path)
    error = capsys.readouterr().err
    assert f"checkpoint {newest} is damaged" in error
    assert "at step 4/9" in error
    torch.testing.assert_close(resumed, straight, rtol=0, atol=0)


def test_a_loss_that_is_not_finite_stops_the_run_and_names_step_term_and_checkpoint(
    tiny_images, tmp_path, eager_checkpoints
):
    recipe = tiny(TRAINED["vicreg:RESNET50"], tiny_images)

    def poison(run: train.Run) -> None:
        if run.step == 4:
            with torch.no_grad():
                run.method.projector[-1].weight.fill_(float("nan"))

    with pytest.raises(train.NonFiniteLossError) as caught:
        train.pretrain(recipe, 0, tmp_path, Execution(save_every=0), on_step=poison)
    text = str(caught.value)
    assert "loss term invariance is nan at step 4" in text
    newest = max((tmp_path / pretrain_key(recipe, 0)).glob("step-*.pt"))
    assert str(newest) in text and "step-000000004" in newest.name
    assert not (tmp_path / pretrain_key(recipe, 0) / "backbone.pt").exists()


def test_a_diverged_run_may_end_with_a_backbone_that_says_so(tiny_images, tmp_path):
    recipe = tiny(TRAINED["vicreg:RESNET50"], tiny_images)

    def poison(run: train.Run) -> None:
        with torch.no_grad():
            run.method.projector[-1].weight.fill_(float("nan"))

    with pytest.raises(train.NonFiniteLossError) as caught:
        train.pretrain(recipe, 0, tmp_path, on_step=poison)
    assert train.keep_diverged(caught.value)
    key = pretrain_key(recipe, 0)
    path = tmp_path / key / "backbone.pt"
    end = f"the loss term invariance is nan at step 1 of {key}"
    assert load_backbone(path)[1]["diverged"] == end
    before = path.stat().st_mtime_ns
    with pytest.raises(train.NonFiniteLossError, match="it has diverged; delete") as again:
        train.pretrain(recipe, 0, tmp_path, on_step=lambda run: pytest.fail("ran"))
    assert train.keep_diverged(again.value) and path.stat().st_mtime_ns == before


def diverge(dataset: str, runs: str) -> tuple[bool, str]:
    """Whether divergence was kept, and what backbone.pt says of it; one process is poisoned."""
    recipe = replace(tiny(TRAINED["vicreg:RESNET50"], dataset), epochs=1)

    def poison(run: train.Run) -> None:
        if train.dist.rank() == train.dist.world() - 1:
            with torch.no_grad():
                run.method.projector[-1].weight.fill_(float("nan"))

    try:
        train.pretrain(recipe, 0, Path(runs), on_step=poison)
    except train.NonFiniteLossError as error:
        kept = train.keep_diverged(error)
        path = Path(runs) / pretrain_key(recipe, 0) / "backbone.pt"
        return kept, load_backbone(path)[1]["diverged"]
    return False, ""


def test_two_processes_diverge_together(tiny_images, tmp_path):
    for kept, end in run_on(2, diverge, tmp_path, tiny_images, str(tmp_path / "runs")):
        assert kept and end.startswith("the loss term invariance is nan at step 1 of vicreg-")


def test_what_only_one_of_several_processes_knows_is_no_outcome(monkeypatch):
    error = train.NonFiniteWeightError("text", "a weight is not finite")
    assert train.keep_diverged(error)
    monkeypatch.setattr(train.dist, "world", lambda: 2)
    assert not train.keep_diverged(error)


def test_a_finished_run_is_not_repeated(tiny_images, tmp_path):
    recipe = tiny(TRAINED["vicreg:RESNET50"], tiny_images)
    path = train.pretrain(recipe, 0, tmp_path)
    before = path.stat().st_mtime_ns
    assert train.pretrain(recipe, 0, tmp_path, on_step=lambda run: pytest.fail("ran")) == path
    assert path.stat().st_mtime_ns == before


def test_imsvd_keeps_its_projector_with_the_trunk_and_vicreg_does_not(tiny_images, tmp_path):
    kept = {}
    for name in ("imsvd", "vicreg"):
        recipe = replace(tiny(TRAINED[f"{name}:RESNET50"], tiny_images), epochs=1)
        kept[name] = load_backbone(train.pretrain(recipe, 0, tmp_path))[0].projector
    assert kept["vicreg"] is None and kept["imsvd"] is not None
    assert kept["imsvd"].units == scale_recipe(TRAINED["imsvd:RESNET50"], SCALE).method.units
    norms = [m for m in kept["imsvd"].layers if isinstance(m, torch.nn.BatchNorm1d)]
    assert all(norm.num_batches_tracked == 6 for norm in norms)  # 3 steps of two views


def test_zero_epochs_give_the_untrained_backbone_of_the_seed(tiny_images, tmp_path):
    recipe = replace(tiny(TRAINED["vicreg:RESNET50"], tiny_images), epochs=0)
    first, second = (
        load_backbone(train.pretrain(recipe, seed, tmp_path))[0].trunk.conv1.weight
        for seed in (0, 1)
    )
    assert not torch.equal(first, second)


def test_a_batch_larger_than_the_data_set_is_refused(tiny_images, tmp_path):
    recipe = replace(tiny(TRAINED["vicreg:RESNET50"], tiny_images), batch_size=64)
    with pytest.raises(UserError, match="batch size 64 is larger than the 48 training images"):
        train.pretrain(recipe, 0, tmp_path)


def test_more_means_than_images_are_refused(tiny_images, tmp_path):
    recipe = tiny(TRAINED["svib:RESNET50"], tiny_images)
    recipe = replace(recipe, method=replace(recipe.method, means=64))
    with pytest.raises(UserError, match=r"64 distinct training images .* has 48"):
        train.pretrain(recipe, 0, tmp_path)


def train_all(dataset: str, runs: str) -> dict:
    """Final trunks of a few recipes, trained on however many processes there are."""
    trunks = {}
    for name in ("svib:RESNET50", "dino:VIT_SMALL", "barlow_twins:RESNET50"):
        recipe = tiny(TRAINED[name], dataset)
        path = train.pretrain(
            replace(recipe, backbone=BackboneSpec(name=recipe.backbone.name)), 0, Path(runs) / name
        )
        trunks[name] = load_backbone(path)[0].trunk.state_dict()
    return trunks


def test_two_processes_train_the_weights_of_one(tiny_images, tmp_path):
    torch.set_num_threads(1)
    alone = train_all(tiny_images, str(tmp_path / "alone"))
    folder = tmp_path / "pair"
    folder.mkdir()
    pair = run_on(2, train_all, folder, tiny_images, str(folder))
    for name, trunk in alone.items():
        torch.testing.assert_close(pair[0][name], pair[1][name], rtol=0, atol=0)
        # Adam divides by the root of tiny second moments, which magnifies rounding.
        tolerance = 2e-2 if "VIT" in name else 2e-3
        for key, value in trunk.items():
            change = (pair[0][name][key] - value).float().norm() / (value.float().norm() + 1e-3)
            assert change < tolerance, (name, key, float(change))


@pytest.mark.slow
def test_kill_9_and_the_same_command_give_the_checkpoint_of_an_undisturbed_run(tmp_path):
    command = [sys.executable, "-m", "harness.pretrain", "barlow_twins:RESNET50", "--scale", "demo"]
    command += ["--epochs", "100", "--save-every", "0"]  # one epoch of 31 steps
    environment = os.environ | {"OMP_NUM_THREADS": "1"}

    def run(runs: str, *, kill_after: str | None = None) -> str:
        process = subprocess.Popen(
            [*command, "--runs", runs], env=environment, cwd=tmp_path, stdout=subprocess.PIPE
        )
        if kill_after is not None:
            while not list((tmp_path / runs).glob(f"*/{kill_after}-*.pt")):
                assert process.poll() is None, "ended before it could be killed"
                time.sleep(0.05)
            process.send_signal(signal.SIGKILL)
        return process.communicate()[0].decode().strip()

    straight = torch.load(tmp_path / run("straight"), weights_only=True)
    run("killed", kill_after="step-000000010")
    run("killed", kill_after="step-000000020")
    resumed = torch.load(tmp_path / run("killed"), weights_only=True)
    torch.testing.assert_close(resumed["state"], straight["state"], rtol=0, atol=0)
