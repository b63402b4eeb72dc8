"""Outcomes other than an accuracy: divergence, hours and gigabytes."""

import csv
import io
from dataclasses import replace
from pathlib import Path

import pytest

from harness.record import Cost, Record
from harness.scale import SCALES
from results import measures
from results.catalog import all_tables
from results.cells import CellResult, Findings, cell_results
from results.render import Drawing, render_csv, render_markdown, run_texts
from results.resolve import CellJobs, Resolved
from results.table import Cell, Hardware, Table
from results.why import trace
from tests.results import sample

GOLDEN = Path(__file__).parent.parent / "golden"
TABLE = all_tables()["svib/table4"]
IMAGENET = {"val": {"checksum": "c", "images": 50_000, "classes": 1000}}


def resolved(table: Table, metric: str, unit: str = "%", seeds: int = 1) -> Resolved:
    """Made-up jobs: the evaluations of row n are called n-0, n-1, …"""
    rows = range(len(table.rows))
    keys = {row: tuple(f"{row}-{seed}" for seed in range(seeds)) for row in rows}
    cells = tuple(
        CellJobs(cell=Cell(row=row, column=0), metric=metric, evaluations=keys[row], unit=unit)
        for row in rows
    )
    evaluations = [
        sample.evaluation(key, f"p-{key}", seed)
        for names in keys.values()
        for seed, key in enumerate(names)
    ]
    return Resolved(
        table=table.name,
        scale="paper",
        cells=cells,
        pretrainings={e.pretraining: sample.pretraining(e.pretraining, 100) for e in evaluations},
        evaluations={e.key: e for e in evaluations},
    )


def knn(key: str, value: float) -> Record:
    return replace(sample.record(key, value), metrics={"knn_20": value}, data=IMAGENET)


def diverged(key: str) -> Record:
    end = "the loss term KL is nan at step 12 of svib-1"
    return replace(sample.record(key, 0.0), metrics={}, intervals={}, diverged=end)


RECORDS = [
    knn("0-0", 66.1),
    diverged("1-0"),
    diverged("2-0"),
    knn("3-0", 0.1),
    knn("4-0", 65.0),
]


def results(*records: Record, scale: str = "paper", seeds: int = 1) -> list[CellResult]:
    findings = Findings(records={r.key: r for r in records})
    return cell_results(TABLE, SCALES[scale], resolved(TABLE, "knn_20", seeds=seeds), findings)


def drawing(folder: Path, scale: str = "paper") -> Drawing:
    return Drawing(
        table=TABLE,
        scale=SCALES[scale],
        resolved=resolved(TABLE, "knn_20"),
        results=results(*RECORDS, scale=scale),
        records=folder / "records",
        folder=folder / "tables",
    )


def test_divergence_matches_divergence_and_nothing_else():
    one, two, three, four, five, six = results(*RECORDS)
    assert [c.status for c in (one, two, three, four, five, six)] == [
        *("match", "match", "gap", "gap", "gap", "not run")
    ]
    assert (two.is_divergence, two.mean, two.delta) == (True, None, None)
    assert two.reason == "the loss term KL is nan at step 12 of svib-1"
    assert results(knn("1-0", 60.0))[1].status == "gap"
    assert results(knn("1-0", 60.0))[1].delta is None


def test_features_whose_neighbours_vote_at_chance_have_collapsed():
    assert results(knn("1-0", 0.2))[1].status == "match"
    assert results(knn("1-0", 0.21))[1].status == "gap"
    assert results(knn("1-0", 0.2))[1].reason == (
        "the features collapsed: 0.20 % where chance is 0.1 %"
    )


def test_where_the_paper_reports_no_divergence_chance_is_a_number():
    findings = Findings(records={"knn1": replace(sample.record("knn1", 0.1), data=IMAGENET)})
    found = cell_results(sample.TABLE, SCALES["paper"], sample.resolved(), findings)
    cell = next(c for c in found if (c.cell.row, c.cell.column) == (1, 1))
    assert (cell.mean, cell.diverged, cell.status) == (0.1, 0, "gap")


def test_a_loss_that_is_not_finite_is_divergence_in_any_table():
    findings = Findings(records={"knn1": diverged("knn1")})
    found = cell_results(sample.TABLE, SCALES["paper"], sample.resolved(), findings)
    cell = next(c for c in found if (c.cell.row, c.cell.column) == (1, 1))
    assert (cell.is_divergence, cell.status) == (True, "gap")


def test_of_several_seeds_some_may_diverge():
    cell = results(knn("1-0", 61.0), diverged("1-1"), seeds=2)[1]
    assert (cell.values, cell.diverged, cell.status) == ((61.0,), 1, "gap")
    assert run_texts(cell) == ["seed 0: 61.0", "seed 1: divergence"]
    assert results(diverged("1-0"), diverged("1-1"), seeds=2)[1].status == "match"
    mixed = results(knn("0-0", 66.3), diverged("0-1"), seeds=2)[0]
    assert mixed.status == "gap"


