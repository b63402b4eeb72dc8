import math

import numpy as np
import pytest
import torch

from baselines.s4l_rotation import (
    RESNET50V2_1,
    RESNET50V2_10,
    S4LRotationConfig,
    rotated,
    s4l_rotation_terms,
)
from harness.backbone import build_backbone
from harness.loader import Batch
from harness.recipe import BackboneSpec, Progress, TrainingSize
from tests.golden.inputs import waves

LABELS = torch.tensor([1, 0, 2, -1, -1, -1])


def independent(logits: np.ndarray, rotations: np.ndarray, labels: list[int]) -> float:
    """Eq. 1 and 2 image by image, as semi_supervised/rotation.py @8f1cf05 averages them.

    TensorFlow 1 doesn't run here. Rows are grouped by image there and by rotation here.
    """

    def cost(row: np.ndarray, target: int) -> float:
        return math.log(np.exp(row).sum()) - row[target]

    n = len(labels)
    rows = [[(r * n + i, r) for r in range(4)] for i in range(n)]
    seen = [i for i in range(n) if labels[i] >= 0]
    other = [i for i in range(n) if labels[i] < 0]
    classes = np.mean([cost(logits[row], labels[i]) for i in seen for row, _ in rows[i]])
    turns = [
        np.mean([cost(rotations[row], r) for i in part for row, r in rows[i]])
        for part in (other, seen)
    ]
    return float(classes + 1.0 * np.mean(turns))


def test_loss_and_gradients_equal_an_independent_derivation():
    logits, rotations = waves(24, 3, phase=0.1), waves(24, 4, phase=1.3)
    inputs = [x.clone().requires_grad_() for x in (logits, rotations)]
    loss = sum(s4l_rotation_terms(*inputs, LABELS).values())
    loss.backward()
    arrays = [logits.numpy(), rotations.numpy()]
    assert loss.item() == pytest.approx(independent(*arrays, LABELS.tolist()), rel=1e-12)
    for which, tensor in enumerate(inputs):
        for place in ((0, 0), (5, 2), (8, 1), (23, 2)):
            values = []
            for step in (-1e-5, 1e-5):
                moved = [x.copy() for x in arrays]
                moved[which][place] += step
                values.append(independent(*moved, LABELS.tolist()))
            slope = (values[1] - values[0]) / 2e-5
            assert tensor.grad[place].item() == pytest.approx(slope, rel=1e-6, abs=1e-9)


def test_a_network_that_knows_nothing_pays_the_logarithms_of_classes_and_of_rotations():
    terms = s4l_rotation_terms(torch.zeros(24, 3), torch.zeros(24, 4), LABELS, weight=0.5)
    assert terms["cross_entropy"].item() == pytest.approx(math.log(3))
    assert terms["rotation"].item() == pytest.approx(0.5 * math.log(4))


def test_images_come_in_four_rotations_counter_clockwise():
    images = torch.arange(4.0).view(1, 1, 2, 2).expand(2, 3, 2, 2)
    found = rotated(images)
    assert found.shape == (8, 3, 2, 2)
    # rotate|: the image, its transpose after a flip, both flips, and a flip of its transpose
    expected = [[[0, 1], [2, 3]], [[1, 3], [0, 2]], [[3, 2], [1, 0]], [[2, 0], [3, 1]]]
    assert found[::2, 0].tolist() == expected


def test_turning_all_images_shifts_the_rotations_and_leaves_their_classes_alone():
    torch.manual_seed(0)
    backbone = build_backbone(BackboneSpec(name="resnet_tiny"), 16)
    method = S4LRotationConfig().build(backbone, TrainingSize(6, 3)).double()
    images = waves(6, 3, 16, 16, phase=0.4)
    found = [
        method.losses(Batch([x], LABELS, LABELS), Progress(0.0, 1))
        for x in (images, images.rot90(1, (2, 3)))
    ]
    one, other = ([terms[name].item() for terms in found] for name in ("cross_entropy", "rotation"))
    assert one[0] == pytest.approx(one[1], rel=1e-12)
    assert other[0] != pytest.approx(other[1], rel=1e-3)


def test_labelled_images_are_told_by_their_rotations_together():
    method = S4LRotationConfig().build(
        build_backbone(BackboneSpec(name="resnet_tiny"), 16), TrainingSize(6, 3)
    )
    assert method.classifier is method.head and method.rotation_head.out_features == 4


def test_defaults_are_the_papers():
    assert S4LRotationConfig().rotation == 1.0
    assert (RESNET50V2_10.labelled, RESNET50V2_1.labelled) == (10, 1)
    ten, one = RESNET50V2_10.optim, RESNET50V2_1.optim
    # .03 at 256 labelled and 256 other images
    assert ten.lr * RESNET50V2_10.batch_size / 256 == pytest.approx(0.03)
    assert (ten.weight_decay, one.weight_decay) == (1e-3, 1e-2)
    # 200 passes over 10 %, 1,000 over 1 %: 100,000 and 50,000 steps
    for recipe, steps in ((RESNET50V2_10, 100_000), (RESNET50V2_1, 50_000)):
        assert recipe.epochs * (1_281_167 // 512) == pytest.approx(steps, rel=2e-3)
        assert [m / recipe.epochs for m in recipe.optim.milestones] == [0.7, 0.8, 0.9]
