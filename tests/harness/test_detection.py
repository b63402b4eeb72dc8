from __future__ import annotations

import importlib.util
import re
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from harness import detection_data, detection_train, dist
from harness.coco import open_coco, open_coco_pair
from harness.detection import DetectorTraining, check_settings
from harness.detection_data import batches, epoch_order, resized
from harness.detection_torchvision import Sampler, build_detector, detect
from harness.detection_train import train
from harness.errors import UserError
from tests.gloo import run_on
from tests.harness.coco_toy import SMALL, KilledError, change, make_coco, trunk


@pytest.fixture(autouse=True)
def no_workers(monkeypatch):
    """Images are read in the test's own process; one test compares."""
    monkeypatch.setattr(detection_data, "loader_workers", lambda: 0)


@pytest.fixture(scope="module")
def toy(tmp_path_factory) -> str:
    return str(make_coco(tmp_path_factory.mktemp("coco") / "toy", images=7))


def test_the_rate_warms_up_and_drops_as_detectron2s_does():
    factors = [DetectorTraining().lr_factor(i) for i in (0, 500, 1000, 59_999, 60_000, 80_000)]
    # WarmupMultiStepLR of detectron2 @02b5c4e at its defaults.
    assert factors == pytest.approx([0.001, 0.5005, 1, 1, 0.1, 0.01])


def test_images_are_resized_as_detectron2s_are():
    # ResizeShortestEdge.get_output_shape of detectron2 @02b5c4e.
    sizes = [(480, 640, 800), (427, 640, 672), (640, 359, 800), (200, 1000, 640), (500, 333, 640)]
    assert [resized(*size, 1333) for size in sizes] == [
        (800, 1067), (672, 1007), (1333, 748), (267, 1333), (961, 640),
    ]  # fmt: skip


def test_an_epoch_takes_each_image_with_objects_once_and_pairs_orientations(tmp_path):
    root = make_coco(tmp_path, images=21)
    change(root, "train2017", lambda content: content["annotations"].__delitem__(slice(0, 2)))
    data = open_coco(str(root), "train")
    tall = data.sizes[:, 0] > data.sizes[:, 1]
    orders = [epoch_order(data, seed, epoch).tolist() for seed, epoch in ((0, 0), (0, 1), (1, 0))]
    for order in orders:
        assert sorted(order) == np.flatnonzero(data.objects_per_image).tolist()
        assert len(order) == 20
        pairs = tall[order].reshape(-1, 2)
        assert (pairs[:, 0] == pairs[:, 1]).sum() >= 9
    assert len(set(map(tuple, orders))) == 3
    assert epoch_order(data, 0, 0).tolist() == orders[0]


def _of_process(folder: str, workdir: str) -> dict[str, Any]:
    """What the tests of two processes ask of each."""
    # Workers of a spawned process would be spawned too, and import everything once more.
    with patch("harness.detection_data.loader_workers", lambda: 0):
        return {
            "positions": _positions(folder, 0, 3),
            "norm": _normalised([3, 5]),
            "detector": _train_and_detect(folder, workdir),
        }


