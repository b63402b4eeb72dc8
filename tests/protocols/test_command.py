"""The protocols' command lines, end to end on the bundled digits with an untrained backbone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from harness.backbone import build_backbone
from harness.checkpoint import save_backbone
from harness.command import main, parse
from harness.errors import UserError
from harness.foreign import sha256_of_file
from harness.recipe import BackboneSpec, fingerprint
from harness.record import Record
from harness.scale import SCALES
from protocols import knn, linear

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("untrained") / "backbone.pt"
    backbone = build_backbone(BackboneSpec(name="resnet_tiny"), 28)
    save_backbone(backbone, path, seed=5, seconds=2.5)
    return path


def run(*command: str, folder: Path) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, *command], cwd=folder, env=environment, capture_output=True, text=True
    )


def test_knn_runs_alone_from_any_directory_and_writes_its_record(tmp_path, checkpoint):
    script = str(ROOT / "protocols" / "knn.py")
    done = run(
        script, "--ckpt", str(checkpoint), "--scale", "demo", "--k", "20", "200", "--json",
        folder=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    protocol = replace(knn.DINO.scaled(SCALES["demo"]), k=(20, 200))
    key = fingerprint(sha256_of_file(checkpoint), protocol, 5)
    assert told["records"] == [f"evaluations/{key}.json"]
    record = Record.load(tmp_path / "evaluations" / f"{key}.json")
    assert record.key == key and record.metrics == told["metrics"]
    assert list(record.metrics) == ["knn_20", "knn_200"]
    # Run as a script, the class is still the one that everybody else knows.
    assert record.protocol["class"] == "protocols.knn.KNN"
    assert (record.seed, record.pretrain_seconds) == (5, 2.5)
    assert record.data["train"]["images"] == 4000 and record.data["val"]["images"] == 1000
    assert record.environment["versions"]["torch"] == torch.__version__.partition("+")[0]
    assert record.seconds > 0 and record.peak_memory_bytes > 1 << 20
    # Pixels alone tell most digits apart: 10 % would be chance.
    assert 50 < record.metrics["knn_20"] < 100
    low, high = record.intervals["knn_20"]
    assert 1 < record.metrics["knn_20"] - low < 4 and 1 < high - record.metrics["knn_20"] < 4
    assert record.predictions is not None
    with np.load(tmp_path / record.predictions) as found:
        assert record.metrics["knn_20"] == 100 * (found["knn_20"] == found["labels"]).mean()


def test_linear_prints_a_table(tmp_path, checkpoint, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    main(
        "linear",
        ["--ckpt", str(checkpoint), "--scale", "demo", "--epochs", "1", "--out", "here"],
    )
    shown = capsys.readouterr()
    lines = shown.out.splitlines()
    assert lines[0].split() == ["metric", "percent", "95", "%", "interval"]
    assert [line.split()[0] for line in lines[2:4]] == ["linear_top1", "linear_top5"]
    assert "resnet_tiny, family ours; 72 tensors matched, 0 missing" in shown.err
    assert "held-out accuracy" in shown.err
    record = Record.load(tmp_path / lines[-1].removeprefix("record: "))
    assert lines[2].split()[1] == f"{record.metrics['linear_top1']:.2f}"


def test_what_is_recorded_is_not_measured_again(tmp_path, checkpoint, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    arguments = ["--ckpt", str(checkpoint), "--scale", "demo", "--k", "5", "--json"]
    main("knn", arguments)
    first = json.loads(capsys.readouterr().out)
    main("knn", arguments)
    shown = capsys.readouterr()
    assert json.loads(shown.out) == first and "already recorded" in shown.err
    record = Path(first["records"][0])
    stamp = record.stat().st_mtime_ns
    main("knn", [*arguments, "--again"])
    assert record.stat().st_mtime_ns > stamp
    # Other images under the same name: the record no longer counts.
    written = json.loads(record.read_text())
    written["data"]["val"]["checksum"] = "0"
    record.write_text(json.dumps(written))
    main("knn", arguments)
    assert "was measured on other images" in capsys.readouterr().err
    assert Record.load(record).data["val"]["checksum"] != "0"


def test_several_seeds_give_a_record_each_and_their_mean(tmp_path, checkpoint, capsys):
    out = tmp_path / "out"
    main(
        "linear",
        ["--ckpt", str(checkpoint), "--scale", "demo", "--epochs", "1", "--lr", "0.3",
         "--seeds", "0", "7", "--json", "--out", str(out)],
    )  # fmt: skip
    told = json.loads(capsys.readouterr().out)
    records = [Record.load(Path(path)) for path in told["records"]]
    assert [record.protocol["seed"] for record in records] == [0, 7]
    a, b = (record.metrics["linear_top1"] for record in records)
    assert a != b
    assert told["metrics"]["linear_top1"] == pytest.approx((a + b) / 2)
    assert told["sd"]["linear_top1"] == pytest.approx(abs(a - b) / 2**0.5)


@pytest.mark.parametrize(
    ("name", "seeds", "said"),
    [
        ("knn", ["0", "1"], "--seeds 0 1 would give 2 times the same number"),
        ("linear", ["3", "3"], "--seeds 3 3 has a seed twice"),
    ],
)
def test_seeds_that_make_no_sense_are_refused(checkpoint, capsys, name, seeds, said):
    with pytest.raises(SystemExit) as exit_:
        main(name, ["--ckpt", str(checkpoint), "--scale", "demo", "--seeds", *seeds])
    assert exit_.value.code == 2 and said in capsys.readouterr().err


def test_a_mistake_is_one_line_on_stderr_and_status_2(tmp_path, capsys):
    with pytest.raises(SystemExit) as exit_:
        main("knn", ["--ckpt", str(tmp_path / "none.pt"), "--dataset", "mnist5k"])
    shown = capsys.readouterr()
    assert exit_.value.code == 2 and shown.out == ""
    assert shown.err.count("\n") == 1 and shown.err.startswith("error: there is no checkpoint at")


def test_the_variant_gives_the_defaults_and_options_override_them():
    command, protocol = parse("knn", ["--ckpt", "x", "--variant", "imsvd", "--k", "20"])
    assert protocol == replace(knn.IMSVD, k=(20,)) and command.ckpt == Path("x")
    _, protocol = parse("linear", ["--ckpt", "x", "--variant=svib_vit", "--lr", "0.1", "1"])
    assert protocol == replace(linear.SVIB_VIT, lr=(0.1, 1.0))
    _, protocol = parse("knn", ["--ckpt", "x", "--scale", "cifar10"])
    assert protocol == knn.DINO.scaled(SCALES["cifar10"])


def test_an_unknown_variant_gets_a_suggestion():
    with pytest.raises(UserError, match="unknown variant 'knn:dinno': did you mean knn:dino"):
        parse("knn", ["--ckpt", "x", "--variant", "dinno"])


def test_help_names_every_setting_without_importing_torch(tmp_path):
    code = (
        "import sys; from harness.command import parse\n"
        "try: parse('linear', ['--help'])\n"
        "except SystemExit: print('torch' in sys.modules)"
    )
    done = run("-c", code, folder=tmp_path)
    assert done.stdout.endswith("False\n"), done.stderr
    for option in ("--ckpt", "--variant", "--lr", "--train-view.scale", "--transform.resize"):
        assert option in done.stdout


@pytest.mark.slow
def test_two_torchrun_processes_print_one_result_that_equals_one_process(
    tmp_path, checkpoint, monkeypatch, capsys
):
    options = ["--ckpt", str(checkpoint), "--scale", "demo", "--json"]
    script = str(ROOT / "protocols" / "knn.py")
    launcher = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"]
    pair = run(*launcher, script, *options, folder=tmp_path)
    assert pair.returncode == 0, pair.stderr
    assert len(pair.stdout.splitlines()) == 1
    monkeypatch.chdir(tmp_path)
    main("knn", options)
    assert json.loads(pair.stdout) == json.loads(capsys.readouterr().out)
