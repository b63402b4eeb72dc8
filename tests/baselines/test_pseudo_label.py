from pathlib import Path

import pytest
import torch

from baselines.pseudo_label import RESNET50V2_1, RESNET50V2_10, PseudoLabelConfig, completed
from harness import dist
from harness.backbone import build_backbone
from harness.loader import Batch
from harness.method import TrainImages
from harness.optim import build_optimizer, set_schedules
from harness.recipe import BackboneSpec, Progress, TrainingSize
from harness.supervision import cross_entropy_of_labelled
from tests.gloo import run_on
from tests.golden.inputs import waves

SIZE = TrainingSize(images=11, classes=3)
IMAGES = waves(11, 3, 16, 16, phase=0.6)
FIRST = PseudoLabelConfig().first.epochs


def build():
    torch.manual_seed(0)
    backbone = build_backbone(BackboneSpec(name="resnet_tiny"), 16)
    method = PseudoLabelConfig().build(backbone, SIZE).double().eval()
    with torch.no_grad():  # so that not all images look alike to it
        method.head.bias.sub_(method.head(method.backbone(IMAGES)).mean(dim=0))
    return method.train()


def centres() -> list[Batch]:
    """Every image of the set once, spread over the processes, in two batches."""
    mine = torch.arange(11)[dist.rank() :: dist.world()]
    return [Batch([IMAGES[part]], torch.full((len(part),), -1), part) for part in mine.split(4)]


def train_images() -> TrainImages:
    return TrainImages(sample=lambda count: iter(()), centres=lambda: iter(centres()))


def test_true_labels_win_over_pseudo_labels_and_those_over_none():
    found = completed(torch.tensor([2, -1, -1, 0]), torch.tensor([1, 1, -1, 2]))
    assert found.tolist() == [2, 1, -1, 0]


def test_before_there_are_pseudo_labels_only_labelled_images_count():
    method, labels = build(), torch.tensor([1, -1, 2, -1])
    batch = Batch([IMAGES[:4]], labels, torch.arange(4))
    loss = method.losses(batch, Progress(0.0, 10))["cross_entropy"]
    with torch.no_grad():
        expected = cross_entropy_of_labelled(method.head(method.backbone(IMAGES[:4])), labels)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-12)
    method.labels[1] = 0
    more = method.losses(batch, Progress(0.0, 10))["cross_entropy"]
    assert more.item() != pytest.approx(loss.item(), rel=1e-6)


def test_the_end_of_the_first_phase_labels_every_image_and_starts_from_scratch():
    method = build()
    method.eval()
    with torch.no_grad():
        expected = method.head(method.backbone(IMAGES)).argmax(dim=1)
    method.train()
    before = {name: p.clone() for name, p in method.named_parameters()}
    torch.manual_seed(5)
    replaced = method.after_epoch(Progress(float(FIRST), 120), train_images())
    assert method.labels.tolist() == expected.tolist() and method.training
    assert len(set(expected.tolist())) > 1
    assert {id(p) for p in replaced} == {id(p) for p in method.parameters()}
    changed = {name for name, p in method.named_parameters() if not torch.equal(p, before[name])}
    assert {"head.weight", "backbone.trunk.conv1.weight"} <= changed
    assert not method.backbone.trunk.bn1.running_mean.any()  # moved by no image yet


@pytest.mark.parametrize(("epoch", "epochs"), [(FIRST - 1, 120), (FIRST + 1, 120), (FIRST, FIRST)])
def test_other_epochs_change_nothing(epoch, epochs):
    method = build()
    before = {name: value.clone() for name, value in method.state_dict().items()}
    assert method.after_epoch(Progress(float(epoch), epochs), train_images()) == []
    assert all(torch.equal(value, before[name]) for name, value in method.state_dict().items())


def relabelled() -> dict[str, torch.Tensor]:
    """The state after the first phase; each process's generator is its own, as in training."""
    method = build().to(memory_format=torch.channels_last)
    torch.manual_seed(7 + dist.rank())
    method.after_epoch(Progress(float(FIRST), 120), train_images())
    return dict(method.state_dict())


def test_two_processes_agree_on_pseudo_labels_and_on_the_new_start(tmp_path: Path):
    alone = relabelled()
    for found in run_on(2, relabelled, tmp_path):
        for name, value in alone.items():
            assert torch.equal(found[name], value), name


def test_the_rate_starts_again_with_the_second_network():
    method, rates = build(), []
    optimizer = build_optimizer(method, RESNET50V2_10)
    decays = []
    for epoch in (0.25, 13, 15, 19.9, 20, 22.5, 25, 50, 119):
        set_schedules(optimizer, RESNET50V2_10, epoch)
        rates.append(optimizer.param_groups[0]["lr"])
        decays.append(optimizer.param_groups[0]["weight_decay"])
    expected = [0.05, 0.1, 0.01, 1e-4, 0.0, 0.05, 0.1, 0.01, 1e-4]
    assert rates == pytest.approx(expected, abs=1e-12)
    assert decays == [1e-3] * 4 + [1e-4] * 5


def test_the_first_network_sees_labelled_images_and_the_second_all():
    config = PseudoLabelConfig()
    assert [config.pool(epoch) for epoch in (0, FIRST - 1, FIRST, 119)] == [
        "labelled",
        "labelled",
        "all",
        "all",
    ]


def test_defaults_are_the_papers():
    ten, one = RESNET50V2_10, RESNET50V2_1
    assert (ten.method.first.epochs, one.method.first.epochs) == (20, 10)
    assert (ten.epochs, one.epochs) == (20 + 100, 10 + 100)
    assert (ten.optim.lr, ten.optim.weight_decay, ten.optim.milestones) == (0.1, 1e-4, (30, 60, 90))
    assert (one.method.first.optim.lr, one.method.first.optim.weight_decay) == (0.01, 1e-2)
    assert (ten.batch_size, ten.labelled, one.labelled) == (256, 10, 1)
