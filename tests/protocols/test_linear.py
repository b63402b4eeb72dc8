from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from harness import classify
from harness.classify import Heads, gradients, hold_out, sgd_step, top_classes
from harness.errors import UserError
from harness.protocol import HeadTraining
from harness.scale import SCALES
from protocols import linear
from tests.protocols.toys import LINEAR_TOY, PixelBackbone, toy_data


class KilledError(Exception):
    """Stands for a kill -9 between two steps."""


def zeros(rates: int, classes: int, d: int) -> Heads:
    weight, bias = torch.zeros((rates, classes, d)), torch.zeros((rates, classes))
    return Heads(weight, bias, weight.clone(), bias.clone())


def test_a_solvable_toy_gives_100_percent_and_the_useful_rate_is_chosen(tmp_path, capsys):
    with toy_data():
        metrics = LINEAR_TOY.run(PixelBackbone(), tmp_path)
    assert {m: found.value for m, found in metrics.items()} == {
        "linear_top1": 100.0,
        "linear_top5": 100.0,
    }
    said = capsys.readouterr().err
    assert "lr 1e-06: " in said and "chosen: lr 0.3" in said


def test_shuffled_labels_give_chance(tmp_path):
    with toy_data(shuffled=1.0, images=1200):
        metrics = replace(LINEAR_TOY, epochs=2).run(PixelBackbone(), tmp_path)
    # Six classes: 16.7 %, the five likeliest 83.3 %, standard deviation 1.1.
    assert 11.0 < metrics["linear_top1"].value < 22.5
    assert 77.5 < metrics["linear_top5"].value < 89.0


