"""The doctor's check of folders, records, checkpoints and earlier failures."""

import hashlib
from dataclasses import replace
from pathlib import Path

import pytest

from slurm import check_files
from slurm.ledger import note_failure
from tests.results import sample
from tests.slurm.doctor_toys import subject, whole


def damage(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[60] ^= 1
    path.write_bytes(content)


def test_a_folder_must_take_files_and_have_room(tmp_path):
    assert check_files.check_folder("runs", tmp_path / "new" / "runs", 0.001).ok
    assert not (tmp_path / "new").exists()
    full = check_files.check_folder("runs", tmp_path, 1e9)
    assert not full.ok
    assert "GB free and this plan takes up to 1,000,000,000.0" in full.found


def test_a_folder_that_refuses_files_is_found(tmp_path):
    (tmp_path / "file").touch()
    check = check_files.check_folder("runs", tmp_path / "file", 0.0)
    assert (check.ok, check.mend) == (False, "change that, or give another folder with --runs")


def test_the_paper_scale_needs_gigabytes_and_the_demo_does_not(tmp_path):
    assert check_files.needed_gb(subject(tmp_path)) == pytest.approx(3 * 4.3 + 5 * 0.05)
    assert check_files.needed_gb(subject(tmp_path, scale="demo")) < 1


def test_a_feature_cache_of_no_size_is_found(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert check_files._check_cache().ok
    monkeypatch.setenv("FEATURE_CACHE_GB", "much")
    check = check_files._check_cache()
    assert not check.ok
    assert check.mend.startswith("set it to 50")


def test_damaged_and_stale_records_are_told_apart(tmp_path):
    sample.record("lin1", 1.0).save(tmp_path)
    (tmp_path / "broken.json").write_text("{")
    records, damaged = check_files.read_records(tmp_path)
    assert (list(records), [path.name for path in damaged]) == (["lin1"], ["broken.json"])
    old = sample.record("old", 1.0, slot="slot-knn1")
    asked = subject(tmp_path, records=records | {"old": old})
    first, second = check_files.check_records(asked, damaged)
    assert not first.ok
    assert "broken.json" in first.found
    assert second.found.startswith("1 of 5; 1 are of an older version")
    assert len(list(check_files.check_records(asked, []))) == 1


def test_checkpoints_are_compared_with_their_checksums(tmp_path):
    asked = subject(tmp_path, trained=("m-1", "m-2"))
    good = list(check_files.check_checkpoints(asked))
    assert [check.found for check in good] == ["2, whole", "none"]
    damage(tmp_path / "m-2" / "backbone.pt")
    check = next(check_files.check_checkpoints(asked))
    assert not check.ok
    assert "m-2/backbone.pt" in check.found


def test_a_trunk_that_is_not_the_recorded_one_is_found(tmp_path):
    whole(tmp_path / "m-1" / "backbone.pt")
    sha256 = hashlib.sha256((tmp_path / "m-1" / "backbone.pt").read_bytes()).hexdigest()
    for wanted, ok in ((sha256, True), ("0" * 64, False)):
        record = replace(sample.record("lin1", 1.0), checkpoint={"sha256": wanted})
        asked = subject(tmp_path, records={"lin1": record}, trained=("m-1",))
        assert all(check.ok for check in check_files.check_checkpoints(asked)) is ok


def test_an_unfinished_run_needs_one_whole_checkpoint(tmp_path):
    folder = tmp_path / "m-1"
    folder.mkdir()
    digest = hashlib.sha256(b"state").hexdigest()[:16]
    (folder / f"step-000000010-{digest}.pt").write_bytes(b"state")
    (folder / f"step-000000020-{digest}.pt").write_bytes(b"damaged")
    asked = subject(tmp_path)
    assert list(check_files.check_checkpoints(asked))[1].found == "1, whole"
    (folder / f"step-000000010-{digest}.pt").write_bytes(b"damaged too")
    check = list(check_files.check_checkpoints(asked))[1]
    assert not check.ok
    assert check.found.startswith("2 damaged")


def test_earlier_failures_are_told_where_the_plan_has_the_job(tmp_path):
    note_failure(tmp_path, "knn1", "ran out of memory")
    note_failure(tmp_path, "another table's", "diverged")
    (check,) = check_files.check_failures(subject(tmp_path))
    assert check.ok
    assert check.found.endswith("among them knn1: ran out of memory")
    assert list(check_files.check_failures(subject(tmp_path / "new"))) == []
