from __future__ import annotations

import importlib
from pathlib import Path

import pytest
import torch
from PIL import Image

import reproduce
from figures import catalog
from figures.catalog import checkpoints
from figures.drawing import OUT, scale_of
from figures.names import FIGURES
from harness.backbone import build_backbone
from harness.checkpoint import save_backbone
from harness.recipe import BackboneSpec, TrainingSize
from harness.scale import SCALES
from methods.imsvd import IMSVDConfig
from results.catalog import find_tables
from results.resolve import resolve
from slurm import arguments


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
    path = tmp_path / "out" / "imsvd_fig4.demo.svg"
    assert capsys.readouterr().out.splitlines()[-1] == str(path)
    with Image.open(path.with_suffix(".png")) as image:
        about = image.info
    assert about["Title"] == (
        "IMSVD, Fig. 4: mnist5k, 5 epochs: highest of 12 images per unit."
        " Scale: DEMO (mnist5k, 32 px), not the papers' experiments."
    )
    assert about["Description"].startswith("2 rows of images: those with the highest probability")
    assert f"<title>{about['Title']}</title>" in path.read_text()


def test_all_figures_at_once_tell_which_lack_runs_and_what_makes_them(
    tmp_path, capsys, monkeypatch
):
    shown = {name: FIGURES[name] for name in ("svib/fig3", "svib/fig4", "imsvd/fig5", "curves")}
    monkeypatch.setattr(catalog, "FIGURES", shown)
    finished(tmp_path / "runs")
    folders = [f"--{name}={tmp_path / name}" for name in ("runs", "records", "out")]
    assert reproduce.main(["figures", "--scale", "demo", *folders]) == 0
    said = dict(line.split(": ", 1) for line in capsys.readouterr().out.splitlines())
    assert list(said) == list(shown)
    assert said["svib/fig3"].endswith("run python reproduce.py svib/beta --scale demo first")
    assert "run python reproduce.py svib/table1 --scale demo first" in said["svib/fig4"]
    assert said["curves"].endswith("run python reproduce.py all --scale demo first")
    drawn = {path.name for path in (tmp_path / "out").iterdir()}
    assert drawn == {f"imsvd_fig5.demo.{kind}" for kind in ("png", "svg")}


def test_a_figure_that_fails_although_its_runs_are_there_makes_the_status_1(
    tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(catalog, "FIGURES", {"curves": FIGURES["curves"]})
    folder = tmp_path / "runs" / "imsvd-a"
    folder.mkdir(parents=True)
    (folder / "log.jsonl").write_text("{\n")
    folders = [f"--{name}={tmp_path / name}" for name in ("runs", "records", "out")]
    assert reproduce.main(["figures", "--scale", "demo", *folders]) == 1
    assert "curves: failed: " in capsys.readouterr().err


def test_figures_lie_where_the_report_looks_for_them():
    assert arguments.FIGURES == OUT


def test_another_scale_than_the_papers_is_told_from_the_data_set():
    paper, demo = {"dataset": "imagenet"}, {"dataset": "mnist5k"}
    assert scale_of([paper, None]) == "paper"
    assert scale_of([paper, demo]) == "demo"
    assert scale_of([None, {"dataset": "/a/folder"}]) == ""


@pytest.mark.parametrize(
    ("name", "suggested"),
    [("svib/fg4", "svib/fig4"), ("curvs", "curves"), ("docter", "doctor"), ("tabel1", "table1")],
)
def test_a_typo_is_looked_for_among_tables_figures_and_actions(name, suggested, capsys):
    assert reproduce.main([name, "--scale", "demo"]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"unknown table or figure {name!r}: did you mean {suggested}")
    assert len(error.splitlines()) == 1


def test_a_figure_among_tables_is_refused(capsys):
    assert reproduce.main(["--scale", "demo", "svib/fig4"]) == 2
    assert "svib/fig4 is a figure, drawn alone" in capsys.readouterr().err


def test_both_helps_list_every_figure_in_a_line(capsys):
    for arguments_ in (["--help"], ["figures", "--help"]):
        with pytest.raises(SystemExit):
            reproduce.main(arguments_)
        lines = capsys.readouterr().out.splitlines()
        for name, entry in FIGURES.items():
            assert [line for line in lines if name in line and line.endswith(entry.about)]


def test_without_the_runs_it_says_what_to_run(tmp_path, capsys):
    assert reproduce.main(["svib/fig4", "--scale", "demo", "--runs", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert "no run of dino:VIT_SMALL at the demo scale is finished" in error
    assert "run python reproduce.py svib/table1 --scale demo first, or give --ckpt" in error


def test_the_help_tells_whose_weights_are_shown(capsys):
    with pytest.raises(SystemExit):
        reproduce.main(["svib/fig4", "--help"])
    said = " ".join(capsys.readouterr().out.split())
    assert said.startswith("usage: reproduce.py svib/fig4 ")
    assert "the longest finished run of dino:VIT_SMALL and svib:VIT_SMALL in svib/table1" in said
