import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import everything
from harness.errors import UserError

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.mark.parametrize("name", ["augmentation"])
def test_a_benchmark_runs_and_compares_with_its_peer(name):
    done = subprocess.run(
        [sys.executable, BENCHMARKS / f"{name}.py", "--quick", "--json"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    cases = json.loads(done.stdout)
    peers = [case["peer"] for case in cases]
    assert peers.count("Pillow, images") == 3
    assert peers.count("decoding alone, the bound") == peers.count("Pillow, views") == 2
    assert all(case["ratio"] > 0 for case in cases)


@pytest.mark.parametrize("name", ["imsvd_loss", "gram_losses", "multicrop_losses"])
def test_a_benchmark_measures_its_claims_and_is_exact(name):
    done = subprocess.run(
        [sys.executable, BENCHMARKS / f"{name}.py", "--quick", "--json"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    claims = json.loads(done.stdout)
    quantities = {claim["quantity"] for claim in claims}
    assert quantities == {"time", "memory", "error"}
    for claim in claims:
        assert claim["case"] and claim["peer"]
        if claim["quantity"] == "error":
            assert claim["ratio"] <= claim["must"]


def test_the_training_step_is_measured_beside_a_bare_loop():
    done = subprocess.run(
        [sys.executable, BENCHMARKS / "training_step.py", "--quick", "--json"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    claims = json.loads(done.stdout)
    assert [claim["case"] for claim in claims] == [
        "1 steps of imsvd:RESNET50",
        "1 steps of dino:VIT_SMALL",
    ]
    assert all(claim["ours"] > 0 and claim["theirs"] > 0 for claim in claims)


def test_results_of_one_benchmark_leave_the_others_as_they_are():
    first, second = (everything.section(name, "| a |", 3.0) for name in ("augmentation", "knn"))
    page = "# Measured speed\n\n" + first + "\n" + second
    assert everything.sections(page) == {"augmentation": first, "knn": second}
    assert "3 s in all." in first and "| a |" in first


def test_every_benchmark_is_run_by_make_bench():
    found = {path.stem for path in BENCHMARKS.glob("*.py") if "def main" in path.read_text()}
    assert set(everything.names()) == found - {"everything"}


def test_an_unknown_benchmark_is_named_with_those_there_are():
    with pytest.raises(UserError, match="no benchmark 'fast'; choose from augmentation, "):
        everything.main(["fast"])
