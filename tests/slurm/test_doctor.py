"""Each check on a good and on a broken case; the command's lines, JSON and exit status."""

import hashlib
import json
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

import reproduce
from harness import data, inventory, registry, subsets
from harness.errors import UserError
from harness.inventory import Published, order_of
from harness.recipe import resolved
from harness.record import Cost
from harness.scale import find_scale
from slurm import check_files, check_gpus, check_memory, check_packages
from slurm.check_cluster import check_limits, check_requests, find_place
from slurm.check_data import check_data, check_dataset
from slurm.checks import Subject, refused
from slurm.clusters import read_sections
from slurm.ledger import note_failure
from slurm.plan import make_plan
from slurm.sites import Site
from tests.results import sample
from tests.slurm.fake_slurm import FakeSlurm

ROOT = Path(__file__).parents[2]


@pytest.fixture
def root(tmp_path, monkeypatch):
    """An empty DATA_ROOT."""
    monkeypatch.setenv("DATA_ROOT", str(tmp_path))
    return tmp_path


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    monkeypatch.delenv("DATA_ROOT", raising=False)
    return FakeSlurm(tmp_path, monkeypatch)


def images(folder: Path, *names: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        Image.new("RGB", (8, 8)).save(folder / name)


def fill(folder: Path, classes=("n1", "n2"), val=1) -> None:
    for name in classes:
        images(folder / "train" / name, "a.jpg", "b.png")
        images(folder / "val" / name, *(f"{number}.jpg" for number in range(val)))


def toy(**changes) -> Published:
    known = Published(
        train=4, val=2, classes=2, order=order_of(("n1", "n2")), range="n1 … n2", val_per_class=1
    )
    return replace(known, **changes)


def subject(tmp_path, table=None, *, records=None, scale="paper", trained=()) -> Subject:
    """The sample table's jobs, with what was recorded and trained."""
    records = records or {}
    for key in trained:
        whole(tmp_path / key / "backbone.pt")
    table = table or sample.resolved()
    return Subject(
        plan=make_plan([table], records.keys(), tmp_path),
        scale=find_scale(scale),
        runs=tmp_path,
        records_folder=tmp_path / "records",
        records=records,
        recorded={key: e for key, e in table.evaluations.items() if key in records},
    )


def real(recipe: str, variant: str, scale="paper"):
    """A table of one cell, of a recipe and a protocol that exist."""
    table = sample.resolved()
    p = replace(table.pretrainings["m-1"], recipe=recipe, dataset="imagenet", scale=scale)
    p = replace(p, published_epochs=None, backbone=registry.recipe(recipe).backbone.name)
    e = replace(table.evaluations["knn1"], variant=variant, scale=scale)
    return replace(table, pretrainings={"m-1": p}, evaluations={"knn1": e}, cells=())


def whole(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("data.pkl", b"weights" * 100)


def damage(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[60] ^= 1
    path.write_bytes(content)


# data sets


def test_a_whole_data_set_is_counted_and_sampled(root, monkeypatch):
    fill(root / "imagenet")
    monkeypatch.setitem(inventory.PUBLISHED, "imagenet", toy())
    check = check_dataset("imagenet", "2 pretrainings")
    assert check.ok
    assert check.found == "4 + 2 images of 2 classes, 6 files read, for 2 pretrainings"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train": 5}, "train has 4 images, not 5"),
        ({"val": 3, "val_per_class": None}, "val has 2 images, not 3"),
        ({"classes": 3}, "train has 2 classes, not 3"),
        (
            {"order": order_of(("n2", "n1"))},
            "n1 … n2, are not in order the published ones (n1 … n2)",
        ),
        ({"val_per_class": 2}, "val has 1 images of class n1, not 2"),
    ],
)
def test_what_differs_from_the_published_set_is_named(root, monkeypatch, changes, message):
    fill(root / "imagenet")
    monkeypatch.setitem(inventory.PUBLISHED, "imagenet", toy(**changes))
    check = check_dataset("imagenet", "1 evaluation")
    assert not check.ok
    assert message in check.found
    assert check.mend.startswith("unpack imagenet again")


def test_a_missing_data_set_says_how_to_get_it(root):
    check = check_dataset("imagenet", "1 evaluation")
    assert not check.ok
    assert check.mend.startswith("register at image-net.org")


def test_an_unreadable_file_is_found(root):
    fill(root / "mine")
    (root / "mine" / "train" / "n2" / "b.png").write_bytes(b"\x89PNG no more")
    check = check_dataset("mine", "1 pretraining")
    assert not check.ok
    assert "n2/b.png is not a readable image" in check.found


def test_a_flat_val_folder_is_no_val_split(root):
    fill(root / "mine")
    images(root / "flat" / "val", "a.jpg")
    images(root / "flat" / "train" / "n1", "a.jpg")
    assert check_dataset("mine", "1 pretraining").ok
    check = check_dataset("flat", "1 pretraining")
    assert not check.ok
    assert "flat/val holds no images in class folders" in check.found


def test_classes_of_one_split_alone_are_named(root):
    fill(root / "mine")
    images(root / "mine" / "val" / "n3", "a.jpg")
    found = check_dataset("mine", "1 pretraining").found
    assert "train and val differ in 1 classes, n3 among them" in found


def coco_split(folder: Path, split: str, count: int, ids=(1, 2)) -> None:
    names = [f"{split}{number}.jpg" for number in range(count)]
    images(folder / f"{split}2017", *names)
    content = {
        "images": [{"id": n, "file_name": name} for n, name in enumerate(names)],
        "annotations": [],
        "categories": [{"id": number, "name": str(number)} for number in ids],
    }
    (folder / "annotations").mkdir(exist_ok=True)
    (folder / "annotations" / f"instances_{split}2017.json").write_text(json.dumps(content))


def test_coco_is_counted_without_parsing_its_annotations(root, monkeypatch):
    coco_split(root / "coco", "train", 3)
    coco_split(root / "coco", "val", 2)
    known = Published(train=3, val=2, classes=2, order=order_of(("1", "2")))
    monkeypatch.setitem(inventory.PUBLISHED, "coco", known)
    check = check_dataset("coco", "1 evaluation")
    assert check.ok
    assert check.found.startswith("3 + 2 images of 2 classes")
    (root / "coco" / "train2017" / "train1.jpg").unlink()
    check = check_dataset("coco", "1 evaluation")
    assert not check.ok
    assert "lists 3 images and" in check.found


def test_coco_annotations_cut_short_are_found(root):
    coco_split(root / "coco", "train", 1)
    coco_split(root / "coco", "val", 1)
    path = root / "coco" / "annotations" / "instances_val2017.json"
    path.write_text(path.read_text()[:-20])
    check = check_dataset("coco", "1 evaluation")
    assert not check.ok
    assert "is not a file of COCO instances" in check.found


def test_voc_is_looked_for_where_evaluations_look(root, monkeypatch):
    folder = root / "VOC2007"
    for part in ("trainval", "test"):
        images(folder / "JPEGImages", f"{part}.jpg")
        for name in ("cat", "dog"):
            (folder / "ImageSets" / "Main").mkdir(parents=True, exist_ok=True)
            (folder / "ImageSets" / "Main" / f"{name}_{part}.txt").write_text(f"{part} 1\n")
    known = Published(train=1, val=1, classes=2, order=order_of(("cat", "dog")))
    monkeypatch.setitem(inventory.PUBLISHED, "voc07", known)
    assert check_dataset("voc07", "1 evaluation").ok
    (folder / "JPEGImages" / "test.jpg").unlink()
    assert "lacks 1 of the 1 images" in check_dataset("voc07", "1 evaluation").found


def test_the_published_order_of_bundled_digits_and_of_a_tenth_of_them_holds():
    check = check_dataset("mnist5k@400", "1 evaluation")
    assert check.ok
    assert check.found.startswith("4,000 + 1,000 images of 10 classes")


def test_data_sets_are_those_of_the_recipe_and_of_the_protocol(tmp_path):
    table = real("imsvd:RESNET50", "coco_maskrcnn:imsvd_c4")
    assert subject(tmp_path, table).datasets == {
        "imagenet": "1 pretraining",
        "coco": "1 evaluation",
    }


def test_simclrs_lists_are_told_by_their_hash(root, monkeypatch):
    fill(root / "imagenet")
    monkeypatch.setitem(inventory.PUBLISHED, "imagenet", toy())
    content = b"n1_1.JPEG\nn2_7.JPEG\n"
    known = subsets.SIMCLR_LISTS[1.0]._replace(sha256=hashlib.sha256(content).hexdigest())
    monkeypatch.setitem(subsets.SIMCLR_LISTS, 1.0, known)
    asked = subject(root, real("imsvd:RESNET50", "semisup:vicreg_1"))
    missing = list(check_data(asked))
    assert [check.ok for check in missing] == [True, False]
    assert "1percent.txt is in none of" in missing[1].found
    (root / "imagenet" / "1percent.txt").write_bytes(content)
    assert list(check_data(asked))[1].found == "2 images on 1percent.txt"
    (root / "imagenet" / "1percent.txt").write_bytes(content[:-3])
    assert "so it names other images" in list(check_data(asked))[1].found


def test_imagenets_order_is_that_of_its_sorted_synsets():
    from timm.data import ImageNetInfo

    names = ImageNetInfo("imagenet-1k").label_names()
    assert inventory.PUBLISHED["imagenet"].order == order_of(names)
    assert inventory.PUBLISHED["imagenet"].classes == len(names)


def test_cifar10_is_looked_for_in_batches_or_folders(root):
    with pytest.raises(UserError, match="cifar-10-python"):
        data.locate("cifar10")
    (root / "cifar10" / "cifar-10-batches-bin").mkdir(parents=True)
    assert data.locate("cifar10@10000") == root / "cifar10"


# packages


def test_all_that_the_project_asks_for_is_installed(tmp_path):
    assert check_packages._check_required(ROOT / "pyproject.toml").ok
    path = tmp_path / "pyproject.toml"
    path.write_text('[project]\ndependencies = ["numpy>=99.0", "no-such-package>=1", "tyro>=0.1"]')
    check = check_packages._check_required(path)
    assert not check.ok
    assert "at least 99.0 is needed, no-such-package is not installed" in check.found


@pytest.mark.parametrize(
    ("torch", "vision", "ok", "message"),
    [
        ("2.15.0", "0.29.2", True, "torch 2.15.0, torchvision 0.29.2"),
        ("2.14.1", "0.29.2", False, "which is made for torch 2.15.0"),
        ("2.15.0+cu128", "0.29.2+cpu", False, "built for different devices"),
        ("2.15.0", None, False, "not both installed"),
    ],
)
def test_torch_and_torchvision_must_match(monkeypatch, torch, vision, ok, message):
    versions = {"torch": torch, "torchvision": vision}
    monkeypatch.setattr(check_packages, "_version", versions.get)
    monkeypatch.setattr(
        check_packages.importlib.metadata, "requires", lambda _: ["numpy", "torch==2.15.0"]
    )
    check = check_packages.check_torch()
    assert check.ok is ok
    assert message in check.found


def test_a_module_that_cannot_be_imported_says_why():
    assert check_packages._import_failure("json") == ""
    assert "No module named 'no_such_module'" in check_packages._import_failure("no_such_module")


def test_a_faiss_that_cannot_be_imported_is_named(monkeypatch):
    monkeypatch.setattr(check_packages, "_import_failure", lambda _: "")
    assert check_packages.check_faiss().ok
    monkeypatch.setattr(check_packages, "_import_failure", lambda _: "ImportError: libcudart.so")
    check = check_packages.check_faiss()
    assert (check.ok, check.found) == (False, "ImportError: libcudart.so")


@pytest.fixture
def detectron2(tmp_path, monkeypatch):
    """A package of that name, as pip would leave it."""
    (tmp_path / "detectron2").mkdir()
    (tmp_path / "detectron2" / "__init__.py").touch()
    info = tmp_path / "detectron2-0.6.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: detectron2\nVersion: 0.6\n")
    commit = {"commit_id": "02b5c4e295e990042a714712c21dc79b731e8833"}
    (info / "direct_url.json").write_text(json.dumps({"vcs_info": commit}))
    monkeypatch.syspath_prepend(tmp_path)
    return info / "direct_url.json"


