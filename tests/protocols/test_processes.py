"""Both protocols on one and on two gloo processes."""

from __future__ import annotations

import numpy as np

from tests.gloo import run_on
from tests.protocols.toys import run_both


def test_one_and_two_processes_agree_on_every_sample(tmp_path):
    alone = run_both(tmp_path / "alone")
    pair = run_on(2, run_both, tmp_path, tmp_path / "pair")
    assert pair == [alone, alone]
    for protocol in ("knn", "linear"):
        with (
            np.load(tmp_path / "alone" / protocol / "predictions.npz") as one,
            np.load(tmp_path / "pair" / protocol / "predictions.npz") as two,
        ):
            # 331 images don't split evenly; each is there once.
            assert one["indices"].tolist() == list(range(331))
            assert sorted(one) == sorted(two)
            for name in one:
                assert np.array_equal(one[name], two[name]), (protocol, name)
    assert 20 < alone["knn_20"][0] < 95 and 20 < alone["linear_top1"][0] < 95
