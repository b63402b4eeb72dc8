from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from figures.attention import Attention, cls_attention, concentration, make
from figures.drawing import save
from harness.backbone import ViT, build_backbone
from harness.checkpoint import save_backbone
from harness.errors import UserError
from harness.recipe import BackboneSpec

PATCH, SIDE = 8, 32
BRIGHT, DARK, ANY = 0, 1, 2  # what the three heads of the hand-built ViT look for


def vit(seed: int = 0) -> ViT:
    torch.manual_seed(seed)
    backbone = build_backbone(BackboneSpec(name="vit_demo"), SIDE)
    assert isinstance(backbone, ViT)
    return backbone.eval()


@torch.no_grad()
def hand_built() -> ViT:
    """A ViT whose heads attend to bright patches, to dark ones, and to all alike.

    A patch's token is its brightness along one direction; all blocks but the last one's attention
    leave tokens as they are, and the CLS token's query is a constant.
    """
    backbone = vit()
    trunk = backbone.trunk
    for parameter in trunk.parameters():
        parameter.zero_()
    trunk.patch_embed.proj.weight[0] = 1 / (3 * PATCH**2)  # the mean of the patch
    last = trunk.blocks[-1]
    last.norm1 = torch.nn.Identity()
    dim, each = backbone.dim, backbone.dim // last.attn.num_heads
    last.attn.qkv.bias[0:dim:each] = 100.0  # every query is 100 in its head's first place
    last.attn.qkv.weight[dim + BRIGHT * each, 0] = 1.0
    last.attn.qkv.weight[dim + DARK * each, 0] = -1.0
    return backbone


def test_a_hand_built_vit_attends_where_it_must():
    images = torch.zeros(2, 3, SIDE, SIDE)
    images[0, :, 8:16, 24:32] = 5.0  # row 1, column 3
    images[1] = 5.0
    images[1, :, 16:24, 0:8] = -5.0  # row 2, column 0
    found = cls_attention(hand_built(), images)
    assert found.shape == (2, 3, 4, 4)
    bright, dark = torch.zeros(4, 4), torch.zeros(4, 4)
    bright[1, 3] = dark[2, 0] = 1.0
    torch.testing.assert_close(found[0, BRIGHT], bright)
    torch.testing.assert_close(found[1, DARK], dark)
    # Seventeen tokens, one of them CLS, get the same of a head whose keys are all 0.
    torch.testing.assert_close(found[:, ANY], torch.full((2, 4, 4), 1 / 17))
    # The bright head of the second image shares out evenly among the 15 bright patches.
    torch.testing.assert_close(found[1, BRIGHT], (1 - dark) / 15)


def test_the_weights_are_those_that_the_block_itself_uses():
    backbone = vit()
    attention = backbone.trunk.blocks[-1].attn
    calls = []
    attention.register_forward_hook(lambda _, inputs, output: calls.append((*inputs, output)))
    images = torch.randn(2, 3, 24, 40, generator=torch.Generator().manual_seed(1))
    found = cls_attention(backbone, images)
    assert found.shape == (2, 3, 3, 5)
    ((tokens, output),) = calls
    with torch.no_grad():
        values = attention.qkv(tokens).unflatten(2, (3, 3, -1))[:, :, 2]
        patches = found.flatten(2)
        weights = torch.cat([1 - patches.sum(dim=2, keepdim=True), patches], dim=2)
        read = torch.einsum("nht,nthd->nhd", weights, values).flatten(1)
        torch.testing.assert_close(attention.proj(read), output[:, 0], atol=1e-5, rtol=1e-4)


def test_compactness_is_the_share_of_patches_that_hold_most_of_the_mass():
    point = torch.zeros(1, 2, 4, 5)
    point[:, :, 2, 2] = 0.3
    assert concentration(point) == pytest.approx(100 / 20)
    assert concentration(torch.full((1, 2, 4, 5), 0.01)) == pytest.approx(60)


def checkpoints(folder: Path) -> tuple[Path, Path]:
    paths = folder / "dino.pt", folder / "svib.pt"
    for seed, path in enumerate(paths):
        recipe = {"method": {"class": f"x.{path.stem.upper()}Config"}, "dataset": "toy"}
        save_backbone(vit(seed), path, recipe=recipe | {"epochs": 7})
    return paths


def test_two_checkpoints_are_drawn_beside_each_other(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    generator = np.random.default_rng(0)
    for name in "ab":
        pixels = generator.integers(256, size=(40, 50, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{name}.png")
    drawn = make(Attention(ckpt=checkpoints(tmp_path), images=str(folder)))
    grid = drawn.figure.axes
    assert len(grid) == 4 * 5  # images x checkpoints, by image, mean and three heads
    assert [grid[row * 5].get_ylabel() for row in range(4)] == ["DINO", "SVIB", "DINO", "SVIB"]
    assert grid[2].images[0].get_array().shape == (4, 4)
    assert drawn.text.splitlines()[2].startswith("DINO")
    png, svg = save(drawn, tmp_path)
    assert png.read_bytes().startswith(b"\x89PNG")
    assert png.name == "attention.png"  # a data set of nobody's scale
    assert "toy, 7 epochs" in svg.read_text()
    assert "DINO, SVIB" in drawn.description and "where the CLS token looks" in drawn.description


def test_what_cannot_be_looked_at_is_refused_in_one_sentence(tmp_path):
    path = tmp_path / "resnet.pt"
    save_backbone(build_backbone(BackboneSpec(name="resnet_tiny"), 32), path)
    with pytest.raises(UserError, match="holds a resnet_tiny, which has no attention; give a ViT"):
        make(Attention(ckpt=(path,)))
    with pytest.raises(UserError, match=r"30 x 32 px don't divide into patches of 8 px"):
        cls_attention(vit(), torch.zeros(1, 3, 30, 32))
    with pytest.raises(UserError, match=r"--label names 1 of 2 checkpoints"):
        make(Attention(ckpt=(path, path), label=("one",)))
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(UserError, match="holds no image files"):
        make(Attention(ckpt=checkpoints(tmp_path), images=str(empty)))