def test_the_gradient_is_that_of_cross_entropy_by_autograd():
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn((3, 4, 5), generator=generator, dtype=torch.float64, requires_grad=True)
    bias = torch.randn((3, 4), generator=generator, dtype=torch.float64, requires_grad=True)
    features = torch.randn((7, 5), generator=generator, dtype=torch.float64)
    labels = torch.tensor([0, 1, 2, 3, 0, 1, 2])
    heads = Heads(weight, bias, torch.zeros_like(weight), torch.zeros_like(bias))
    logits = heads.logits(features)
    loss = sum(torch.nn.functional.cross_entropy(logits[:, r], labels) for r in range(3))
    expected = torch.autograd.grad(loss, (weight, bias))
    with torch.no_grad():
        found = gradients(heads, features, labels)
    assert torch.allclose(found[0], expected[0], rtol=1e-12, atol=1e-14)
    assert torch.allclose(found[1], expected[1], rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("nesterov", [False, True])
def test_the_update_is_that_of_torch_sgd_at_each_heads_own_rate(nesterov):
    settings = HeadTraining(lr=(0.5, 0.01), weight_decay=1e-3, nesterov=nesterov)
    generator = torch.Generator().manual_seed(0)
    heads = zeros(2, 3, 4)
    for value in (heads.weight, heads.bias):
        value.copy_(torch.randn(value.shape, generator=generator))
    twins = [(heads.weight[r].clone(), heads.bias[r].clone()) for r in range(2)]
    optimizers = [
        torch.optim.SGD(twin, lr=lr, momentum=0.9, weight_decay=1e-3, nesterov=nesterov)
        for twin, lr in zip(twins, settings.lr, strict=True)
    ]
    for _ in range(3):
        slopes = (
            torch.randn(heads.weight.shape, generator=generator),
            torch.randn(heads.bias.shape, generator=generator),
        )
        sgd_step(heads, (slopes[0].clone(), slopes[1].clone()), settings, 1.0)
        for r, (twin, optimizer) in enumerate(zip(twins, optimizers, strict=True)):
            twin[0].grad, twin[1].grad = slopes[0][r], slopes[1][r]
            optimizer.step()
    for r, (weight, bias) in enumerate(twins):
        torch.testing.assert_close(heads.weight[r], weight)
        torch.testing.assert_close(heads.bias[r], bias)


def test_heads_of_one_pass_equal_heads_trained_alone(tmp_path):
    backbone = PixelBackbone()
    settings = replace(LINEAR_TOY, epochs=2)
    with toy_data(noise=100):
        train, _ = classify_pair()
        indices = np.arange(len(train))
        training = classify.TrainingSet(data=train, indices=indices, view=settings.train_view)
        together = classify.fit(backbone, training, settings, tmp_path / "all")
        for place, lr in enumerate(settings.lr):
            alone = classify.fit(
                backbone, training, replace(settings, lr=(lr,)), tmp_path / str(place)
            )
            torch.testing.assert_close(alone.weight[0], together.weight[place])


def classify_pair():
    from harness.features import open_pair

    return open_pair("toy")


@pytest.mark.parametrize("steps", [1, 4, 9, 10])
def test_a_killed_run_ends_with_the_same_bits_as_an_uninterrupted_one(tmp_path, monkeypatch, steps):
    protocol = replace(LINEAR_TOY, epochs=3)
    monkeypatch.setattr(classify, "SAVE_SECONDS", 0.0)  # a checkpoint after each step
    with toy_data(noise=150):
        whole = protocol.run(PixelBackbone(), tmp_path / "whole")
        taken = 0

        def killing(*args):
            nonlocal taken
            if taken == steps:
                raise KilledError
            taken += 1
            sgd_step(*args)

        with monkeypatch.context() as patched, pytest.raises(KilledError):
            patched.setattr(classify, "sgd_step", killing)
            protocol.run(PixelBackbone(), tmp_path / "killed")
        again = protocol.run(PixelBackbone(), tmp_path / "killed")
    assert again == whole
    states = [classify.load_training(tmp_path / run / "heads") for run in ("whole", "killed")]
    assert states[0] is not None and states[1] is not None
    assert states[0][0].keys() == states[1][0].keys()
    for name in Heads._fields:
        assert torch.equal(states[0][0][name], states[1][0][name]), name


def test_heads_of_other_settings_or_weights_are_not_taken_up(tmp_path, capsys):
    with toy_data():
        short = replace(LINEAR_TOY, epochs=1)
        short.run(PixelBackbone(), tmp_path)
        short.run(PixelBackbone(), tmp_path)
        assert "going on from step 9" in capsys.readouterr().err
        replace(short, weight_decay=1e-4).run(PixelBackbone(), tmp_path)
        other = PixelBackbone()
        with torch.no_grad():
            other.trunk.weight.mul_(1.01)
        short.run(other, tmp_path)
        assert "going on" not in capsys.readouterr().err


def test_the_same_share_of_every_class_is_held_out():
    labels = np.repeat([0, 1, 2], [200, 50, 3])
    kept, held = hold_out(labels, 0.1, seed=0)
    assert np.bincount(labels[held]).tolist() == [20, 5, 1]
    assert np.array_equal(np.sort(np.concatenate([kept, held])), np.arange(253))
    assert np.array_equal(hold_out(labels, 0.1, seed=0)[1], held)
    assert not np.array_equal(hold_out(labels, 0.1, seed=1)[1], held)


def test_a_class_of_one_image_cannot_be_held_out():
    with pytest.raises(UserError, match="class 1 has 1 train image"):
        hold_out(np.array([0, 0, 1]), 0.5, seed=0)


def test_with_one_learning_rate_all_of_train_is_used():
    kept, held = hold_out(np.array([0, 0, 1]), 0.0, seed=0)
    assert kept.tolist() == [0, 1, 2] and held.tolist() == []


def test_the_five_likeliest_classes_come_best_first_with_ties_to_the_lower_class():
    heads = zeros(1, 7, 2)
    heads.bias[0] = torch.tensor([0.0, 3.0, 1.0, 3.0, 2.0, -1.0, 1.0])
    assert top_classes(heads, 0, torch.zeros((1, 2)), 5).tolist() == [[1, 3, 4, 2, 6]]
    assert top_classes(zeros(1, 3, 2), 0, torch.zeros((2, 2)), 5).tolist() == [[0, 1, 2]] * 2


def test_a_diverged_head_is_named_and_never_chosen(tmp_path, capsys):
    with toy_data():
        protocol = replace(LINEAR_TOY, lr=(1e38, 0.3), weight_decay=0.1)
        metrics = protocol.run(PixelBackbone(), tmp_path)
    assert metrics["linear_top1"].value == 100.0
    assert "lr 1e+38: non-finite weights" in capsys.readouterr().err


def test_when_every_head_diverges_the_sentence_says_so(tmp_path):
    protocol = replace(LINEAR_TOY, lr=(1e38,), weight_decay=0.1)
    said = r"every linear head became non-finite in epoch 1 \(learning rates 1e\+38\)"
    with toy_data(), pytest.raises(UserError, match=said):
        protocol.run(PixelBackbone(), tmp_path)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"batch_size": 1000}, "batch size 1000 is more than the 294 train images of toy"),
        ({"epochs": 0}, "with epochs=0 trains nothing"),
        ({"holdout": 1.5}, "holdout=1.5 is a share of train"),
    ],
)
def test_settings_that_do_not_fit_are_refused_in_one_sentence(tmp_path, change, said):
    with toy_data(), pytest.raises(UserError, match=said):
        replace(LINEAR_TOY, **change).run(PixelBackbone(), tmp_path)


