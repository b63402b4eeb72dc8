"""The doctor's check of installed packages and of what they are built for."""

import json
from pathlib import Path

import pytest

from slurm import check_packages
from tests.slurm.doctor_toys import real, subject

ROOT = Path(__file__).parents[2]


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
