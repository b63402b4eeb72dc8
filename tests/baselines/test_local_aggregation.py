import math
from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from baselines.local_aggregation import (
    _NORMALISER,
    RESNET50,
    LocalAggregation,
    LocalAggregationConfig,
    local_aggregation,
    nearest_rows,
    share_a_cluster,
)
from harness.backbone import build_backbone
from harness.errors import UserError
from harness.loader import Batch
from harness.memory import MemoryBank
from harness.method import TrainImages
from harness.nce import nce, similarities
from harness.recipe import BackboneSpec, Progress, TrainingSize
from harness.scale import SCALES
from tests.golden import golden
from tests.golden.inputs import waves

GOLDEN = golden("local_aggregation.json")
INDICES = torch.tensor([3, 17, 0, 31, 8])


def golden_bank(case: dict) -> torch.Tensor:
    return F.normalize(waves(case["images"], case["d"], phase=0.1), dim=1)


def golden_assignments(case: dict) -> torch.Tensor:
    place = torch.arange(case["images"])
    columns = [(place * (2 * h + 3) + h) % (7 + h) for h in range(case["clusterings"])]
    return torch.stack(columns, dim=1).int()


def test_the_metric_and_its_gradient_equal_the_authors_code():
    case = GOLDEN["local_aggregation"]
    bank = golden_bank(case)
    outputs = waves(case["n"], case["d"], phase=1.3).requires_grad_()
    z = F.normalize(outputs, dim=1)
    neighbours = nearest_rows(z, bank, case["background"])
    close = share_a_cluster(golden_assignments(case), INDICES, neighbours)
    assert 0 < close.sum() < close.numel()
    loss = local_aggregation(similarities(z, bank, neighbours) / 0.07, close)
    loss.backward()
    assert loss.item() == pytest.approx(case["loss"], rel=1e-10)
    torch.testing.assert_close(
        outputs.grad.flatten().tolist(), case["gradients"][0], rtol=1e-9, atol=1e-13
    )


def test_the_bank_moves_as_in_the_authors_code():
    case = GOLDEN["local_aggregation"]
    memory = MemoryBank(case["images"], case["d"]).double()
    memory.rows.copy_(golden_bank(case))
    z = F.normalize(waves(case["n"], case["d"], phase=1.3), dim=1)
    memory.update(INDICES, z, LocalAggregationConfig().bank_momentum)
    torch.testing.assert_close(
        memory.rows[INDICES].flatten().tolist(), case["rows"], rtol=1e-12, atol=1e-14
    )


def test_instance_discrimination_of_the_first_epochs_equals_the_authors_code():
    case = GOLDEN["instance_discrimination"]
    bank, n, m = golden_bank(case), case["n"], case["negatives"]
    noise = (torch.arange(n * m).view(n, m) ** 2 * 7 + 3) % case["images"]
    outputs = waves(n, case["d"], phase=1.3).requires_grad_()
    rows = torch.cat([INDICES[:, None], noise], dim=1)
    logits = similarities(F.normalize(outputs, dim=1), bank, rows) / 0.07
    loss = nce(logits, logits.new_tensor(_NORMALISER * len(bank)), len(bank))
    loss.backward()
    # the code adds 1e-7 to the denominators
    assert loss.item() == pytest.approx(case["loss"], rel=1e-6)
    torch.testing.assert_close(
        outputs.grad.flatten().tolist(), case["gradients"][0], rtol=1e-6, atol=1e-9
    )


def test_one_close_neighbour_of_four_equally_near_ones_costs_log_four():
    close = torch.tensor([[True, False, False, False]])
    assert local_aggregation(torch.zeros(1, 4), close).item() == pytest.approx(
        math.log(4), rel=1e-6
    )
    assert local_aggregation(torch.zeros(1, 4), close | True).item() < 1e-6


def test_without_a_close_neighbour_the_loss_is_finite():
    none = torch.zeros(2, 4, dtype=torch.bool)
    loss = local_aggregation(torch.zeros(2, 4, dtype=torch.float64), none)
    assert loss.item() == pytest.approx(-math.log(1e-7), rel=1e-9)


