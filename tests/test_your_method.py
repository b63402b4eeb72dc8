"""The README's page "Your method in one file": its two files do what it says they do."""

import importlib
import json
import math
import re
import shlex
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import baselines
import reproduce
from harness import registry
from harness.scale import find_scale, scale_recipe
from harness.train import pretrain
from results import specs
from results.catalog import find_tables
from results.resolve import resolve
from tests import test_conformance as conformance
from tests.gloo import run_on
from tests.results import sample

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
NAME = "align_uniform:RESNET50"
PACKAGES = {"baselines": baselines, "results/specs": specs}


def page() -> str:
    _, _, text = README.read_text().partition("\n## Your method in one file\n")
    return text.partition("\n## ")[0]


def files() -> dict[str, str]:
    """The page's Python files by their paths."""
    found = re.findall(r"^`([\w/]+\.py)`\n\n```python\n(.*?)^```", page(), flags=re.M | re.S)
    return dict(found)


def commands(start: str) -> list[list[str]]:
    blocks = re.findall(r"^```sh\n(.*?)^```", page(), flags=re.M | re.S)
    lines = [line.partition("#")[0].strip() for block in blocks for line in block.splitlines()]
    return [shlex.split(line) for line in lines if line.startswith(start)]


def install(folder: Path) -> list[str]:
    """Write the files and let the packages look for modules there too; the modules' names."""
    modules = []
    for path, text in files().items():
        room, _, name = path.rpartition("/")
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text)
        PACKAGES[room].__path__.append(str(target.parent))
        modules.append(f"{room.replace('/', '.')}.{name.removesuffix('.py')}")
    importlib.invalidate_caches()
    return modules


@pytest.fixture
def installed(tmp_path, monkeypatch) -> Iterator[Path]:
    for package in PACKAGES.values():
        monkeypatch.setattr(package, "__path__", list(package.__path__))
    modules = install(tmp_path)
    yield tmp_path
    for module in modules:
        sys.modules.pop(module, None)


def test_the_page_has_a_method_and_a_table_and_names_files_that_exist():
    assert list(files()) == ["baselines/align_uniform.py", "results/specs/mine.py"]
    named = set(re.findall(r"\b(?:tests|baselines|harness|results)/[\w/]+\.py", page()))
    own = {*files(), "tests/baselines/test_align_uniform.py"}
    assert [path for path in named - own if not (ROOT / path).exists()] == []


@pytest.mark.usefixtures("installed")
def test_the_registry_finds_the_file_and_its_recipe():
    assert "align_uniform" in registry.names("method")
    assert registry.recipe(NAME).name == "Alignment and uniformity ResNet-50"
    for command in commands("python -m harness.pretrain"):
        assert registry.recipe(command[3]) is registry.recipe(NAME)


@pytest.mark.usefixtures("installed")
def test_the_loss_is_the_papers_in_a_case_done_by_hand():
    terms_of = importlib.import_module("baselines.align_uniform").align_uniform_terms
    z1 = torch.tensor([[3.0, 0], [0, 2]], dtype=torch.float64)  # two images, at right angles
    z2 = torch.tensor([[1.0, 0], [-1, 0]], dtype=torch.float64)  # opposite
    terms = terms_of(z1, z2, alignment=10.0, uniformity=0.5, t=3.0)
    assert terms["alignment"].item() == pytest.approx(10 * (0 + 2) / 2)
    assert terms["uniformity"].item() == pytest.approx(0.5 * -3 * (2 + 4) / 2)


@pytest.mark.usefixtures("installed")
def test_it_passes_the_conformance_tests(monkeypatch):
    monkeypatch.setitem(conformance.RECIPES, NAME, registry.recipe(NAME))
    conformance.test_terms_are_finite_scalars_and_every_trainable_weight_gets_a_gradient(NAME)
    conformance.test_a_recipes_method_is_its_config_with_the_papers_values(NAME)
    conformance.test_a_state_dict_restores_the_method(NAME)


def on_this_process(folder: str) -> dict[str, torch.Tensor]:
    """Losses and gradients in a process that hasn't seen the files yet."""
    if "baselines.align_uniform" not in sys.modules:
        baselines.__path__.append(f"{folder}/baselines")
    conformance.RECIPES[NAME] = registry.recipe(NAME)
    try:
        return conformance.losses_and_gradients(NAME)
    finally:
        del conformance.RECIPES[NAME]


def test_its_loss_and_gradients_on_two_processes_are_the_global_batchs(installed):
    importlib.import_module("baselines.align_uniform")
    alone = on_this_process(str(installed))
    for rank in run_on(2, on_this_process, installed, str(installed)):
        for key, value in alone.items():
            torch.testing.assert_close(rank[key], value, rtol=1e-9, atol=1e-9)


def test_it_pretrains_at_demo_scale(installed):
    recipe = scale_recipe(registry.recipe(NAME), find_scale("demo"))
    recipe = replace(recipe, dataset="mnist5k@256")  # two steps of an epoch
    path = pretrain(recipe, 0, installed / "runs")
    assert path.parent.name.startswith("align_uniform-")
    last = json.loads((path.parent / "log.jsonl").read_text().splitlines()[-1])
    assert last["step"] == 2
    assert math.isfinite(last["alignment"] + last["uniformity"])


def test_its_row_appears_in_the_table_with_its_number(installed, capsys):
    (table,) = find_tables(("mine",))
    jobs = resolve(table, find_scale("demo"), seeds=1, fill=False, cache=installed / "cache")
    (key,) = (e.key for e in jobs.evaluations.values() if is_mine(e, jobs))
    sample.record(key, 61.8).save(installed / "records")
    shown = {}
    for command in commands("python reproduce.py mine"):
        arguments = [a for a in command[2:] if a not in ("--seeds", "3")]
        if not {"--render", "--why"} & set(arguments):
            arguments.append("--plan")  # instead of training here
        folders = [f"--{name}={installed / name}" for name in ("runs", "records", "out")]
        assert reproduce.main([*arguments, "--cluster=local", *folders]) == 0
        shown[arguments[3]] = capsys.readouterr().out
    assert "2 pretrainings, 3 evaluations; 1 evaluations are recorded" in shown["--plan"]
    assert re.search(r"^\| Align, uniform +\|[^|]*\| 61\.8 ", shown["--render"], flags=re.M)
    assert shown["--why"].startswith("mine: Align, uniform | KNN-20\n")


def is_mine(evaluation, jobs) -> bool:
    recipe = jobs.pretrainings[evaluation.pretraining].recipe
    return recipe == NAME and evaluation.variant == "knn:dino"