@pytest.fixture(scope="module")
def pair(toy, tmp_path_factory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("pair")
    return run_on(2, _of_process, folder, toy, str(folder))


def _positions(folder: str, start: int, stop: int) -> list[list[list[int]]]:
    data = open_coco(folder, "train")
    found = batches(data, replace(SMALL, batch_size=4), start, stop)
    return [[[image.epoch, image.position] for image in batch] for batch in found]


def test_two_processes_share_a_batch_and_a_resumed_run_goes_on_with_the_next(toy, pair):
    alone = _positions(toy, 0, 3)
    assert [len(batch) for batch in alone] == [4, 4, 4]
    assert [batch[0][0] for batch in alone] == [0, 1, 2]  # seven images: a batch of four each
    shares = [one["positions"] for one in pair]
    assert [first + second for first, second in zip(*shares, strict=True)] == alone
    assert _positions(toy, 1, 3) == alone[1:]


def test_workers_deliver_what_the_process_itself_does(toy, monkeypatch):
    data = open_coco(toy, "train")
    alone = list(batches(data, SMALL, 0, 3))
    monkeypatch.setattr(detection_data, "loader_workers", lambda: 2)
    spread = list(batches(data, SMALL, 0, 3))
    for one, other in zip(chain(*alone), chain(*spread), strict=True):
        assert (one.epoch, one.position) == (other.epoch, other.position)
        assert all(x.equal(y) for x, y in zip(one[:4], other[:4], strict=True))


def test_an_unreadable_image_is_named_from_a_worker_too(tmp_path, monkeypatch):
    root = make_coco(tmp_path)
    data = open_coco(str(root), "train")
    data.path(0).write_bytes(b"<html>")
    for workers in (0, 1):
        monkeypatch.setattr(detection_data, "loader_workers", lambda count=workers: count)
        with pytest.raises(UserError, match=r"train2017-\d.png is not a readable image"):
            list(batches(data, SMALL, 0, 3))


def test_a_flipped_image_comes_with_flipped_boxes_and_masks(toy):
    data = open_coco(toy, "train")
    seen = {}
    for batch in batches(data, replace(SMALL, train_sides=(64,), batch_size=7), 0, 6):
        for image in batch:
            seen.setdefault(image.position, []).append(image)
            height, width = image.pixels.shape[1:]
            assert image.masks.shape == (2, height, width) and image.labels.tolist() in (
                [1, 2], [2, 1],
            )  # fmt: skip
            for box, mask, label in zip(image.boxes, image.masks, image.labels, strict=True):
                rows, columns = mask.nonzero().T
                extent = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
                assert (torch.tensor(extent) - box).abs().max() < 1.5
                # Boxes are red and discs green.
                colour = image.pixels[:, mask.bool()].float().mean(dim=1)
                assert colour.argmax() == label - 1
    for images in seen.values():
        kinds = {image.pixels.numpy().tobytes() for image in images}
        assert len(images) == 6 and len(kinds) <= 2
        for image in images:
            assert image.pixels.equal(images[0].pixels) or image.pixels.equal(
                images[0].pixels.flip(2)
            )
    assert any(len({i.boxes.numpy().tobytes() for i in images}) == 2 for images in seen.values())


def test_the_sampler_takes_at_most_its_share_of_positives_and_depends_on_the_image_alone():
    labels = [torch.tensor([1] * 20 + [0] * 30 + [-1] * 10), torch.tensor([2] * 3 + [0] * 50)]
    sampler = Sampler(16, 0.5, seed=3)
    sampler.images = [(0, 5), (2, 9)]
    positives, negatives = sampler(labels)
    assert [int(p.sum()) for p in positives] == [8, 3]
    assert [int(n.sum()) for n in negatives] == [8, 13]
    for chosen, value in ((positives, 1), (negatives, 0)):
        for mask, of_image in zip(chosen, labels, strict=True):
            assert (of_image[mask.bool()].clamp(max=1) == value).all()
    sampler.images = [(2, 9), (0, 5)]
    swapped = sampler(labels[::-1])
    assert swapped[0][1].equal(positives[0]) and swapped[1][0].equal(negatives[1])
    sampler.images = [(1, 5), (2, 9)]
    assert not sampler(labels)[0][0].equal(positives[0])


def test_the_pyramid_is_torchvisions_mask_rcnn_with_batch_norm_in_it():
    from torchvision.models.detection import maskrcnn_resnet50_fpn

    model = build_detector(trunk("resnet50"), 90, replace(SMALL, model="fpn"))
    with torch.device("meta"):
        reference = maskrcnn_resnet50_fpn(
            weights=None, weights_backbone=None, num_classes=91, norm_layer=nn.BatchNorm2d
        )
    found = {name: value.shape for name, value in model.state_dict().items()}
    wanted = {name: value.shape for name, value in reference.state_dict().items()}
    # Convolutions before a norm have no bias.
    norm = re.compile(r"backbone\.fpn\..*_blocks\.\d\.(1\.\w+|0\.bias)")
    assert {name for name in found.keys() ^ wanted.keys() if not norm.fullmatch(name)} == set()
    same = found.keys() & wanted.keys()
    assert {name: found[name] for name in same} == {name: wanted[name] for name in same}
    assert all(p.requires_grad for p in model.parameters())


def test_c4_has_15_anchors_a_cell_and_one_more_norm_after_res5():
    model = build_detector(trunk("resnet50"), 80, SMALL)
    assert model.rpn.anchor_generator.num_anchors_per_location() == [15]
    assert model.rpn.head.cls_logits.weight.shape == (15, 1024, 1, 1)
    res5, norm = model.roi_heads.box_head
    assert norm.num_features == 2048 and len(res5) == 3
    assert model.roi_heads.box_predictor.cls_score.weight.shape == (81, 2048)
    assert model.roi_heads.mask_predictor.conv5_mask.weight.shape == (2048, 256, 2, 2)
    # Each of the trunk's tensors is there, with the same values.
    kept = {value.sum().item() for value in model.state_dict().values()}
    for name, value in trunk("resnet50").trunk.state_dict().items():
        assert value.sum().item() in kept, name


def test_a_killed_and_resumed_training_equals_an_uninterrupted_one(
    toy, tmp_path, monkeypatch, capsys
):
    backbone, data = trunk(), open_coco(toy, "train")
    whole = train(backbone, data, SMALL, tmp_path / "whole").state_dict()
    monkeypatch.setattr(detection_train, "SAVE_SECONDS", 0.0)
    save = detection_train.save_training

    def die(folder: Path, step: int, state: dict) -> Path:
        path = save(folder, step, state)
        if step == 2:
            raise KilledError
        return path

    monkeypatch.setattr(detection_train, "save_training", die)
    with pytest.raises(KilledError):
        train(backbone, data, SMALL, tmp_path / "killed")
    torch.manual_seed(123)
    resumed = train(backbone, data, SMALL, tmp_path / "killed").state_dict()
    assert "going on from iteration 2" in capsys.readouterr().err
    assert [name for name in whole if not whole[name].equal(resumed[name])] == []
    assert all(value.isfinite().all() for value in whole.values())


@pytest.mark.parametrize("model", ["c4", "fpn"])
def test_every_layer_is_trained_and_the_backbone_stays_as_it_was(toy, tmp_path, model):
    backbone, data = trunk(), open_coco(toy, "train")
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    settings = replace(SMALL, model=model, iterations=1, warmup=0, precise_bn=1)
    # All anchors count, so that each level of the pyramid gets a gradient.
    settings = replace(settings, anchors_per_image=10_000)
    fresh = build_detector(backbone, 2, settings).state_dict()
    trained = train(backbone, data, settings, tmp_path).state_dict()
    kept = {name for name, value in trained.items() if value.equal(fresh[name])}
    assert {name for name in kept if not name.endswith("num_batches_tracked")} == set()
    after = backbone.state_dict()
    assert all(value.equal(after[name]) for name, value in before.items())


def test_a_diverging_training_is_a_users_mistake(toy, tmp_path):
    settings = replace(SMALL, lr=1e12, warmup=0)
    with pytest.raises(UserError, match=r"non-finite in iteration \d .*use a smaller --lr"):
        train(trunk(), open_coco(toy, "train"), settings, tmp_path)
    assert list(tmp_path.rglob("*.pt")) == []


def _train_and_detect(folder: str, workdir: str) -> tuple[dict[str, Tensor], list]:
    train_split, val = open_coco_pair(folder)
    model = train(trunk(), train_split, replace(SMALL, precise_bn=1), Path(workdir))
    fixed = build_detector(trunk(), 2, SMALL)
    found = detect(fixed, val, replace(SMALL, test_side=48))
    return model.state_dict(), [(row["image_id"], row["score"], row["bbox"]) for row in found]


def test_two_processes_keep_one_detector_and_share_the_detections(toy, pair, tmp_path):
    _, alone = _train_and_detect(toy, str(tmp_path))
    (first, found), (second, others) = (one["detector"] for one in pair)
    assert [name for name in first if not first[name].equal(second[name])] == []
    assert len(alone) > 10 and {row[0] for row in found} & {row[0] for row in others} == set()
    assert sorted(found + others) == sorted(alone)


def _normalised(counts: list[int]) -> tuple[Tensor, ...]:
    """Output, gradients and running statistics of a sync norm on this process's share of 8 rows."""
    data = torch.randn((8, 3, 2, 2), generator=torch.Generator().manual_seed(1)).double()
    slopes = torch.randn((8, 3, 2, 2), generator=torch.Generator().manual_seed(2)).double()
    mine = slice(*np.cumsum([0, *counts])[dist.rank() : dist.rank() + 2].tolist())
    norm = nn.BatchNorm2d(3).double()
    dist.sync_batchnorm(nn.Sequential(norm))
    x = data[mine].clone().requires_grad_()
    out = norm(x)
    (out * slopes[mine]).sum().backward()
    assert x.grad is not None and norm.running_var is not None and norm.running_mean is not None
    return out.detach(), x.grad, norm.running_mean, norm.running_var


def test_a_norm_over_unequal_shares_equals_one_over_all(pair):
    whole = _normalised([8])
    first, second = (one["norm"] for one in pair)
    for place in (0, 1):
        torch.testing.assert_close(torch.cat([first[place], second[place]]), whole[place])
    for place in (2, 3):
        torch.testing.assert_close(first[place], whole[place])
        assert first[place].equal(second[place])


@pytest.mark.parametrize(
    ("changes", "images", "processes", "message"),
    [
        ({"batch_size": 3}, 9, 2, "batch size 3 is not a multiple of the 2 processes; use 2"),
        ({"batch_size": 16}, 9, 2, "cannot be drawn from 9 train images .*use --batch-size 8"),
        ({"iterations": 0}, 9, 1, "iterations=0 .*leave nothing to train"),
        ({"engine": "detectron2"}, 9, 1, r"not installed.*setuptools<82.*--no-build-isolation.*"
         r"git\+https://github.com/facebookresearch/detectron2.*--engine torchvision"),
    ],
)  # fmt: skip
def test_settings_that_cannot_be_trained_are_refused(
    monkeypatch, changes, images, processes, message
):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=message):
        check_settings(replace(SMALL, **changes), images, processes)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_mixed_precision_needs_a_gpu():
    with pytest.raises(UserError, match="amp=True needs a GPU"):
        check_settings(replace(SMALL, amp=True), 9, 1)
