from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.neighbors import NearestNeighbors

from harness.backbone import build_backbone
from harness.errors import UserError
from harness.features import extract, open_pair
from harness.recipe import BackboneSpec, fingerprint
from harness.scale import SCALES
from protocols import knn
from tests.protocols.toys import KNN_TOY, PixelBackbone, toy_data


def test_a_solvable_toy_gives_100_percent(tmp_path):
    with toy_data():
        metrics = KNN_TOY.run(PixelBackbone(), tmp_path)
    assert {name: found.value for name, found in metrics.items()} == {
        "knn_1": 100.0,
        "knn_5": 100.0,
        "knn_20": 100.0,
    }


def test_shuffled_labels_give_chance(tmp_path):
    with toy_data(shuffled=1.0, images=1200):
        metrics = KNN_TOY.run(PixelBackbone(), tmp_path)
    # Six classes: 16.7 % with a standard deviation of 1.1; five of them either side.
    assert all(11.0 < found.value < 22.5 for found in metrics.values()), metrics


def test_metrics_are_named_after_the_k_asked_for():
    assert [m.name for m in replace(knn.DINO, k=(20, 200)).metrics] == ["knn_20", "knn_200"]
    assert [m.name for m in knn.DINO.metrics] == ["knn_10", "knn_20", "knn_100", "knn_200"]


def test_accuracies_are_those_of_the_predictions_written(tmp_path):
    with toy_data(noise=190):
        metrics = KNN_TOY.run(PixelBackbone(), tmp_path)
    with np.load(tmp_path / "predictions.npz") as found:
        for name, (value, _, _) in metrics.items():
            assert value == 100 * (found[name] == found["labels"]).mean()
    assert 20 < metrics["knn_5"].value < 100


def test_the_variants_differ_in_interpolation_alone_and_in_fingerprint():
    assert knn.DINO.transform.interpolation == "bicubic"
    bilinear = replace(knn.DINO.transform, interpolation="bilinear")
    assert replace(knn.DINO, transform=bilinear) == knn.IMSVD
    assert (knn.DINO.transform.resize, knn.DINO.transform.size) == (256, 224)
    assert fingerprint(knn.DINO) != fingerprint(knn.IMSVD)


def test_another_scale_changes_data_set_and_image_size_alone():
    demo = knn.IMSVD.scaled(SCALES["demo"])
    side = SCALES["demo"].image_size
    assert (demo.dataset, demo.transform.resize, demo.transform.size) == ("mnist5k", side, side)
    assert (demo.k, demo.temperature) == (knn.IMSVD.k, 0.07)
    assert demo.transform.interpolation == "bilinear"


def test_more_neighbours_than_train_images_are_refused(tmp_path):
    with toy_data(), pytest.raises(UserError, match="k=331 is more than the bank's 330 images"):
        replace(KNN_TOY, k=(331,)).run(PixelBackbone(), tmp_path)


def test_predictions_on_real_features_are_those_of_scikit_learns_neighbours(tmp_path):
    torch.manual_seed(0)
    backbone = build_backbone(BackboneSpec(name="resnet_tiny"), 32).eval()
    protocol = replace(knn.DINO.scaled(SCALES["demo"]), k=(20, 200))
    protocol.run(backbone, tmp_path)
    train, val = (extract(backbone, x, protocol.transform) for x in open_pair("mnist5k"))
    search = NearestNeighbors(n_neighbors=200, algorithm="brute", metric="cosine")
    search.fit(train.values.double().numpy())
    distances, places = search.kneighbors(val.values.double().numpy())
    weights = np.exp((1 - distances) / 0.07)
    votes = np.eye(10)[train.labels.numpy()[places]] * weights[:, :, None]
    with np.load(tmp_path / "predictions.npz") as found:
        for k in protocol.k:
            counted = votes[:, :k].sum(axis=1)
            first, second = np.sort(counted, axis=1)[:, :-3:-1].T
            clear = first > second * (1 + 1e-4)  # single precision may order equals differently
            assert clear.mean() > 0.99
            assert (found[f"knn_{k}"] == counted.argmax(axis=1))[clear].all()
