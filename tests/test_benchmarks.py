import json
import subprocess
import sys
from pathlib import Path

import pytest

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
    assert len(cases) == 4
    assert all(case["ratio"] > 0 and case["peer"] for case in cases)


@pytest.mark.parametrize("name", ["imsvd_loss"])
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


@pytest.mark.parametrize(
    ("name", "quantities"),
    [
        ("knn", {"time", "memory", "error"}),
        ("voc07_svm", {"time", "error"}),
        ("linear_heads", {"time", "error"}),
        ("features", {"time", "error"}),
    ],
)
def test_a_benchmark_of_evaluation_measures_its_claims_and_is_exact(name, quantities):
    done = subprocess.run(
        [sys.executable, BENCHMARKS / f"{name}.py", "--quick", "--json"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    claims = json.loads(done.stdout)
    assert {claim["quantity"] for claim in claims} == quantities
    for claim in claims:
        assert claim["case"] and claim["peer"]
        if claim["quantity"] == "error":
            assert claim["ratio"] <= claim["must"]