def test_adding_to_all_logits_of_an_image_or_reordering_its_background_changes_nothing():
    logits, close = waves(4, 9, phase=0.1), waves(4, 9, phase=0.7) > 0
    plain = local_aggregation(logits, close).item()
    order = torch.arange(9).flip(0)
    moved = logits[:, order] + torch.arange(4.0, dtype=torch.float64)[:, None]
    assert local_aggregation(moved, close[:, order]).item() == pytest.approx(plain, rel=1e-12)


def test_neighbours_are_close_if_any_clustering_puts_them_together():
    assignments = torch.tensor([[0, 0], [0, 1], [1, 0], [1, 1]], dtype=torch.int32)
    neighbours = torch.tensor([[0, 1, 2, 3], [3, 2, 1, 0]])
    close = share_a_cluster(assignments, torch.tensor([0, 3]), neighbours)
    assert close.tolist() == [[True, True, True, False], [True, True, True, False]]


@pytest.mark.parametrize("chunk", [3, 7, 20, 100])
def test_the_background_is_the_nearest_rows_however_the_bank_is_cut(chunk, monkeypatch):
    monkeypatch.setattr("baselines.local_aggregation._BANK_CHUNK", chunk)
    z, bank = (F.normalize(waves(n, 5, phase=p), dim=1) for n, p in ((4, 0.3), (40, 0.9)))
    found = nearest_rows(z, bank, 8).sort(dim=1).values
    expected = (z @ bank.T).argsort(dim=1, descending=True)[:, :8].sort(dim=1).values
    assert torch.equal(found, expected)


def small_method(images: int = 24) -> LocalAggregation:
    config = replace(
        LocalAggregationConfig(), width=8, background=6, clusters=4, clusterings=3, first_epochs=2
    )
    torch.manual_seed(0)
    backbone = build_backbone(BackboneSpec(name="resnet_tiny"), 16)
    return LocalAggregation(config, backbone, images).double()


def test_clusters_are_found_after_the_first_epochs_and_not_after_the_last():
    method = small_method()
    nothing = TrainImages(lambda n: iter(()), lambda: iter(()))
    own = method.assignments.clone()
    assert torch.equal(own, torch.arange(24).int()[:, None].expand(-1, 3))
    for epoch in (1.0, 5.0):
        method.after_epoch(Progress(epoch, 5), nothing)
        assert torch.equal(method.assignments, own)
    method.after_epoch(Progress(2.0, 5), nothing)
    assert method.assignments.max(dim=0).values.tolist() == [3, 3, 3]
    assert not torch.equal(method.assignments[:, 0], method.assignments[:, 1])
    assert "assignments" in method.state_dict()


def test_the_loss_changes_from_nce_to_aggregation_after_the_first_epochs():
    method = small_method()
    batch = Batch(
        [waves(4, 3, 16, 16, phase=0.2)], torch.full((4,), -1), torch.arange(4) * 5, seed=3
    )
    first, second = (method.losses(batch, Progress(epoch, 5)) for epoch in (1.9, 2.0))
    assert first["NCE"] > 0 and first["LA"] == 0
    assert second["NCE"] == 0 and second["LA"] > 0


def test_defaults_are_the_papers():
    config = LocalAggregationConfig()
    assert (config.background, config.clusters, config.clusterings) == (4096, 30000, 10)
    assert (config.width, config.temperature, config.bank_momentum) == (128, 0.07, 0.5)
    assert config.first_epochs == 10
    optim = RESNET50.optim
    assert (RESNET50.epochs, RESNET50.batch_size) == (200, 128)
    assert optim.lr * RESNET50.batch_size / 256 == 0.03
    assert [round(epoch, 2) for epoch in optim.milestones] == [152.06, 189.42]
    small = config.scaled(SCALES["cifar10-mini"])
    assert (small.clusters, small.background, small.first_epochs) == (1024, 1024, 1)


def test_more_clusters_than_images_are_refused():
    backbone = build_backbone(BackboneSpec(name="resnet_tiny"), 16)
    with pytest.raises(UserError, match=r"30000 clusters .* use at most 100 clusters"):
        LocalAggregationConfig().build(backbone, TrainingSize(images=100, classes=2))