def test_detectron2_is_imported_and_its_commit_compared(detectron2, monkeypatch):
    monkeypatch.setattr(check_packages, "_import_failure", lambda _: "")
    assert check_packages.check_detectron2().found == "0.6 at commit 02b5c4e"
    detectron2.write_text(json.dumps({"vcs_info": {"commit_id": "abcdef123"}}))
    check = check_packages.check_detectron2()
    assert check.ok
    assert "abcdef1, not 02b5c4e" in check.found


def test_detectron2_beside_a_new_setuptools_is_the_known_trap(detectron2, monkeypatch):
    failure = "ModuleNotFoundError: No module named 'pkg_resources'"
    monkeypatch.setattr(check_packages, "_import_failure", lambda _: failure)
    check = check_packages.check_detectron2()
    assert (check.ok, check.mend) == (False, "pip install 'setuptools<82'")


def test_only_plans_that_need_detectron2_look_for_it(tmp_path, monkeypatch):
    monkeypatch.setattr(check_packages, "_import_failure", lambda _: "")
    coco = subject(tmp_path, real("imsvd:RESNET50", "coco_maskrcnn:imsvd_c4"))
    names = [check.name for check in check_packages.check_packages(coco)]
    assert names == ["packages", "torch and torchvision", "detectron2"]
    knn = subject(tmp_path, real("imsvd:RESNET50", "knn:imsvd"))
    assert all(check.ok for check in check_packages.check_packages(knn))


