"""Whether the Python packages that a plan's jobs import are there, match, and can be imported."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

from harness.detection import INSTALL
from slurm.arguments import ROOT
from slurm.checks import Check, Subject, passed

DETECTRON2 = "02b5c4e"  # the commit that the tests' golden values of detection come from
_KMEANS = ("pcl", "local_aggregation")  # methods that cluster by faiss
_REQUIREMENT = re.compile(r"(?P<name>[\w.-]+)>=(?P<least>[\d.]+)")
_TORCH = re.compile(r"torch\s*\(?==\s*(?P<version>[\d.]+)")
_IMPORT_SECONDS = 120  # detectron2's over a file server
_INSTALL = "pip install -e ."


def check_packages(subject: Subject, pyproject: Path = ROOT / "pyproject.toml") -> Iterator[Check]:
    """All that pyproject.toml asks for; torch and torchvision; then the engines of this plan."""
    yield _check_required(pyproject)
    yield check_torch()
    if any(p.recipe.partition(":")[0] in _KMEANS for p in subject.plan.pretrainings.values()):
        yield check_faiss()
    if any(getattr(p, "engine", "") == "detectron2" for p in subject.protocols.values()):
        yield check_detectron2()


def _check_required(pyproject: Path) -> Check:
    required = tomllib.loads(pyproject.read_text())["project"]["dependencies"]
    wrong = []
    for match in map(_REQUIREMENT.match, required):
        assert match is not None, required
        name, least = match["name"], match["least"]
        found = _version(name)
        if found is None:
            wrong.append(f"{name} is not installed")
        elif _numbers(found) < _numbers(least):
            wrong.append(f"{name} is {found} and at least {least} is needed")
    if wrong:
        return Check(name="packages", ok=False, found=", ".join(wrong), mend=_INSTALL)
    return passed("packages", f"all {len(required)} that pyproject.toml asks for")


def check_torch() -> Check:
    """One is compiled for one version of the other, and for CUDA or for none."""
    title = "torch and torchvision"
    torch, vision = _version("torch"), _version("torchvision")
    if torch is None or vision is None:
        return Check(name=title, ok=False, found="not both installed", mend=_INSTALL)
    requires = importlib.metadata.requires("torchvision") or []
    wanted = next((match["version"] for match in map(_TORCH.match, requires) if match), None)
    builds = {version.partition("+")[2] for version in (torch, vision)}
    found = f"torch {torch}, torchvision {vision}"
    if wanted is not None and torch.partition("+")[0] != wanted:
        found += f", which is made for torch {wanted}"
    elif len(builds - {""}) > 1:
        found += ", built for different devices"
    else:
        return passed(title, found)
    return Check(
        name=title, ok=False, found=found, mend="install both with one command of pytorch.org"
    )


def check_faiss() -> Check:
    """K-means, tried in a process of its own: a faiss for other CUDA libraries fails there."""
    failure = _import_failure("faiss")
    if failure:
        return Check(name="faiss", ok=False, found=failure, mend="pip install faiss-cpu")
    version = _version("faiss-cpu") or _version("faiss-gpu") or "its version isn't known"
    return passed("faiss", f"{version} is imported")


def check_detectron2() -> Check:
    """The engine of the papers' detectors, which no package registry has."""
    if importlib.util.find_spec("detectron2") is None:
        return Check(
            name="detectron2", ok=False, found="not installed, and COCO needs it", mend=INSTALL
        )
    commit = _commit("detectron2")
    version = f"{_version('detectron2') or '?'} at commit {commit[:7] or 'unknown'}"
    failure = _import_failure("harness.detection_detectron2")
    if "pkg_resources" in failure:  # gone from setuptools 82, and detectron2 imports it
        setuptools = _version("setuptools")
        found = f"{version} imports pkg_resources, which setuptools {setuptools} doesn't have"
        return Check(name="detectron2", ok=False, found=found, mend="pip install 'setuptools<82'")
    if failure:
        return Check(name="detectron2", ok=False, found=f"{version}: {failure}", mend=INSTALL)
    known = "" if commit.startswith(DETECTRON2) else f", not {DETECTRON2}, which it was tested with"
    return passed("detectron2", f"{version}{known}")


def _import_failure(module: str) -> str:
    """Why a module can't be imported, in a line; "" if it can."""
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH", ""))))
    command = [sys.executable, "-W", "ignore", "-c", f"import {module}"]
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            check=False,
            timeout=_IMPORT_SECONDS,
            env=os.environ | {"PYTHONPATH": path},
        )
    except subprocess.TimeoutExpired:
        return f"importing {module} takes more than {_IMPORT_SECONDS} s"
    last = done.stderr.strip().rpartition("\n")[2]
    return (last or f"importing {module} ends with {done.returncode}") if done.returncode else ""


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _commit(package: str) -> str:
    """The commit that pip installed a package from; "" where it didn't note one."""
    try:
        text = importlib.metadata.distribution(package).read_text("direct_url.json")
    except importlib.metadata.PackageNotFoundError:
        return ""
    return json.loads(text or "{}").get("vcs_info", {}).get("commit_id", "")


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version.partition("+")[0])[:3])
