from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from harness import dist, finetune
from harness.backbone import POOLED, Backbone, build_backbone
from harness.checkpoint import load_training
from harness.classifier import Classifier, build_optimizer, likeliest, set_rates
from harness.classify import TrainingSet
from harness.errors import UserError
from harness.finetune import DivergedError, best_trial, fit
from harness.loader import Plan, train_batches
from harness.protocol import FineTuning, Trial
from harness.recipe import BackboneSpec, Reading
from harness.views import CenterCrop, View
from tests.protocols.toys import SIDE, toy_split

VIEW = View(size=SIDE, scale=(0.8, 1.0), jitter_p=0.0, gray_p=0.0)
SETTINGS = FineTuning(lr=(0.05,), head_lr=(0.5,), epochs=(2,), batch_size=30)


class KilledError(Exception):
    """Stands for a kill -9 between two steps."""


class TinyBackbone(Backbone):
    """A convolution, a batch norm and a pooling."""

    def __init__(self, dim: int = 16) -> None:
        super().__init__(BackboneSpec(name="resnet_tiny"), SIDE)
        self.dim = dim
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(3)
            self.trunk = nn.Sequential(
                nn.Conv2d(3, dim, 3, stride=2, bias=False),
                nn.BatchNorm2d(dim),
                nn.ReLU(),
                nn.AdaptiveAvgPool2d(1),
                nn.Flatten(),
            )

    def forward(self, images: Tensor, reading: Reading = POOLED) -> Tensor:
        return self.trunk(images)


def training_set(images: int = 90) -> TrainingSet:
    data = toy_split("train", noise=150)
    return TrainingSet(data=data, indices=np.arange(images), view=VIEW)


def first_batch(settings: FineTuning, images: int) -> tuple[Tensor, Tensor]:
    training = training_set(images)
    plan = Plan(indices=training.indices)
    batches = train_batches(
        training.data, [VIEW], seed=settings.seed, epoch=0, batch_size=images, plan=plan
    )
    batch = next(batches)
    return batch.views[0], batch.labels


