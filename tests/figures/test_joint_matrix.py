from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch

from figures.drawing import save
from figures.joint_matrix import Assignments, JointMatrix, draw, joint_matrix, make, means
from harness import views
from harness.backbone import build_backbone
from harness.checkpoint import save_backbone
from harness.errors import UserError
from harness.recipe import BackboneSpec, TrainingSize, resolved
from harness.views import shrink_views
from methods.imsvd import IMSVDConfig

UNITS = 3


def one_hot_code(variables: int) -> torch.Tensor:
    """Every combination of units once: independent, uniform, one-hot variables."""
    codes = torch.tensor(list(itertools.product(range(UNITS), repeat=variables)))
    return torch.nn.functional.one_hot(codes, UNITS).float()


def test_a_one_hot_code_gives_the_uniform_matrix():
    p = one_hot_code(3)
    joint = joint_matrix([Assignments(p, p)], 2)
    assert joint.shape == (2, UNITS, 2, UNITS)
    for first, second in itertools.product(range(2), repeat=2):
        diagonal, even = torch.eye(UNITS) / UNITS, torch.full((UNITS, UNITS), 1 / UNITS**2)
        expected = diagonal if first == second else even
        torch.testing.assert_close(joint[first, :, second], expected.double())
    found = means(joint)
    assert found["diagonal of the diagonal blocks"] == pytest.approx((1 / 3, 1 / 3))
    assert found["rest of the diagonal blocks"] == (0.0, 0.0)
    assert found["off-diagonal blocks"] == pytest.approx((1 / 9, 1 / 9))


def test_rows_are_the_first_views_and_columns_the_seconds():
    p = torch.tensor([[[1.0, 0.0], [0.2, 0.8]]])
    q = torch.tensor([[[0.3, 0.7], [0.0, 1.0]]])
    joint = joint_matrix([Assignments(p, q)], 2)
    torch.testing.assert_close(
        joint[0, :, 0], torch.tensor([[0.3, 0.7], [0, 0]], dtype=torch.double)
    )
    torch.testing.assert_close(
        joint[1, :, 0], torch.tensor([[0.06, 0.14], [0.24, 0.56]], dtype=torch.double)
    )


def test_a_smaller_last_batch_weighs_by_its_images():
    p = one_hot_code(2)
    q = p.flip(0)
    whole = joint_matrix([Assignments(p, q)], 2)
    parts = [Assignments(p[:7], q[:7]), Assignments(p[7:], q[7:])]
    torch.testing.assert_close(joint_matrix(parts, 2), whole)
    assert whole.sum(dim=(1, 3)).flatten().tolist() == pytest.approx([1.0] * 4)
    with pytest.raises(UserError, match="there are none"):
        joint_matrix([], 2)


def checkpoint(folder: Path, *, projector: bool = True) -> Path:
    torch.manual_seed(0)
    backbone = build_backbone(BackboneSpec(name="resnet_tiny"), 32)
    config = IMSVDConfig(projector=(24, 12), units=4)
    method = config.build(backbone, TrainingSize(images=8, classes=2))
    recipe = {
        "dataset": "mnist5k",
        "epochs": 31,
        "views": [resolved(view) for view in shrink_views(views.IMSVD, {224: 32})],
    }
    path = folder / "backbone.pt"
    kept = method.own_projector if projector else None
    save_backbone(backbone, path, projector=kept, recipe=recipe)
    return path


def test_a_checkpoint_becomes_a_png_and_an_svg_that_say_what_was_measured(tmp_path):
    args = JointMatrix(ckpt=checkpoint(tmp_path), images=130, out=tmp_path)
    drawn = make(args)
    assert drawn.figure.axes[0].images[0].get_array().shape == (12, 12)  # 3 variables, not 5
    png, svg = save(drawn, args.out)
    assert png.read_bytes().startswith(b"\x89PNG")
    assert (png.name, svg.name) == ("joint_matrix.demo.png", "joint_matrix.demo.svg")
    assert "mnist5k train, 130 images, 31 epochs" in svg.read_text()
    assert "off-diagonal blocks" in drawn.text
    again = save(make(args), tmp_path / "again")[1]
    assert again.read_text() == svg.read_text()


def test_the_matrix_is_drawn_block_by_block():
    p = one_hot_code(2)
    figure = draw(joint_matrix([Assignments(p, p)], 2), Assignments(p[0], p[1]))
    matrix = figure.axes[0].images[0].get_array()
    assert matrix.shape == (6, 6)
    torch.testing.assert_close(torch.from_numpy(matrix[:3, :3]), torch.eye(3).double() / 3)
    assert [tick.get_text() for tick in figure.axes[0].get_xticklabels()] == ["v1", "v2"]


def test_a_trunk_without_variables_and_a_figure_of_none_are_refused(tmp_path):
    with pytest.raises(UserError, match="--variables 0 shows nothing; ask for at least 1"):
        make(JointMatrix(ckpt=checkpoint(tmp_path), variables=0))
    with pytest.raises(UserError, match="without a projector"):
        make(JointMatrix(ckpt=checkpoint(tmp_path, projector=False)))
