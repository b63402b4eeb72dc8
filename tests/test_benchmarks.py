"""Every benchmark runs and measures what it claims; how fast it found anything isn't tested."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import everything
from harness.errors import UserError

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
MEASURED = {
    "imsvd_loss": {"time", "memory", "error"},
    "gram_losses": {"time", "memory", "error"},
    "multicrop_losses": {"time", "memory", "error"},
    "knn": {"time", "memory", "error"},
    "augmentation": {"time"},
    "voc07_svm": {"time", "error"},
    "linear_heads": {"time", "error"},
    "features": {"time", "error"},
    "training_step": {"time"},
}


def measured(name):
    """What a benchmark prints as JSON on its smallest case."""
    done = subprocess.run(
        [sys.executable, BENCHMARKS / f"{name}.py", "--quick", "--json"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("name", MEASURED)
def test_a_benchmark_measures_its_claims_and_is_exact(name):
    claims = measured(name)
    assert {claim["quantity"] for claim in claims} == MEASURED[name]
    for claim in claims:
        assert claim["case"] and claim["peer"]
        if claim["quantity"] == "error":
            assert claim["ratio"] <= claim["must"]


def test_every_benchmark_is_run_by_make_bench_and_tested():
    found = {path.stem for path in BENCHMARKS.glob("*.py") if "def main" in path.read_text()}
    assert set(everything.names()) == found - {"everything"} == set(MEASURED)


def test_results_of_one_benchmark_leave_the_others_as_they_are():
    known = {"commit": "0123456789", "dirty": False, "cores": 2, "hardware": "a CPU"}
    known["versions"] = {"torch": "2.15.0"}
    first, second = (
        everything.section(name, "| a |", 3.0, known) for name in ("augmentation", "knn")
    )
    page = "# Measured speed\n\n" + first + "\n" + second
    assert everything.sections(page) == {"augmentation": first, "knn": second}
    assert "2 cores, a CPU, torch 2.15.0; commit 0123456, " in first
    assert "3 s in all." in first and "| a |" in first


def test_an_unknown_benchmark_is_named_with_those_there_are():
    with pytest.raises(UserError, match="no benchmark 'fast'; choose from augmentation, "):
        everything.main(["fast"])