def test_the_cosine_falls_once_an_epoch_and_steps_fall_at_milestones():
    cosine = HeadTraining(epochs=4)
    assert [round(cosine.lr_factor(e), 4) for e in range(4)] == [1.0, 0.8536, 0.5, 0.1464]
    steps = HeadTraining(epochs=100, schedule="steps", milestones=(60, 80))
    assert [round(steps.lr_factor(e), 6) for e in (59, 60, 79, 80)] == [1.0, 0.1, 0.1, 0.01]


def test_the_variants_carry_the_papers_settings():
    shown = {
        name: (v.lr, v.batch_size, v.weight_decay, v.epochs, v.last_blocks, v.train_view.scale[0])
        for name, v in linear.VARIANTS.items()
    }
    assert shown == {
        "svib_resnet": ((0.3,), 1024, 0.0, 100, 1, 0.08),
        "svib_vit": ((0.001, 0.004), 1024, 0.0, 100, 4, 0.08),
        "imsvd": ((0.02,), 256, 1e-6, 100, 1, 0.2),
        "dino_resnet": ((0.3,), 1024, 0.0, 100, 1, 0.08),
        "dino_vit": ((0.004,), 1024, 0.0, 100, 4, 0.08),
        "barlow_twins": ((0.3,), 256, 1e-6, 100, 1, 0.08),
        "vicreg": ((0.02,), 256, 1e-6, 100, 1, 0.2),
        "swav": ((0.3,), 256, 1e-6, 100, 1, 0.08),
        "moco": ((30.0,), 256, 0.0, 100, 1, 0.08),
        "pcl": ((5.0,), 256, 0.0, 100, 1, 0.08),
        "simsiam": ((1.6,), 4096, 0.0, 90, 1, 0.08),
        "byol": ((0.4, 0.3, 0.2, 0.1, 0.05), 1024, 0.0, 80, 1, 0.08),
    }
    stepped = {n: v.milestones for n, v in linear.VARIANTS.items() if v.schedule == "steps"}
    assert stepped == {"moco": (60, 80), "pcl": (60, 80)}
    assert [n for n, v in linear.VARIANTS.items() if v.nesterov] == ["byol"]
    assert [n for n, v in linear.VARIANTS.items() if v.optimizer == "larc"] == ["simsiam"]
    assert round(linear.BYOL.holdout * 1_281_167) == 10_009
    for variant in linear.VARIANTS.values():
        assert variant.momentum == 0.9
        assert (variant.train_view.jitter_p, variant.train_view.gray_p) == (0.0, 0.0)
        assert (variant.train_view.flip_p, variant.train_view.blur_p) == (0.5, 0.0)


def test_another_scale_brings_its_data_epochs_and_batch_and_a_sweep_of_rates():
    scale = SCALES["demo"]
    demo = linear.SVIB_VIT.scaled(scale)
    assert (demo.dataset, demo.epochs, demo.batch_size) == ("mnist5k", scale.linear_epochs, 256)
    assert demo.train_view.size == demo.transform.size == scale.image_size
    assert len(demo.lr) > 1 and demo.last_blocks == 4


def test_larc_rescales_each_heads_gradient_to_a_thousandth_of_its_weights_norm():
    settings = HeadTraining(lr=(2.0, 0.5), optimizer="larc", momentum=0.0, weight_decay=0.1)
    heads = zeros(2, 1, 2)
    heads.weight.copy_(torch.tensor([[[3.0, 4.0]], [[0.0, 0.0]]]))  # norms 5 and 0
    slopes = (torch.tensor([[[0.0, 2.0]], [[1.0, 0.0]]]), torch.tensor([[1.0], [1.0]]))
    sgd_step(heads, slopes, settings, 1.0)
    # (g + wd w) * .001 * 5 / (2 + .1 * 5) at rate 2; a weight or bias of norm 0 takes plain steps.
    assert torch.allclose(heads.weight[0], torch.tensor([[3.0 - 0.0012, 4.0 - 0.0096]]))
    assert torch.equal(heads.weight[1], torch.tensor([[-0.5, 0.0]]))
    assert heads.bias.flatten().tolist() == [-2.0, -0.5]
