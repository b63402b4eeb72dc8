"""The doctor's command: its lines, JSON and exit status."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

import reproduce
from harness.errors import UserError
from slurm.checks import refused

ROOT = Path(__file__).parents[2]


@pytest.fixture
def doctor(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))

    def run(*arguments):
        folders = [f"--{name}={tmp_path / name}" for name in ("runs", "records")]
        status = reproduce.main(["doctor", *arguments, "--cluster", "local", *folders])
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return run


def test_the_demo_of_a_table_needs_nothing(doctor, tmp_path):
    status, out, _ = doctor("svib/table2", "--scale", "demo")
    lines = out.splitlines()
    assert status == 0, out
    assert lines[-1].endswith("checks of 1 tables at scale demo: all is well.")
    assert all(line.startswith("ok ") for line in lines[:-1])
    assert not (tmp_path / "runs").exists()


def test_missing_data_fails_and_json_says_the_same(doctor, tmp_path, monkeypatch):
    monkeypatch.delenv("DATA_ROOT", raising=False)
    monkeypatch.setenv("PATH", "/nowhere")
    status, out, _ = doctor("svib/table1", "--scale", "paper", "--json")
    answer = json.loads(out)
    assert (status, answer["ok"], answer["tables"]) == (1, False, ["svib/table1"])
    failing = {check["name"]: check for check in answer["checks"] if not check["ok"]}
    assert {"data set imagenet", "GPUs"} <= failing.keys()
    assert failing["data set imagenet"]["mend"] == "export DATA_ROOT=<folder of imagenet/>"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("tabel1", "--scale", "demo"), "unknown table 'tabel1'"),
        (("table1", "--scale", "dmo"), "unknown scale 'dmo'"),
        (("table1", "--scale", "demo", "--seeds", "0"), "--seeds 0 must be at least 1"),
        (("table1", "--scale", "demo", "--set", "slurm.qos=a"), "has no effect on cluster local"),
    ],
)
def test_a_mistake_is_one_sentence_and_status_2(doctor, arguments, message):
    status, _, error = doctor(*arguments)
    assert status == 2
    assert message in error
    assert len(error.splitlines()) == 1


def test_a_refusal_is_split_into_what_was_found_and_what_to_do():
    check = refused("x", UserError("a is wrong; b is too; do c."))
    assert (check.found, check.mend) == ("a is wrong; b is too", "do c")
    assert refused("x", UserError("all is lost.")).found == "all is lost"


def test_looking_for_data_needs_no_torch():
    code = "import sys, slurm.doctor, harness.inventory; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, cwd=ROOT).returncode == 0