# GPUs


@pytest.fixture
def nvidia(tmp_path, monkeypatch):
    """An nvidia-smi that lists four V100."""
    path = tmp_path / "tools" / "nvidia-smi"
    path.parent.mkdir()
    path.write_text('#!/bin/sh\nfor i in 1 2 3 4; do echo "Tesla V100-SXM2-32GB, 32768, 7.0"; done')
    path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{path.parent}:/usr/bin:/bin")


HERE = Site(name="local", slots=4, gpus=1)


def test_the_gpus_of_this_machine_are_named(nvidia, monkeypatch):
    gpus = check_gpus.this_machines()
    assert len(gpus) == 4
    assert gpus[0].describe() == "Tesla V100-SXM2-32GB, 34 GB, no bf16"


def test_a_batch_that_one_gpu_cannot_hold_says_how_many_could(nvidia, tmp_path, monkeypatch):
    monkeypatch.setattr(check_gpus.importlib.metadata, "version", lambda _: "2.15.0")
    asked = subject(tmp_path, real("imsvd:RESNET50", "knn:imsvd"))
    machine, batch = check_gpus.check_gpus(asked, HERE)
    assert machine.ok
    assert not batch.ok
    assert batch.found == "2048 images per GPU need about 205 GB, and it has 34"
    assert batch.mend.startswith("use --cluster with at least 6 GPUs")


