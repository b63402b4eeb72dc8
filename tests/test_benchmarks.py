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
    peers = [case["peer"] for case in cases]
    assert peers.count("Pillow, images") == 3
    assert peers.count("decoding alone, the bound") == peers.count("Pillow, views") == 2
    assert all(case["ratio"] > 0 for case in cases)
