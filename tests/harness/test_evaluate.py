from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from harness.backbone import build_backbone
from harness.checkpoint import save_backbone
from harness.environment import environment
from harness.errors import UserError
from harness.evaluate import evaluate, pretrain_cost
from harness.foreign import sha256_of_file
from harness.recipe import BackboneSpec, MethodConfig, Optim, Recipe, fingerprint, resolved
from harness.record import Cost, Record
from harness.views import CenterCrop
from tests.protocols.toys import KNN_TOY, toy_data

RECIPE = Recipe(
    name="toy",
    source="none",
    method=MethodConfig(),
    views=(),
    backbone=BackboneSpec(name="resnet_tiny"),
    epochs=0,
    batch_size=8,
    optim=Optim(name="sgd", lr=0.1),
    dataset="toy",
)
PROTOCOL = replace(KNN_TOY, transform=CenterCrop(resize=16, size=16))


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    backbone = build_backbone(RECIPE.backbone, 16)
    save_backbone(backbone, tmp_path / "backbone.pt", seed=1, seconds=7.0)
    return tmp_path / "backbone.pt"


def run(checkpoint: Path, recipe: Recipe | None, seed: int) -> Record:
    folder = checkpoint.parent
    with toy_data(images=60):
        return evaluate(
            recipe=recipe,
            protocol=PROTOCOL,
            seed=seed,
            checkpoint=checkpoint,
            workdir=folder / "work",
            records=folder / "records",
        )


def test_the_record_is_found_under_the_fingerprint_of_recipe_protocol_and_seed(checkpoint):
    record = run(checkpoint, RECIPE, 2)
    assert record.key == fingerprint(RECIPE, PROTOCOL, 2)
    assert record.slot == fingerprint(RECIPE, PROTOCOL, 2, versions=False)
    assert Record.load(checkpoint.parent / "records" / f"{record.key}.json") == record
    assert (record.recipe, record.protocol) == (resolved(RECIPE), resolved(PROTOCOL))
    assert record.checkpoint["sha256"] == sha256_of_file(checkpoint)
    assert record.pretrain_seconds == 7.0
    assert record.predictions is not None and Path(record.predictions).is_file()


def test_a_diverged_training_is_recorded_and_not_evaluated(tmp_path):
    backbone = build_backbone(RECIPE.backbone, 16)
    with torch.no_grad():
        backbone.trunk.conv1.weight.fill_(float("nan"))
    end = {"diverged": "the loss term KL is inf at step 3 of svib-1", "seconds": 5.0}
    save_backbone(backbone, tmp_path / "backbone.pt", **end)
    record = run(tmp_path / "backbone.pt", RECIPE, 0)
    assert (record.metrics, record.intervals, record.predictions) == ({}, {}, None)
    assert record.diverged == end["diverged"]
    assert record.key == fingerprint(RECIPE, PROTOCOL, 0)
    assert Record.load(tmp_path / "records" / f"{record.key}.json") == record


def test_a_checkpoint_from_elsewhere_is_identified_by_its_bytes(checkpoint):
    record = run(checkpoint, None, 0)
    assert record.key == fingerprint(sha256_of_file(checkpoint), PROTOCOL, 0)
    assert record.recipe is None


def test_a_record_tells_what_its_evaluation_and_its_pretraining_took(checkpoint, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "13")
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "12")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "1")
    record = run(checkpoint, RECIPE, 2)
    assert record.cost is not None
    assert (record.cost.processes, record.cost.jobs) == (1, ("12_1",))
    assert record.cost.seconds == record.seconds > 0
    assert record.cost.peak_memory_bytes == record.peak_memory_bytes > 0
    assert record.environment["job"] == "12_1"
    assert record.pretrain_cost == Cost(seconds=7.0)


def test_the_cost_of_a_pretraining_follows_from_what_its_trainer_wrote():
    training = {
        "seconds": 1800.0,
        "processes": 4,
        "device": "cuda",
        "peak_memory_bytes": 10,
        "recipe": {"epochs": 2, "batch_size": 64},
        "data": {"images": 1000},
    }
    # 15 whole batches of 64 in an epoch; 4 GPUs for half an hour
    expected = Cost(
        seconds=1800.0,
        processes=4,
        gpus=4,
        gpu_hours=2.0,
        images_per_s=2 * 15 * 64 / 1800,
        peak_memory_bytes=10,
    )
    assert pretrain_cost(training) == expected
    told = {"hardware": "NVIDIA H100", "gpu_hours": 2.5, "jobs": ["1", "2"]}
    assert pretrain_cost(training | told) == replace(
        expected, hardware="NVIDIA H100", gpu_hours=2.5, jobs=("1", "2")
    )
    assert pretrain_cost(training | {"device": "cpu"}).gpus == 0
    assert pretrain_cost({}) is None


def test_the_environment_names_versions_and_the_state_of_the_code():
    found = environment()
    assert found["versions"].keys() == {
        *("python", "torch", "torchvision", "timm", "numpy", "scikit-learn", "pycocotools")
    }
    assert found["commit"] is None or len(found["commit"]) == 40
    assert found["processes"] == 1


def test_an_unusable_checkpoint_leaves_no_record(tmp_path):
    with pytest.raises(UserError, match="there is no checkpoint at"):
        run(tmp_path / "none.pt", RECIPE, 0)
    assert not (tmp_path / "records").exists()


def test_a_trunk_from_before_the_end_has_a_record_of_its_own(tmp_path):
    torch.manual_seed(0)
    save_backbone(build_backbone(RECIPE.backbone, 16), tmp_path / "backbone-40.pt", after=40)
    record = run(tmp_path / "backbone-40.pt", RECIPE, 2)
    assert record.key == fingerprint(RECIPE, PROTOCOL, 2, "after 40 % of the steps")
    assert (record.after, record.pretrain_cost, record.pretrain_seconds) == (40, None, 0.0)
    assert Record.load(tmp_path / "records" / f"{record.key}.json") == record