def test_the_markdown_of_svib_table_4_is_the_golden_file(tmp_path):
    expected = (GOLDEN / "svib_table4.paper.md").read_text()
    assert render_markdown(drawing(tmp_path)) == expected


def test_the_csv_says_divergence_on_either_side(tmp_path):
    rows = list(csv.DictReader(io.StringIO(render_csv(drawing(tmp_path)))))
    pairs = [(row["ours"], row["paper"], row["status"]) for row in rows]
    assert pairs == [
        ("66.1", "66.3", "match"),
        ("divergence", "divergence", "match"),
        ("divergence", "61.3", "gap"),
        ("divergence", "64.2", "gap"),
        ("65.0", "66.8", "gap"),
        ("", "67.3", "not run"),
    ]


def test_another_scale_never_matches_a_divergence(tmp_path):
    found = results(*RECORDS, scale="demo")
    assert {cell.status for cell in found} == {"other scale", "not run"}
    assert "| match" not in render_markdown(drawing(tmp_path, "demo"))


def test_why_tells_how_a_run_diverged(tmp_path):
    for record in RECORDS:
        record.save(tmp_path)
    text = trace(TABLE, results(*RECORDS)[1], tmp_path)
    assert "the paper's number: divergence" in text
    assert "ours: divergence in 1 of 1 seeds" in text
    assert "1-0.json: the loss term KL is nan at step 12 of svib-1" in text


def test_why_tells_how_far_seeds_are_apart(tmp_path):
    records = [knn("0-0", 66.0), knn("0-1", 67.0)]
    for record in records:
        record.save(tmp_path)
    text = trace(TABLE, results(*records, seeds=2)[0], tmp_path)
    assert "ours: mean 66.50 ± 0.71 over 2 of 2 seeds" in text


def test_a_record_from_before_divergence_was_one_still_loads(tmp_path):
    path = diverged("x").save(tmp_path)
    assert Record.load(path).diverged.startswith("the loss term KL")
    path.write_text(path.read_text().replace('"diverged"', '"unknown"'))
    with pytest.raises(ValueError, match="is not a record"):
        Record.load(path)


COST = Cost(
    seconds=8.75 * 3600,
    processes=32,
    gpus=32,
    hardware="Tesla V100-SXM2-32GB",
    peak_memory_bytes=10_500_000_000,
)


def timed(cost: Cost | None, epochs: int = 100, hardware: Hardware | None = None) -> CellResult:
    """The cell of hours of a table whose paper says 8.5h on 32 V100."""
    table = replace(all_tables()["imsvd/table4"], hardware=hardware or Hardware(32, "V100"))
    table = replace(table, rows=table.rows[-1:])
    record = replace(sample.record("0-0", 70.0), pretrain_cost=cost, recipe={"epochs": epochs})
    jobs = resolved(table, measures.HOURS.name, "h")
    findings = Findings(records={"0-0": record})
    return cell_results(table, SCALES["paper"], jobs, findings)[0]


def test_hours_are_those_of_100_epochs_and_match_within_half_an_hour():
    assert (timed(COST).mean, timed(COST).status) == (8.75, "match")
    assert timed(replace(COST, seconds=9.1 * 3600)).status == "gap"
    assert timed(replace(COST, seconds=87.5 * 3600), epochs=1000).mean == 8.75


def test_hours_on_other_hardware_are_not_compared():
    cell = timed(replace(COST, hardware="NVIDIA H100", gpus=8, processes=8))
    assert (cell.status, cell.mean) == ("different protocol", 8.75)
    assert cell.reason == "the paper's number: on 32 × V100; here on 8 × NVIDIA H100"


def test_a_record_that_tells_no_cost_is_no_number():
    cell = timed(None)
    assert (cell.status, cell.mean) == ("not run", None)
    assert cell.reason == "the records don't tell what the pretraining took"


def test_a_record_without_the_metric_says_so():
    table = replace(all_tables()["svib/table3"], rows=all_tables()["svib/table3"].rows[-1:])
    records = {"0-0": sample.record("0-0", 1.0)}
    jobs = resolved(table, "bbox_apl", "AP")
    cell = cell_results(table, SCALES["paper"], jobs, Findings(records=records))[0]
    assert (cell.status, cell.mean) == ("not run", None)
    assert cell.reason == "the records have no bbox_apl"


def test_memory_is_in_gigabytes_and_0_means_unknown():
    record = replace(sample.record("a", 1.0), pretrain_cost=COST)
    assert measures.value_of(record, measures.MEMORY.name) == pytest.approx(10.5)
    unknown = replace(record, pretrain_cost=replace(COST, peak_memory_bytes=0))
    assert measures.value_of(unknown, measures.MEMORY.name) is None
