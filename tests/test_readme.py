"""Every command of the README runs (or, where it would train for hours, is planned)."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from harness import registry
from harness.backbone import build_backbone
from harness.checkpoint import save_backbone
from harness.recipe import BackboneSpec
from tests.figures.test_gradcam import checkpoint
from tests.results import sample

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
MODES = {"--plan", "--status", "--why", "--render", "--watch", "--cancel", "--cost"}


def commands(start: str) -> list[str]:
    """The README's command lines that begin so, without their comments.

    Blocks with a language are others': test_your_method.py runs those of the worked example.
    """
    blocks = re.findall(r"^```(\w*)\n(.*?)^```", README, flags=re.MULTILINE | re.DOTALL)
    plain = [text for language, text in blocks if not language]
    lines = [line.partition("#")[0].strip() for block in plain for line in block.splitlines()]
    return [line for line in lines if line.startswith(start)]


def run(arguments: list[str], folder: Path) -> str:
    """Run in an empty folder without data; returns stdout."""
    environment = {k: v for k, v in os.environ.items() if k != "DATA_ROOT"}
    environment["OMP_NUM_THREADS"] = "1"
    done = subprocess.run(
        [sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_readme_shows_the_two_commands_first():
    assert commands("make ")[:2] == ["make table1", "make test"]
    targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    assert {"table1", "test", "check"} <= set(targets)


@pytest.mark.parametrize("command", commands("python reproduce.py"))
def test_each_command_of_reproduce_is_understood(command, tmp_path_factory):
    folder = tmp_path_factory.getbasetemp()  # one for all commands: plans are cached there
    _, script, *arguments = shlex.split(command)
    if arguments[0] == "explain":
        paths = [sample.record(key, 70.0).save(folder) for key in ("A", "B")]
        output = run([str(ROOT / script), "explain", *map(str, paths)], folder)
        assert "nothing that would explain" in output
        return
    if arguments[0] == "report":
        page = folder / "report.html"
        run([str(ROOT / script), *arguments, "--out", str(page)], folder)
        assert "SVIB, Table 1" in page.read_text()
        return
    if arguments[0] == "figures":
        said = run([str(ROOT / script), *arguments, f"--out={folder}", f"--runs={folder}"], folder)
        assert "svib/fig4: not drawn: no run of dino:VIT_SMALL" in said
        return
    if "--ckpt" in arguments:
        arguments[arguments.index("--ckpt") + 1] = str(checkpoint(folder))
        assert ".png" in run([str(ROOT / script), *arguments, f"--out={folder}"], folder)
        return
    if "/fig" in arguments[0]:  # without a finished run there is nothing to draw
        assert "--ckpt" in run([str(ROOT / script), arguments[0], "--help"], folder)
        return
    if not MODES & set(arguments):
        arguments.append("--plan")
    folders = [f"--{name}={folder / name}" for name in ("runs", "records", "out")]
    output = run([str(ROOT / script), *arguments, *folders], folder)
    assert output.strip()


@pytest.mark.parametrize("command", commands("python protocols/"))
def test_each_command_of_a_protocol_runs(command, tmp_path):
    torch.manual_seed(0)
    backbone = build_backbone(BackboneSpec(name="resnet_tiny"), 32)
    _, script, *arguments = shlex.split(command)
    checkpoint = tmp_path / arguments[arguments.index("--ckpt") + 1]
    save_backbone(backbone, checkpoint)
    if "--dataset" in arguments:
        arguments[arguments.index("--dataset") + 1] = "mnist5k"
    arguments += ["--scale", "demo", *(["--epochs", "1"] if "knn" not in script else [])]
    output = run([str(ROOT / script), *arguments], tmp_path)
    assert re.search(r"(knn_20|linear_top1|semisup_top1) +\|? *\d", output), output


def test_the_recipe_named_for_torchrun_exists():
    (command,) = commands("torchrun")
    arguments = shlex.split(command)
    assert registry.recipe(arguments[arguments.index("harness.pretrain") + 1]).epochs > 0


def test_the_code_block_calls_a_loss_that_exists():
    from methods.imsvd import imsvd_terms

    assert "terms = imsvd_terms(z1, z2, units=80, temperature=1.0)" in README
    z = torch.randn(4, 160)
    assert set(imsvd_terms(z, z, units=80, temperature=1.0)) == {"TI", "DE", "OE"}
