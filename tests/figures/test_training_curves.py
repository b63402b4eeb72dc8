from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from figures.drawing import main, save
from figures.training_curves import TrainingCurves, make, read_run


def log(runs: Path, name: str, lines: list[dict], tail: str = "") -> Path:
    folder = runs / name
    folder.mkdir(parents=True)
    besides = {"steps": 9, "learning_rate": 0.1, "images_per_s": 7.0, "seconds_left": 1.0}
    full = [json.dumps({"step": i, **line, **besides}) + "\n" for i, line in enumerate(lines)]
    (folder / "log.jsonl").write_text("".join(full) + tail)
    recipe = {"backbone": {"name": "resnet50"}, "dataset": "imagenet", "epochs": 100}
    (folder / "recipe.json").write_text(json.dumps({"seed": 3, "recipe": recipe}))
    return folder


def test_a_log_becomes_the_loss_and_its_terms_by_epoch(tmp_path):
    lines = [
        {"epoch": 0.5, "loss": 3.0, "TI": 3.0},
        {"epoch": 1.0, "loss": 2.0, "TI": 1.5, "DE": 0.5},
    ]
    found = read_run(log(tmp_path, "imsvd-0123456789abcdef", lines, tail='{"step": 3, "ep'))
    assert (found.method, found.epochs) == ("imsvd", (0.5, 1.0))
    assert found.label == "resnet50, imagenet, 100 epochs, seed 3 (012345)"
    assert list(found.values) == ["loss", "TI", "DE"]
    assert found.values["loss"] == (3.0, 2.0)
    assert math.isnan(found.values["DE"][0])
    assert found.values["DE"][1] == 0.5


def test_each_method_has_a_row_of_its_own_terms(tmp_path):
    for key in "ab":
        log(tmp_path, f"imsvd-{key}", [{"epoch": 1.0, "loss": 2.0, "TI": 1.5, "DE": 0.5}] * 2)
    log(tmp_path, "barlow_twins-c", [{"epoch": 1.0, "loss": 4.0, "invariance": 4.0}] * 2)
    log(tmp_path, "dino-d", [])  # has not logged yet
    drawn = make(TrainingCurves(runs=tmp_path, scale="paper"))
    rows = [axes for axes in drawn.figure.axes if axes.axison]
    assert [axes.get_title() for axes in rows] == ["loss", "invariance", "loss", "TI", "DE"]
    assert [len(axes.lines) for axes in rows] == [1, 1, 2, 2, 2]
    assert drawn.text.splitlines()[2].split() == ["barlow_twins-c", "1.0", "4", "4"]
    png, svg = save(drawn, tmp_path / "out")
    assert png.read_bytes().startswith(b"\x89PNG")
    assert "invariance" in svg.read_text()
    alone = make(TrainingCurves(runs=tmp_path, only=("barlow_twins",), scale="paper"))
    assert [axes.get_title() for axes in alone.figure.axes] == ["loss", "invariance", ""]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            [],
            "has logs of nothing at the demo scale; run python reproduce.py all --scale demo first",
        ),
        (["--only", "byol"], "has logs of nothing at the demo scale and none of byol"),
    ],
)
def test_without_logs_the_command_says_so_and_exits_with_2(tmp_path, capsys, arguments, said):
    with pytest.raises(SystemExit) as exit_:
        main(TrainingCurves, make, ["--runs", str(tmp_path), "--scale", "demo", *arguments])
    assert exit_.value.code == 2
    assert said in capsys.readouterr().err


def test_a_damaged_line_is_named(tmp_path, capsys):
    folder = log(tmp_path, "imsvd-a", [{"epoch": 1.0, "loss": 2.0}])
    (folder / "log.jsonl").write_text("{\n" + (folder / "log.jsonl").read_text())
    with pytest.raises(SystemExit):
        main(TrainingCurves, make, ["--runs", str(tmp_path)])
    assert "line 1 is damaged" in capsys.readouterr().err


def test_the_command_prints_the_numbers_and_its_files(tmp_path, capsys):
    log(tmp_path, "imsvd-a", [{"epoch": 1.0, "loss": 2.0}])
    options = ["--runs", str(tmp_path), "--out", str(tmp_path / "out"), "--scale", "paper"]
    main(TrainingCurves, make, options)
    lines = capsys.readouterr().out.splitlines()
    assert lines[2].startswith("imsvd-a")
    names = ["training_curves.paper.png", "training_curves.paper.svg"]
    assert [Path(line).name for line in lines[-2:]] == names


def test_runs_of_another_scale_are_left_out(tmp_path):
    log(tmp_path, "imsvd-a", [{"epoch": 1.0, "loss": 2.0}])
    small = log(tmp_path, "imsvd-b", [{"epoch": 1.0, "loss": 4.0}])
    recipe = {"backbone": {"name": "resnet_tiny"}, "dataset": "mnist5k", "epochs": 1}
    (small / "recipe.json").write_text(json.dumps({"seed": 0, "recipe": recipe}))
    drawn = make(TrainingCurves(runs=tmp_path, scale="demo"))
    assert [line.split()[0] for line in drawn.text.splitlines()[2:]] == ["imsvd-b"]
    assert (drawn.scale, drawn.title) == ("demo", "losses of 1 pretraining over the epochs")
