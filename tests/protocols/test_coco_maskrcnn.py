"""COCO's protocol: settings, the toy it solves, and its command line on real images."""

from __future__ import annotations

import gzip
import importlib.util
import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from harness import detection_data
from harness.backbone import build_backbone
from harness.checkpoint import save_backbone
from harness.coco import open_coco
from harness.coco_eval import evaluate
from harness.command import main
from harness.detection import METRICS
from harness.errors import UserError
from harness.recipe import BackboneSpec, fingerprint
from harness.record import Record
from harness.scale import SCALES
from protocols.coco_maskrcnn import MOCO_C4, VARIANTS
from tests.harness.coco_toy import make_coco

needs_mini = pytest.mark.skipif(
    not Path(os.environ.get("DATA_ROOT", ""), "coco-mini", "annotations").is_dir(),
    reason="needs coco-mini below DATA_ROOT",
)
TOY = replace(
    MOCO_C4,
    engine="torchvision",
    iterations=40,
    milestones=(30,),
    warmup=10,
    batch_size=4,
    train_sides=(64,),
    test_side=64,
    max_side=96,
    train_proposals=(200, 50),
    test_proposals=(200, 50),
    anchors_per_image=64,
    rois_per_image=32,
    detections=10,
    precise_bn=4,
)
# As options, at a size for real photographs.
OPTIONS = """
    --dataset coco-mini --iterations 2 --milestones 1 --warmup 1 --batch-size 2 --lr 0.002
    --train-sides 96 128 --test-side 64 --max-side 160 --train-proposals 200 100
    --test-proposals 60 20 --anchors-per-image 64 --rois-per-image 32 --detections 10
    --precise-bn 1 --json
"""


@pytest.fixture(autouse=True)
def no_workers(monkeypatch):
    monkeypatch.setattr(detection_data, "loader_workers", lambda: 0)


def save_trunk(folder: Path, name: str) -> str:
    torch.manual_seed(0)
    path = folder / f"{name}.pt"
    save_backbone(build_backbone(BackboneSpec(name=name), 64), path, seed=3)
    return str(path)


def test_the_variants_are_the_papers_settings():
    rows = {
        name: (p.model, p.lr, p.iterations, p.milestones, p.warmup) for name, p in VARIANTS.items()
    }
    steps = (60_000, 80_000)
    assert rows == {
        "moco_c4": ("c4", 0.02, 90_000, steps, 1000),
        "moco_c4_2x": ("c4", 0.02, 180_000, (120_000, 160_000), 1000),
        "barlow_twins_c4": ("c4", 0.03, 90_000, steps, 1000),
        "imsvd_c4": ("c4", 0.1, 90_000, steps, 1000),
        "vicreg_fpn": ("fpn", 0.04, 90_000, steps, 50),
        "moco_fpn": ("fpn", 0.02, 90_000, steps, 1000),
    }
    for protocol in VARIANTS.values():
        assert protocol.engine == "detectron2" and protocol.batch_size == 16
        assert (protocol.train_sides[0], protocol.train_sides[-1]) == (640, 800)
        assert (protocol.test_side, protocol.max_side, protocol.precise_bn) == (800, 1333, 200)
        assert protocol.test_proposals == {"c4": (6000, 1000), "fpn": (1000, 1000)}[protocol.model]
    # Another engine is another protocol.
    assert fingerprint(MOCO_C4) != fingerprint(replace(MOCO_C4, engine="torchvision"))


def test_a_smaller_scale_is_torchvisions_engine_on_scenes_of_digits():
    demo = VARIANTS["barlow_twins_c4"].scaled(SCALES["demo"])
    assert (demo.engine, demo.dataset, demo.model) == ("torchvision", "mnist5k-scenes", "c4")
    assert (demo.test_side, demo.iterations, demo.lr) == (128, 120, 0.03 / 2)
    assert demo.milestones[-1] < demo.iterations


