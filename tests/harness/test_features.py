from __future__ import annotations

import numpy as np
import pytest
import torch

from harness import features
from harness.errors import UserError
from harness.features import collect, embed, extract, frozen, gathered, open_pair
from tests.protocols.toys import TRANSFORM, PixelBackbone, toy_split


def test_features_come_in_the_order_of_the_split_as_single_precision_rows():
    data = toy_split("train", images=300)
    found = gathered(extract(PixelBackbone(), data, TRANSFORM))
    assert found.values.shape == (300, 64) and found.values.dtype == torch.float32
    assert found.indices.tolist() == list(range(300))
    assert found.labels.tolist() == data.labels.tolist()
    assert not found.values.requires_grad


def test_a_subset_keeps_its_positions_in_the_split():
    data = toy_split("train", images=40)
    chosen = np.array([3, 17, 39])
    part = extract(PixelBackbone(), data, TRANSFORM, indices=chosen)
    whole = extract(PixelBackbone(), data, TRANSFORM)
    assert part.indices.tolist() == [3, 17, 39]
    assert torch.equal(part.values, whole.values[chosen])


def test_an_image_has_the_same_feature_to_the_last_bit_in_a_short_batch():
    generator = torch.Generator().manual_seed(0)
    images = torch.randn((features.BATCH_SIZE, 3, 8, 8), generator=generator)
    backbone = PixelBackbone()
    with frozen(backbone):
        assert torch.equal(embed(backbone, images)[:3], embed(backbone, images[:3]))


def test_extraction_runs_in_eval_mode_and_gives_the_mode_back():
    backbone = PixelBackbone().train()
    with frozen(backbone):
        assert not backbone.training and not torch.is_grad_enabled()
    assert backbone.training and torch.is_grad_enabled()


def test_predictions_are_written_with_the_label_and_position_of_each_image(tmp_path):
    data = toy_split("val", images=20)
    found = extract(PixelBackbone(), data, TRANSFORM)
    collect(found, {"knn_1": found.labels + 1}, tmp_path)
    with np.load(tmp_path / "predictions.npz") as written:
        assert sorted(written) == ["indices", "knn_1", "labels"]
        assert written["indices"].tolist() == list(range(20))
        assert (written["knn_1"] == data.labels + 1).all()
    assert [path.name for path in tmp_path.iterdir()] == ["predictions.npz"]


def test_splits_with_different_classes_are_refused(monkeypatch):
    def open_split(dataset: str, split: str):
        data = toy_split(split)
        if split == "val":
            data.classes.append("zebra")
        return data

    monkeypatch.setattr(features, "open_split", open_split)
    with pytest.raises(UserError, match="6 classes in train and 7 in val"):
        open_pair("toy")