def test_a_torch_without_cuda_beside_gpus_is_found(nvidia, tmp_path, monkeypatch):
    monkeypatch.setattr(check_gpus.importlib.metadata, "version", lambda _: "2.15.0+cpu")
    machine, _ = check_gpus.check_gpus(
        subject(tmp_path, real("moco_v2:RESNET50", "knn:imsvd")), HERE
    )
    assert not machine.ok
    assert "torch was built without CUDA" in machine.found


@pytest.mark.parametrize(("scale", "ok"), [("paper", False), ("cifar10", False), ("demo", True)])
def test_without_gpus_only_small_scales_are_well(tmp_path, monkeypatch, scale, ok):
    monkeypatch.setenv("PATH", "/nowhere")
    found = list(check_gpus.check_gpus(subject(tmp_path, scale=scale), replace(HERE, gpus=0)))
    assert [check.ok for check in found] == [ok]


def test_a_measured_peak_goes_before_the_published_one(tmp_path):
    recipe = registry.recipe("imsvd:RESNET50")
    cost = Cost(seconds=1.0, processes=32, gpus=32, peak_memory_bytes=10_400_000_000)
    record = replace(sample.record("x", 1.0), recipe=resolved(recipe), pretrain_cost=cost)
    assert check_gpus.needed_gb(recipe, 64.0, subject(tmp_path)) == pytest.approx(6.4)
    assert check_gpus.needed_gb(recipe, 64.0, subject(tmp_path, records={"x": record})) == 10.4


