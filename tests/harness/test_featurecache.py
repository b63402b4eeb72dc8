from __future__ import annotations

import numpy as np
import pytest
import torch

from harness import featurecache, features
from harness.errors import UserError
from harness.featurecache import FeatureCache
from harness.features import extract
from harness.recipe import Reading
from harness.views import RAW_PIXELS
from tests.gloo import run_on
from tests.protocols.toys import TRANSFORM, PixelBackbone, toy_split


class Counting(PixelBackbone):
    calls = 0

    def forward(self, images, reading=Reading()):  # noqa: B008
        self.calls += 1
        return super().forward(images, reading)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("FEATURE_CACHE_GB", "1")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(features, "PIECE", 200)
    return tmp_path / "ssl-reproduce" / "features"


DATA = toy_split("train", images=500)  # three pieces: 200, 200, 100 images, five batches


def test_features_are_computed_once(cache):
    backbone = Counting()
    first = extract(backbone, DATA, TRANSFORM)
    assert backbone.calls == 5
    again = extract(backbone, DATA, TRANSFORM)
    assert backbone.calls == 5
    assert torch.equal(first.values, again.values) and torch.equal(first.labels, again.labels)


def test_an_interrupted_extraction_goes_on_after_the_pieces_that_are_there(cache):
    whole = extract(Counting(), DATA, TRANSFORM).values
    (entry,) = cache.iterdir()
    (entry / "00002-0of1.npy").unlink()
    (entry / "00001-0of1.npy").write_bytes(b"damaged")
    backbone = Counting()
    assert torch.equal(extract(backbone, DATA, TRANSFORM).values, whole)
    assert backbone.calls == 3


def test_other_weights_pixels_transforms_images_or_readings_are_other_features(cache):
    normalised, other = PixelBackbone(), PixelBackbone()
    normalised.pixels = RAW_PIXELS
    with torch.no_grad():
        other.trunk.weight[0, 0] += 1
    extract(PixelBackbone(), DATA, TRANSFORM)
    extract(other, DATA, TRANSFORM)
    extract(normalised, DATA, TRANSFORM)
    extract(PixelBackbone(), DATA, TRANSFORM, Reading(last_blocks=4))
    extract(PixelBackbone(), DATA, TRANSFORM, indices=np.arange(500))
    extract(PixelBackbone(), DATA, TRANSFORM, indices=np.arange(499))
    extract(PixelBackbone(), toy_split("val", images=500), TRANSFORM)
    assert len(list(cache.iterdir())) == 6


def _shares() -> list:
    features.PIECE = 200
    found = extract(PixelBackbone(), DATA, TRANSFORM)
    return [found.values, found.indices]


def test_what_two_processes_left_serves_one(cache, tmp_path):
    shares = run_on(2, _shares, tmp_path)
    backbone = Counting()
    whole = extract(backbone, DATA, TRANSFORM)
    assert backbone.calls == 0
    for values, indices in shares:
        assert torch.equal(whole.values[indices], values)


def test_the_longest_unused_features_go_first_beyond_the_limit(cache, monkeypatch):
    size = 500 * 64 * 4
    monkeypatch.setenv("FEATURE_CACHE_GB", str(2.5 * size / 1e9))
    entries = []
    for seed in range(3):
        backbone = PixelBackbone()
        with torch.no_grad():
            backbone.trunk.weight += seed
        extract(backbone, DATA, TRANSFORM)
        entries.append(set(cache.iterdir()))
    assert len(entries[2]) == 2 and not entries[0] & entries[2]
    assert featurecache.clean() > 2 * size
    assert list(cache.iterdir()) == []


def test_a_limit_of_zero_keeps_nothing_and_a_small_one_not_what_does_not_fit(cache, monkeypatch):
    for limit in ("0", "0.00006"):
        monkeypatch.setenv("FEATURE_CACHE_GB", limit)
        extract(PixelBackbone(), DATA, TRANSFORM)
        assert sum(path.stat().st_size for path in cache.rglob("*.npy")) <= float(limit) * 1e9


def test_a_limit_that_is_no_number_is_refused(monkeypatch):
    monkeypatch.setenv("FEATURE_CACHE_GB", "much")
    with pytest.raises(UserError, match="FEATURE_CACHE_GB=much is not a number of gigabytes"):
        FeatureCache("key").load(0, slice(0, None))
