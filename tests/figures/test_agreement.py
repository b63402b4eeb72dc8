from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import pytest

from figures import agreement
from figures.agreement import Agreement, Bought, Measured, Pair, bought, describe, draw, make, pairs
from figures.drawing import Drawn, save
from harness.errors import UserError
from harness.record import Cost
from harness.scale import SCALES
from results.cells import Findings, cell_results
from tests.results import sample


def findings(*, cost: bool = True) -> Findings:
    records = [sample.record(key, value) for key, value in (("lin1", 70.2), ("lin1b", 70.8))]
    records += [sample.record("knn1", 57.0), sample.record("knn2", 69.0)]
    if cost:
        hours = Cost(seconds=7200.0, processes=8, gpus=8, gpu_hours=16.0)
        longer = replace(hours, seconds=14400.0)
        records[:2] = [
            replace(records[0], pretrain_cost=hours),
            replace(records[1], pretrain_cost=longer),
        ]
    return Findings(records={record.key: record for record in records})


def measured(scale: str = "paper", **options: bool) -> list[Measured]:
    found = findings(**options)
    resolved = sample.resolved()
    results = cell_results(sample.TABLE, SCALES[scale], resolved, found)
    return [Measured(sample.TABLE, resolved, results)]


def test_every_cell_that_both_have_a_number_for_is_a_pair_with_its_spread():
    linear, knn, other = pairs(measured())
    assert (linear.table, linear.name) == ("paper/table9", "First, 100 | Linear")
    assert (linear.paper, linear.ours) == (70.0, pytest.approx(70.5))
    sd = 0.6 / 2**0.5
    assert (linear.low, linear.high) == pytest.approx((70.5 - sd, 70.5 + sd))
    assert (knn.paper, knn.ours, knn.low, knn.high) == pytest.approx((60.0, 57.0, 56.8, 57.3))
    # k = 200 in the paper
    assert (linear.alike, knn.alike, other.alike) == (True, True, False)


def test_at_another_scale_nothing_is_measured_alike_and_the_title_says_so(tmp_path):
    points = pairs(measured("demo"))
    assert [point.alike for point in points] == [False] * 3
    drawn = Drawn(draw(points, [], "linear_top1"), "agreement", "ours", "points", scale="demo")
    save(drawn, tmp_path)
    told = "Scale: DEMO (mnist5k, 32 px), not the papers' experiments."
    assert drawn.figure.get_suptitle() == f"ours\n{told}"
    save(drawn._replace(scale="paper"), tmp_path)
    assert drawn.figure.get_suptitle() == "ours"


def test_the_gap_of_a_table_is_that_of_its_comparable_cells():
    row = describe(pairs(measured())).splitlines()[-1].split()
    assert row == ["paper/table9", "3", "2", "1.75", "3.00"]
    row = describe(pairs(measured("demo"))).splitlines()[-1].split()
    assert row == ["paper/table9", "3", "0"]


def test_the_cost_of_a_cell_is_that_of_all_processes_mean_over_its_seeds():
    (point,) = bought(measured(), findings(), "linear_top1")
    assert point[:2] == ("paper/table9", "First, 100")
    assert (point.hours, point.accuracy) == pytest.approx((24.0, 70.5))
    assert point.on_gpus
    assert bought(measured(), findings(), "knn_20") == []


def test_equal_numbers_lie_on_the_line():
    point = Pair("t", "n", 70.0, 70.0, 69.0, 71.0, True)
    figure = draw([point], [Bought("t", "n", 3.0, 70.0, False)], "linear_top1")
    left, right = figure.axes
    assert list(left.lines[0].get_xdata()) == list(left.lines[0].get_ydata()) == [68.0, 72.0]
    assert left.get_xlim() == left.get_ylim() == (68.0, 72.0)
    assert (right.get_xlabel(), right.get_xscale()) == ("process-hours", "log")


def test_both_files_are_written(tmp_path):
    points = pairs(measured())
    costs = bought(measured(), findings(), "linear_top1")
    figure = draw(points, costs, "linear_top1")
    png, svg = save(Drawn(figure, "agreement", "ours", "points", scale="paper"), tmp_path)
    assert png.name == "agreement.paper.png"
    assert "GPU-hours" in svg.read_text()


def test_without_records_it_says_what_to_run(tmp_path, monkeypatch):
    monkeypatch.setattr(agreement, "find_tables", lambda names: [sample.TABLE])
    monkeypatch.setattr(agreement, "resolve", lambda *a, **k: sample.resolved())
    with pytest.raises(UserError, match=r"run python reproduce.py table9 --scale demo first"):
        make(Agreement(tables=("table9",), scale="demo", records=tmp_path, runs=tmp_path))


def test_it_needs_no_torch():
    code = (
        "import sys, figures.agreement, figures.along_training, figures.catalog,"
        " figures.training_curves; sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