def on_cluster(tmp_path, text, table):
    own = tmp_path / "own.toml"
    own.write_text(text)
    site, nodes, answer = find_place("slurm", read_sections(own=own))
    return site, nodes, answer, subject(tmp_path, table)


def test_batches_on_a_cluster_divide_and_fit(slurm, tmp_path):
    table = real("imsvd:RESNET50", "knn:imsvd")
    text = '[slurm]\npartition = "main"\n[slurm.pretrain]\nnodes = {}\ngpus_per_node = {}\n'
    found = []
    for nodes, gpus in ((4, 8), (1, 8), (1, 3)):
        site, _, _, asked = on_cluster(tmp_path, text.format(nodes, gpus), table)
        found += check_gpus.check_gpus(asked, site)
    assert [check.ok for check in found] == [True, True, False]
    assert "about 26 GB (imsvd:RESNET50, 256 images per GPU), it has 16 or 32" in found[1].found
    assert found[2].found == "2048 images don't divide among 3 processes"
    slurm.answers("sinfo", "small*|up|infinite|4|64|512000|gpu:t4:8\n")
    site, _, _, asked = on_cluster(tmp_path, "[slurm.pretrain]\nnodes = 1\n", table)
    (check,) = check_gpus.check_gpus(asked, site)
    assert check.mend == "raise nodes × gpus_per_node 2-fold in clusters.toml"


# memory


def test_neighbours_of_imagenet_need_memory_for_every_job_at_once(tmp_path, monkeypatch):
    asked = subject(tmp_path, real("imsvd:RESNET50", "knn:imsvd"))
    monkeypatch.setattr(check_memory, "this_machines_gb", lambda: 64.0)
    (check,) = check_memory.check_memory(asked, HERE)
    assert (check.ok, check.found) == (True, "knn:imsvd takes 50 GB, there are 64")
    (check,) = check_memory.check_memory(asked, replace(HERE, slots=8))
    assert (check.ok, check.mend) == (False, "use --jobs 1 or a machine with more memory")
    linear = subject(tmp_path, real("imsvd:RESNET50", "linear:imsvd"))
    assert list(check_memory.check_memory(linear, HERE)) == []


def test_neighbours_on_a_cluster_need_their_mem_gb(slurm, tmp_path):
    table = real("imsvd:RESNET50", "knn:imsvd")
    for size, ok in ((64, True), (8, False)):
        text = f"[slurm.evaluate]\nmem_gb = {size}\n"
        site, _, _, asked = on_cluster(tmp_path, text, table)
        (check,) = check_memory.check_memory(asked, site)
        assert check.ok is ok


# folders, records, checkpoints


def test_a_folder_must_take_files_and_have_room(tmp_path):
    assert check_files.check_folder("runs", tmp_path / "new" / "runs", 0.001).ok
    assert not (tmp_path / "new").exists()
    full = check_files.check_folder("runs", tmp_path, 1e9)
    assert not full.ok
    assert "GB free and this plan takes up to 1,000,000,000.0" in full.found


def test_a_folder_that_refuses_files_is_found(tmp_path):
    (tmp_path / "file").touch()
    check = check_files.check_folder("runs", tmp_path / "file", 0.0)
    assert (check.ok, check.mend) == (False, "change that, or give another folder with --runs")


def test_the_paper_scale_needs_gigabytes_and_the_demo_does_not(tmp_path):
    assert check_files.needed_gb(subject(tmp_path)) == pytest.approx(3 * 4.3 + 5 * 0.05)
    assert check_files.needed_gb(subject(tmp_path, scale="demo")) < 1