def test_a_solvable_toy_is_learnt_in_40_iterations(tmp_path):
    root = make_coco(tmp_path / "toy", images=16, val=8)
    protocol = replace(TOY, dataset=str(root))
    torch.manual_seed(0)
    backbone = build_backbone(BackboneSpec(name="resnet_tiny"), 64)
    found = protocol.run(backbone, tmp_path / "work")
    assert found["bbox_ap50"].value > 50 and found["segm_ap50"].value > 50
    assert found["bbox_ap"].low < found["bbox_ap"].value < found["bbox_ap"].high
    assert "bbox_apl" not in found  # there is no large object
    # The numbers are those of the file.
    rows = json.loads(gzip.decompress((tmp_path / "work" / "predictions.json.gz").read_bytes()))
    assert evaluate(open_coco(str(root), "val"), rows) == found
    assert {row["category_id"] for row in rows} == {3, 7}
    # Again, it goes on from the last iteration and finds the same.
    assert protocol.run(backbone, tmp_path / "work") == found
    told = protocol.data()
    assert [told[split]["objects"] for split in ("train", "val")] == [32, 16]


def check_command_line(folder: Path, capsys: pytest.CaptureFixture[str], options: str) -> None:
    arguments = [*options.split(), *OPTIONS.split(), "--out", str(folder / "out")]
    main("coco_maskrcnn", arguments)
    told = json.loads(capsys.readouterr().out)
    record = Record.load(Path(told["records"][0]))
    assert record.protocol["dataset"] == "coco-mini"
    assert record.protocol["engine"] == options.split()[-1]
    assert record.metrics == told["metrics"] and list(record.metrics) == [m.name for m in METRICS]
    assert all(0 <= value < 20 for value in record.metrics.values())
    assert sorted(record.intervals) == [
        f"{kind}_{stat}" for kind in ("bbox", "segm") for stat in ("ap", "ap50", "ap75")
    ]
    assert (record.data["train"]["images"], record.data["val"]["objects"]) == (98, 707)
    assert record.seed == 3 and record.predictions is not None
    assert isinstance(json.loads(gzip.decompress(Path(record.predictions).read_bytes())), list)


@needs_mini
def test_the_command_line_goes_from_a_checkpoint_to_a_record(tmp_path, capsys):
    trunk = save_trunk(tmp_path, "resnet_tiny")
    check_command_line(tmp_path, capsys, f"--ckpt {trunk} --engine torchvision")


@needs_mini
@pytest.mark.skipif(importlib.util.find_spec("detectron2") is None, reason="needs detectron2")
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore:torch.meshgrid:UserWarning")
def test_detectron2_goes_from_a_checkpoint_to_a_record(tmp_path, capsys, monkeypatch):
    from harness import detection_detectron2

    monkeypatch.setattr(detection_detectron2, "loader_workers", lambda: 0)
    trunk = save_trunk(tmp_path, "resnet18")  # no bottlenecks, as C4 wants them
    check_command_line(tmp_path, capsys, f"--ckpt {trunk} --variant moco_fpn --engine detectron2")


def test_a_vision_transformer_is_refused(tmp_path, capsys):
    with pytest.raises(SystemExit) as exit_:
        main("coco_maskrcnn", ["--ckpt", save_trunk(tmp_path, "vit_demo"), "--dataset", "none"])
    assert exit_.value.code == 2
    assert "stand on a ResNet and this checkpoint is a vit_demo" in capsys.readouterr().err


def test_without_detectron2_the_papers_engine_says_how_to_install_it(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    root = make_coco(tmp_path / "toy", images=16)
    backbone = build_backbone(BackboneSpec(name="resnet_tiny"), 64)
    with pytest.raises(UserError, match="detectron2 is not installed; install it"):
        replace(MOCO_C4, dataset=str(root)).run(backbone, tmp_path / "work")
    assert not (tmp_path / "work").exists()