def step_by_hand(settings: FineTuning, images: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Weights before the first step, and their gradients on all images."""
    model = Classifier(TinyBackbone(), 6, settings).train()
    views, labels = first_batch(settings, images)
    nn.functional.cross_entropy(model(views), labels).backward()
    weights = {name: p.detach().clone() for name, p in model.named_parameters()}
    return weights, {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("nesterov", [False, True])
def test_one_step_moves_trunk_and_head_each_at_its_own_rate(tmp_path, nesterov):
    settings = replace(SETTINGS, nesterov=nesterov, weight_decay=0.1)
    trial = Trial(0.01, 2.0, 1)
    weights, slopes = step_by_hand(settings, 30)
    model = fit(TinyBackbone(), training_set(30), settings, trial, tmp_path)
    share = 1.9 if nesterov else 1.0  # the first of Nesterov's steps looks .9 ahead
    for name, found in model.named_parameters():
        rate = 2.0 if name.startswith("head.") else 0.01
        expected = weights[name] - rate * share * (slopes[name] + 0.1 * weights[name])
        torch.testing.assert_close(found.detach(), expected)


def test_lars_adapts_the_trunks_matrices_and_nothing_else(tmp_path):
    settings = replace(SETTINGS, optimizer="lars")
    weights, slopes = step_by_hand(settings, 30)
    model = fit(TinyBackbone(), training_set(30), settings, Trial(0.2, 0.3, 1), tmp_path)
    adapted = []
    for name, found in model.named_parameters():
        step = (0.3 if name.startswith("head.") else 0.2) * slopes[name]
        if name.startswith("backbone.") and found.ndim > 1:
            adapted.append(name)
            step = step * 0.001 * weights[name].norm() / slopes[name].norm()
        torch.testing.assert_close(found.detach(), weights[name] - step)
    assert adapted == ["backbone.trunk.0.weight"]


def test_the_head_starts_normal_at_zero_or_as_torch_does():
    def head(start: str) -> nn.Linear:
        return Classifier(TinyBackbone(400), 50, replace(SETTINGS, head_init=start)).head

    normal, zeros, plain = head("normal"), head("zeros"), head("torch")
    assert normal.weight.std().item() == pytest.approx(0.01, rel=0.02)
    assert normal.bias.count_nonzero() == zeros.bias.count_nonzero() == 0
    assert zeros.weight.count_nonzero() == 0
    # Uniform between -1 / sqrt(400) and 1 / sqrt(400), the bias too.
    assert plain.weight.abs().max().item() == pytest.approx(0.05, rel=0.01)
    assert plain.weight.std().item() == pytest.approx(0.05 / math.sqrt(3), rel=0.02)
    assert 0 < plain.bias.abs().max() <= 0.05
    assert torch.equal(normal.weight, head("normal").weight)
    assert not torch.equal(
        normal.weight, Classifier(TinyBackbone(400), 50, replace(SETTINGS, seed=1)).head.weight
    )


def test_rates_follow_each_parts_own_schedule():
    settings = replace(SETTINGS, schedule="steps", milestones=(5, 10, 15), drop=0.2, head_drop=0.1)
    model = Classifier(TinyBackbone(), 6, settings)
    optimizer = build_optimizer(model, settings, Trial(0.005, 10.0, 20))
    found = []
    for epoch in (0.0, 4.9, 5.0, 10.5, 19.9):
        set_rates(optimizer, settings, epoch, 20)
        found.append([round(group["lr"], 9) for group in optimizer.param_groups])
    assert found == [[0.005, 10.0]] * 2 + [[0.001, 1.0], [0.0002, 0.1], [0.00004, 0.01]]


def test_cosines_fall_by_epoch_or_by_step():
    by_epoch, by_step = SETTINGS, replace(SETTINGS, schedule="cosine_by_step")
    epochs = (0, 0.5, 1, 2, 3.5)
    assert [round(by_epoch.lr_factor(e, 4, 0.1), 4) for e in epochs] == [
        1.0, 1.0, 0.8536, 0.5, 0.1464,
    ]  # fmt: skip
    assert [round(by_step.lr_factor(e, 4, 0.1), 4) for e in epochs] == [
        1.0, 0.9619, 0.8536, 0.5, 0.0381,
    ]  # fmt: skip


@pytest.mark.parametrize("killed_at", [1, 3, 5])
def test_a_killed_fine_tuning_ends_with_the_same_bits(tmp_path, monkeypatch, killed_at):
    monkeypatch.setattr(finetune, "LOG_EVERY", 1)
    monkeypatch.setattr(finetune, "SAVE_SECONDS", 0.0)  # a checkpoint after each step
    settings = replace(SETTINGS, nesterov=True, schedule="cosine_by_step")
    trial = Trial(0.05, 0.5, 2)
    whole = fit(TinyBackbone(), training_set(), settings, trial, tmp_path / "whole")
    step, taken = finetune._step, 0

    def killing(*args):
        nonlocal taken
        if taken == killed_at:
            raise KilledError
        taken += 1
        return step(*args)

    with monkeypatch.context() as patched, pytest.raises(KilledError):
        patched.setattr(finetune, "_step", killing)
        fit(TinyBackbone(), training_set(), settings, trial, tmp_path / "killed")
    again = fit(TinyBackbone(), training_set(), settings, trial, tmp_path / "killed")
    expected = whole.state_dict()
    assert expected["backbone.trunk.1.num_batches_tracked"] == 6
    for name, value in again.state_dict().items():
        assert torch.equal(value, expected[name]), name
    # Started once more, the finished run is only read.
    with monkeypatch.context() as patched:
        patched.setattr(finetune, "_step", killing)
        read = fit(TinyBackbone(), training_set(), settings, trial, tmp_path / "killed")
    assert torch.equal(read.head.weight, whole.head.weight)


def test_other_settings_images_or_weights_start_afresh(tmp_path, capsys):
    def run(settings: FineTuning = SETTINGS, images: int = 60, scale: float = 1.0) -> str:
        backbone = TinyBackbone()
        with torch.no_grad():
            backbone.trunk[0].weight.mul_(scale)
        fit(backbone, training_set(images), settings, Trial(0.05, 0.5, 2), tmp_path)
        return capsys.readouterr().err

    assert "going on" not in run()
    assert "going on from step 4 of 4" in run()
    for other in ({"settings": replace(SETTINGS, momentum=0.8)}, {"images": 61}, {"scale": 1.1}):
        assert "going on" not in run(**other)


def test_the_backbone_passed_in_stays_as_it_is(tmp_path):
    backbone = TinyBackbone().eval().requires_grad_(False)
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    model = fit(backbone, training_set(), SETTINGS, Trial(0.05, 0.5, 2), tmp_path)
    assert not backbone.training and not any(p.requires_grad for p in backbone.parameters())
    for name, value in backbone.state_dict().items():
        assert torch.equal(value, before[name])
        assert not torch.equal(value, model.backbone.state_dict()[name])


def test_what_is_left_of_an_epoch_sits_out_and_few_images_make_one_batch(tmp_path, capsys):
    def steps(images: int) -> int:
        folder = tmp_path / str(images)
        fit(TinyBackbone(), training_set(images), SETTINGS, Trial(0.05, 0.5, 2), folder)
        found = load_training(next((folder / "finetune").iterdir()))
        assert found is not None
        return found[0]["step"]

    assert steps(89) == 4  # two batches of 30, twice
    assert "batches of all" not in capsys.readouterr().err
    assert steps(29) == 2
    assert "batches of all 29 labelled images: there are fewer than 30" in capsys.readouterr().err


def test_a_vision_transformer_is_fine_tuned_without_stochastic_depth(tmp_path):
    torch.manual_seed(0)
    backbone = build_backbone(BackboneSpec(name="vit_demo", drop_path=0.9), SIDE)
    found = []
    for run in ("one", "two"):
        torch.manual_seed(len(found))
        model = fit(backbone, training_set(30), SETTINGS, Trial(0.01, 0.1, 2), tmp_path / run)
        found.append(model.state_dict())
    for name, value in found[0].items():
        assert torch.equal(value, found[1][name]), name
    assert not torch.equal(found[0]["backbone.trunk.cls_token"], backbone.trunk.cls_token)


def test_a_diverging_run_stops_with_one_sentence_and_keeps_no_spoilt_checkpoint(tmp_path):
    said = r"at step \d+ of 6 \(learning rates 1e\+30 of the trunk, 0.5 of the head\)"
    with pytest.raises(DivergedError, match=said):
        fit(TinyBackbone(), training_set(), SETTINGS, Trial(1e30, 0.5, 2), tmp_path)
    assert list(tmp_path.rglob("step-*.pt")) == []


def test_the_best_held_out_trial_is_chosen_and_diverged_ones_are_not(capsys):
    trials = [Trial(lr, lr, epochs) for lr in (0.1, 1.0) for epochs in (1, 2)]
    found = {trials[0]: 50.0, trials[1]: 70.0, trials[3]: 70.0}

    def accuracy(trial: Trial) -> float:
        if trial not in found:
            raise DivergedError("the loss is nan")
        return found[trial]

    assert best_trial(trials, accuracy) == trials[1]
    said = capsys.readouterr().err
    assert "lr 1, head 1, 1 epochs: diverged" in said and "chosen: lr 0.1, 2 epochs" in said
    found.clear()
    with pytest.raises(DivergedError, match="the loss is nan"):
        best_trial(trials, accuracy)


def test_every_rate_is_tried_with_every_number_of_epochs():
    several = FineTuning(lr=(0.1, 0.2), head_lr=(1.0, 2.0), epochs=(3, 5))
    assert several.trials() == [(0.1, 1.0, 3), (0.1, 1.0, 5), (0.2, 2.0, 3), (0.2, 2.0, 5)]
    assert FineTuning(lr=(0.1, 0.2)).trials() == [(0.1, 0.1, 20), (0.2, 0.2, 20)]
    with pytest.raises(UserError, match="give one --head-lr for each --lr, or none"):
        FineTuning(lr=(0.1,), head_lr=(1.0, 2.0)).trials()
    with pytest.raises(UserError, match=r"epochs=\(0,\) trains nothing"):
        FineTuning(epochs=(0,)).trials()


def test_a_batch_that_processes_cannot_share_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(dist, "world", lambda: 4)
    said = "a batch of 30 of the 90 labelled images can't be shared among 4 processes.* 28 or fewer"
    with pytest.raises(UserError, match=said):
        fit(TinyBackbone(), training_set(), SETTINGS, Trial(0.05, 0.5, 2), tmp_path)


def tuned(folder: Path) -> dict[str, Tensor]:
    """Weights and val predictions with batch norm over all processes, and over shares.

    tests/protocols/test_semisup.py runs it on one and two processes.
    """
    trial, val = Trial(0.05, 0.5, 2), toy_split("val", images=41, noise=150)
    found = {}
    for sync_bn in (True, False):
        settings = replace(SETTINGS, sync_bn=sync_bn)
        name = f"sync {sync_bn}"
        model = fit(TinyBackbone(), training_set(), settings, trial, folder / name)
        top = likeliest(model, val, CenterCrop(resize=SIDE, size=SIDE))
        order = dist.gather_rows(top.indices).argsort()
        found |= {f"{name} {key}": value for key, value in model.state_dict().items()}
        found[f"{name} top"] = dist.gather_rows(top.values)[order]
    return found