def test_a_feature_cache_of_no_size_is_found(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert check_files._check_cache().ok
    monkeypatch.setenv("FEATURE_CACHE_GB", "much")
    check = check_files._check_cache()
    assert not check.ok
    assert check.mend.startswith("set it to 50")


def test_damaged_and_stale_records_are_told_apart(tmp_path):
    sample.record("lin1", 1.0).save(tmp_path)
    (tmp_path / "broken.json").write_text("{")
    records, damaged = check_files.read_records(tmp_path)
    assert (list(records), [path.name for path in damaged]) == (["lin1"], ["broken.json"])
    old = sample.record("old", 1.0, slot="slot-knn1")
    asked = subject(tmp_path, records=records | {"old": old})
    first, second = check_files.check_records(asked, damaged)
    assert not first.ok
    assert "broken.json" in first.found
    assert second.found.startswith("1 of 5; 1 are of an older version")
    assert len(list(check_files.check_records(asked, []))) == 1


def test_checkpoints_are_compared_with_their_checksums(tmp_path):
    asked = subject(tmp_path, trained=("m-1", "m-2"))
    good = list(check_files.check_checkpoints(asked))
    assert [check.found for check in good] == ["2, whole", "none"]
    damage(tmp_path / "m-2" / "backbone.pt")
    check = next(check_files.check_checkpoints(asked))
    assert not check.ok
    assert "m-2/backbone.pt" in check.found


def test_a_trunk_that_is_not_the_recorded_one_is_found(tmp_path):
    whole(tmp_path / "m-1" / "backbone.pt")
    sha256 = hashlib.sha256((tmp_path / "m-1" / "backbone.pt").read_bytes()).hexdigest()
    for wanted, ok in ((sha256, True), ("0" * 64, False)):
        record = replace(sample.record("lin1", 1.0), checkpoint={"sha256": wanted})
        asked = subject(tmp_path, records={"lin1": record}, trained=("m-1",))
        assert all(check.ok for check in check_files.check_checkpoints(asked)) is ok


def test_an_unfinished_run_needs_one_whole_checkpoint(tmp_path):
    folder = tmp_path / "m-1"
    folder.mkdir()
    digest = hashlib.sha256(b"state").hexdigest()[:16]
    (folder / f"step-000000010-{digest}.pt").write_bytes(b"state")
    (folder / f"step-000000020-{digest}.pt").write_bytes(b"damaged")
    asked = subject(tmp_path)
    assert list(check_files.check_checkpoints(asked))[1].found == "1, whole"
    (folder / f"step-000000010-{digest}.pt").write_bytes(b"damaged too")
    check = list(check_files.check_checkpoints(asked))[1]
    assert not check.ok
    assert check.found.startswith("2 damaged")


def test_earlier_failures_are_told_where_the_plan_has_the_job(tmp_path):
    note_failure(tmp_path, "knn1", "ran out of memory")
    note_failure(tmp_path, "another table's", "diverged")
    (check,) = check_files.check_failures(subject(tmp_path))
    assert check.ok
    assert check.found.endswith("among them knn1: ran out of memory")
    assert list(check_files.check_failures(subject(tmp_path / "new"))) == []


# SLURM


def test_every_kind_of_job_is_shown_to_slurm(slurm, tmp_path):
    table = real("imsvd:RESNET50", "knn:imsvd")
    site, nodes, answer, asked = on_cluster(tmp_path, '[slurm]\npartition = "main"\n', table)
    assert answer.found == "a controller answers: partitions main, debug, cpu, old; 32 GPUs of v100"
    found = list(check_requests(asked, site, nodes))
    assert [check.ok for check in found] == [True, True]
    assert found[0].found == "SLURM would take it (1 × 8 GPUs, 1440 min)"
    assert len(slurm.calls("sbatch")) == 2


def test_what_slurm_refuses_says_what_to_change(slurm, tmp_path):
    table = real("imsvd:RESNET50", "knn:imsvd")
    text = '[slurm]\npartition = "man"\n[slurm.evaluate]\npartition = "main"\naccount = "nobody"\n'
    site, nodes, _, asked = on_cluster(tmp_path, text, table)
    first, second = check_requests(asked, site, nodes)
    assert "no partition 'man': did you mean main?" in first.found
    assert second.found.startswith("SLURM refuses: Invalid account")
    assert second.mend == "change clusters.toml or give --set"


def test_a_silent_controller_fails_only_where_the_cluster_was_asked_for(slurm):
    slurm.answers("sinfo", "", 1)
    sections = read_sections()
    assert not find_place("slurm", sections)[2].ok
    site, _, answer = find_place(None, sections)
    assert (site.name, answer.ok) == ("local", True)
    assert "no SLURM controller answers" in answer.found


def test_without_sbatch_jobs_run_here(monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    site, _, answer = find_place(None, read_sections())
    assert (site.name, answer.ok) == ("local", True)
    with pytest.raises(UserError, match="unknown cluster 'slrum'"):
        find_place("slrum", read_sections())


def test_a_limit_is_compared_with_the_estimate_and_with_the_warning(slurm, tmp_path):
    table = real("imsvd:RESNET50", "knn:imsvd")
    p = replace(table.pretrainings["m-1"], epochs=1000)  # 8.5 h per 100 epochs on 32 V100
    table = replace(table, pretrainings={"m-1": p})
    site, _, _, asked = on_cluster(tmp_path, "", table)
    (check,) = check_limits(asked, site)
    assert check.found.startswith("the longest job takes about 14.2 days in 15 attempts")
    site, _, _, asked = on_cluster(tmp_path, "[slurm.pretrain]\ntimeout_min = 2\n", table)
    (check,) = check_limits(asked, site)
    assert not check.ok
    assert "told to save 120 s before the end of its 2 min" in check.found


# the command


@pytest.fixture
def doctor(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))

    def run(*arguments):
        folders = [f"--{name}={tmp_path / name}" for name in ("runs", "records")]
        status = reproduce.main(["doctor", *arguments, "--cluster", "local", *folders])
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return run


def test_the_demo_of_a_table_needs_nothing(doctor, tmp_path):
    status, out, _ = doctor("svib/table2", "--scale", "demo")
    lines = out.splitlines()
    assert status == 0, out
    assert lines[-1].endswith("checks of 1 tables at scale demo: all is well.")
    assert all(line.startswith("ok ") for line in lines[:-1])
    assert not (tmp_path / "runs").exists()


def test_missing_data_fails_and_json_says_the_same(doctor, tmp_path, monkeypatch):
    monkeypatch.delenv("DATA_ROOT", raising=False)
    monkeypatch.setenv("PATH", "/nowhere")
    status, out, _ = doctor("svib/table1", "--scale", "paper", "--json")
    answer = json.loads(out)
    assert (status, answer["ok"], answer["tables"]) == (1, False, ["svib/table1"])
    failing = {check["name"]: check for check in answer["checks"] if not check["ok"]}
    assert {"data set imagenet", "GPUs"} <= failing.keys()
    assert failing["data set imagenet"]["mend"] == "export DATA_ROOT=<folder of imagenet/>"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("tabel1", "--scale", "demo"), "unknown table 'tabel1'"),
        (("table1", "--scale", "dmo"), "unknown scale 'dmo'"),
        (("table1", "--scale", "demo", "--seeds", "0"), "--seeds 0 must be at least 1"),
        (("table1", "--scale", "demo", "--set", "slurm.qos=a"), "has no effect on cluster local"),
    ],
)
def test_a_mistake_is_one_sentence_and_status_2(doctor, arguments, message):
    status, _, error = doctor(*arguments)
    assert status == 2
    assert message in error
    assert len(error.splitlines()) == 1


def test_a_refusal_is_split_into_what_was_found_and_what_to_do():
    check = refused("x", UserError("a is wrong; b is too; do c."))
    assert (check.found, check.mend) == ("a is wrong; b is too", "do c")
    assert refused("x", UserError("all is lost.")).found == "all is lost"


def test_looking_for_data_needs_no_torch():
    code = "import sys, slurm.doctor, harness.inventory; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, cwd=ROOT).returncode == 0
