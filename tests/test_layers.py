"""Imports point down: harness, then methods, baselines and protocols, then results, then slurm."""

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MAY_IMPORT = {
    "harness": {"harness"},
    "methods": {"harness"},
    "baselines": {"harness"},
    "protocols": {"harness"},
    "results": {"harness", "methods", "baselines", "protocols", "results"},
    "slurm": {"harness", "methods", "baselines", "protocols", "results", "slurm"},
    "figures": {"harness", "methods", "baselines", "protocols", "results", "figures"},
}
ROOMS = {*MAY_IMPORT, "benchmarks", "tests", "reproduce"}


def imported(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            found.add((node.module or "").partition(".")[0])
    return found & ROOMS


@pytest.mark.parametrize("room", MAY_IMPORT)
def test_no_room_imports_one_above_it(room):
    for path in sorted((ROOT / room).rglob("*.py")):
        assert imported(path) <= MAY_IMPORT[room], path.relative_to(ROOT)


def test_no_file_has_the_name_of_a_standard_module():
    # `python protocols/knn.py` puts its folder first on the path.
    names = {path.stem for room in MAY_IMPORT for path in (ROOT / room).glob("*.py")}
    assert names & set(sys.stdlib_module_names) == set()


def test_files_stay_short():
    long = {
        str(path.relative_to(ROOT)): count
        for room in [*MAY_IMPORT, "benchmarks", "tests"]
        for path in (ROOT / room).rglob("*.py")
        if (count := len(path.read_text().splitlines())) > 400
    }
    assert long == {}


def test_the_package_list_names_every_folder_with_code():
    import tomllib

    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    found = {
        str(path.parent.relative_to(ROOT)).replace("/", ".")
        for room in [*MAY_IMPORT, "benchmarks"]
        for path in (ROOT / room).rglob("__init__.py")
    }
    assert set(listed) == found
