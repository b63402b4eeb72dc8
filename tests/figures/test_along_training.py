from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from figures.along_training import AlongTraining, Line, Point, describe, draw, lines, make
from figures.drawing import NotRunError, save
from harness.scale import SCALES
from results.catalog import all_tables
from results.cells import Findings, cell_results
from results.resolve import resolve
from tests.results import sample

TABLE = all_tables()["svib/beta"]


def recorded(folder: Path, *, rows: int = 2) -> AlongTraining:
    """Records of the first schedules at the demo scale: row r has 50 + 10 r + percent / 100."""
    args = AlongTraining(scale="demo", runs=folder / "runs", records=folder / "records")
    found = resolve(TABLE, SCALES["demo"], seeds=None, fill=False, cache=args.runs / ".plans")
    for jobs in found.cells:
        if jobs.cell.row < rows:
            (key,) = jobs.evaluations
            done = found.evaluations[key].after
            record = sample.record(key, 50.0 + 10 * jobs.cell.row + done / 100)
            record.save(args.records)
    return args


def test_every_schedule_is_a_line_over_five_moments_of_the_epochs(tmp_path):
    drawn = make(recorded(tmp_path))
    (axes,) = drawn.figure.axes
    first, second = (c for c in axes.containers if len(c.lines[0].get_xdata()))
    assert list(first.lines[0].get_xdata()) == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert list(first.lines[0].get_ydata()) == pytest.approx([50.2, 50.4, 50.6, 50.8, 51.0])
    assert list(second.lines[0].get_ydata()) == pytest.approx([60.2, 60.4, 60.6, 60.8, 61.0])
    assert [first.get_label(), second.get_label()] == ["β = 0.5", "β = 0.1"]
    rows = [line.split()[-5:] for line in drawn.text.splitlines()[2:]]
    assert rows[0] == ["50.2", "50.4", "50.6", "50.8", "51.0"]
    assert drawn.text.count("not run") == 5
    assert drawn.scale == "demo"
    png, svg = save(drawn, tmp_path)
    assert png.name == "along_training.demo.png"
    assert "Scale: DEMO" in svg.read_text()


def test_the_papers_numbers_are_beside_ours_at_its_scale_alone(tmp_path):
    args = recorded(tmp_path)
    found = resolve(TABLE, SCALES["demo"], seeds=None, fill=False, cache=args.runs / ".plans")
    nothing = Findings(records={})
    for scale, printed in (("paper", [48.5, None, None, None, 64.2]), ("demo", [None] * 5)):
        results = cell_results(TABLE, SCALES[scale], found, nothing)
        assert [point.paper for point in lines(TABLE, SCALES[scale], results)[0].points] == printed


def test_divergence_is_told_and_leaves_a_gap():
    good = Point(done=20, ours=40.0, low=39.0, high=42.0, paper=48.5)
    lost = Point(done=40, ours=None, low=0.0, high=0.0, paper=None, diverged=True)
    line = Line("β = 0.1", (good, lost))
    assert describe([line]).split()[-2:] == ["40.0", "divergence"]
    figure = draw([line], 100)
    labels = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    assert labels == ["β = 0.1, the paper's", "β = 0.1 (diverged at 40 %)"]
    assert list(figure.axes[0].containers[0].lines[0].get_xdata()) == [20.0]


def test_without_records_it_says_what_to_run(tmp_path):
    args = recorded(tmp_path, rows=0)
    with pytest.raises(NotRunError, match=r"run python reproduce.py svib/beta --scale demo first"):
        make(replace(args, records=tmp_path / "none"))
