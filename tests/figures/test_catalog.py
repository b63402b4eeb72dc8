from __future__ import annotations

import importlib
from pathlib import Path

import pytest
import torch

import reproduce
from figures.catalog import FIGURES, checkpoints
from harness.backbone import build_backbone
from harness.checkpoint import save_backbone
from harness.recipe import BackboneSpec, TrainingSize
from harness.scale import SCALES
from methods.imsvd import IMSVDConfig
from results.catalog import find_tables
from results.resolve import resolve


@pytest.mark.parametrize("name", FIGURES)
def test_every_figure_has_its_make_its_arguments_and_recipes_of_its_table(name):
    entry = FIGURES[name]
    module = importlib.import_module(f"figures.{entry.module}")
    assert callable(module.make)
    assert hasattr(module, entry.arguments)
    if entry.table:
        (table,) = find_tables((entry.table,))
        assert {*entry.recipes} <= {row.recipe for row in table.rows}


def finished(runs: Path) -> list[Path]:
    """A backbone.pt in the place of each IMSVD run of its Table 1 at the demo scale."""
    (table,) = find_tables(("imsvd/table1",))
    scale = SCALES["demo"]
    resolved = resolve(table, scale, seeds=None, fill=False, cache=runs / ".plans")
    own = [p for p in resolved.pretrainings.values() if p.recipe == "imsvd:RESNET50"]
    torch.manual_seed(0)
    backbone = build_backbone(BackboneSpec(name="resnet_tiny"), 32)
    config = IMSVDConfig(projector=(24, 12), units=4)
    method = config.build(backbone, TrainingSize(images=8, classes=2))
    for run in own:
        path = runs / run.key / "backbone.pt"
        recipe = {"dataset": "mnist5k", "epochs": run.epochs}
        save_backbone(backbone, path, projector=method.own_projector, recipe=recipe)
    return [runs / p.key / "backbone.pt" for p in sorted(own, key=lambda p: p.epochs)]


def test_the_command_draws_the_longest_run_of_the_table(tmp_path, capsys):
    paths = finished(tmp_path / "runs")
    runs = ["--scale", "demo", "--runs", str(tmp_path / "runs")]
    assert checkpoints(FIGURES["imsvd/fig5"], SCALES["demo"], tmp_path / "runs") == paths[-1:]
    small = ["--among", "12", "--rows", "1", "--out", str(tmp_path / "out")]
    assert reproduce.main(["imsvd/fig4", *runs, *small]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == str(tmp_path / "out" / "units.svg")
    assert (tmp_path / "out" / "units.png").is_file()


def test_without_the_runs_it_says_what_to_run(tmp_path, capsys):
    assert reproduce.main(["svib/fig4", "--scale", "demo", "--runs", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert "no run of dino:VIT_SMALL at the demo scale is finished" in error
    assert "run reproduce.py svib/table1 --scale demo first, or give --ckpt" in error


def test_the_help_tells_whose_weights_are_shown(capsys):
    with pytest.raises(SystemExit):
        reproduce.main(["svib/fig4", "--help"])
    said = " ".join(capsys.readouterr().out.split())
    assert said.startswith("usage: reproduce.py svib/fig4 ")
    assert "the longest finished run of dino:VIT_SMALL and svib:VIT_SMALL in svib/table1" in said
