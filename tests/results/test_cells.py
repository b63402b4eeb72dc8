import pytest

from harness.scale import SCALES
from results.cells import Findings, cell_results
from tests.results import sample


def results(*records, scale="paper", failures=None):
    findings = Findings(records={r.key: r for r in records}, failures=failures or {})
    found = cell_results(sample.TABLE, SCALES[scale], sample.resolved(), findings)
    return {(r.cell.row, r.cell.column): r for r in found}


def test_the_mean_over_seeds_within_half_a_point_is_a_match():
    cell = results(sample.record("lin1", 70.1), sample.record("lin1b", 70.5))[1, 0]
    assert cell.mean == pytest.approx(70.3)
    assert cell.sd == pytest.approx(0.08**0.5)
    assert cell.delta == pytest.approx(0.3)
    assert (cell.wanted, cell.status) == (2, "match")


def test_half_a_point_more_than_the_seeds_spread_is_a_gap():
    assert results(sample.record("knn1", 60.6))[1, 1].status == "gap"
    assert results(sample.record("knn1", 60.4))[1, 1].status == "match"


def test_one_of_two_seeds_counts_alone():
    cell = results(sample.record("lin1", 70.1))[1, 0]
    assert (cell.mean, cell.sd, len(cell.values)) == (70.1, None, 1)


def test_every_seed_keeps_its_number_and_its_record():
    cell = results(sample.record("lin1b", 70.5), sample.record("lin1", 70.1))[1, 0]
    assert cell.runs == (("lin1", 0, 70.1, ""), ("lin1b", 1, 70.5, ""))
    assert (cell.records, cell.values, cell.n) == (("lin1", "lin1b"), (70.1, 70.5), 2)


def test_another_scale_never_matches_and_has_no_difference():
    cell = results(sample.record("knn1", 60.0), scale="demo")[1, 1]
    assert (cell.status, cell.delta) == ("other scale", None)


def test_a_number_measured_by_another_protocol_is_marked():
    cell = results(sample.record("knn2", 69.4))[2, 1]
    assert (cell.status, cell.reason) == ("different protocol", "the paper's number: k = 200")


def test_a_record_of_an_older_version_is_shown_as_stale():
    cell = results(sample.record("older", 60.0, slot="slot-knn1"))[1, 1]
    assert (cell.status, cell.mean, cell.records) == ("stale", 60.0, ("older",))


def test_a_failed_pretraining_is_the_reason_of_all_its_cells():
    found = results(failures={"m-2": "loss is nan"})
    assert found[2, 0].reason == found[2, 1].reason == "pretraining failed: loss is nan"
    assert found[1, 1].reason == "no record yet"


def test_a_row_without_a_recipe_says_why():
    assert results()[0, 0].reason == "no file yet"
