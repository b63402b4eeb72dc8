import math
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from baselines.pcl import (
    PCL,
    RESNET50_V1,
    RESNET50_V2,
    PCLConfig,
    concentrations,
    draw_others,
    proto_nce,
)
from harness import dist
from harness.backbone import build_backbone
from harness.contrast import info_nce
from harness.errors import UserError
from harness.kmeans import Clusters
from harness.loader import Batch
from harness.memory import Queue
from harness.method import TrainImages
from harness.recipe import BackboneSpec, Progress, TrainingSize
from harness.scale import SCALES
from tests.gloo import run_on
from tests.golden import golden
from tests.golden.inputs import waves

GOLDEN = golden("pcl.json")
INDICES = torch.tensor([3, 17, 0, 28, 8])


def unit(*shape: int, phase: float) -> torch.Tensor:
    return F.normalize(waves(*shape, phase=phase), dim=1)


def test_both_terms_and_their_gradient_equal_the_authors_code():
    case = GOLDEN["pcl"]
    outputs = waves(case["n"], case["d"], phase=1.3).requires_grad_()
    query, key = F.normalize(outputs, dim=1), unit(case["n"], case["d"], phase=2.1)
    queue = unit(case["queue"], case["d"], phase=0.6)
    terms = [info_nce(query, key, queue, temperature=0.2)]
    prototypes = []
    for i, (k, others) in enumerate(zip(case["clusters"], case["others"], strict=True)):
        own = ((torch.arange(case["images"]) * (2 * i + 3) + i) % k)[INDICES]
        phi = 0.1 + 0.05 * waves(k, phase=0.2 + i).abs()
        centroids = unit(k, case["d"], phase=0.9 + i)
        prototypes.append(proto_nce(query, centroids, phi, own, torch.tensor(others)))
    terms.append(torch.stack(prototypes).mean())
    assert own.tolist().count(1) == 2  # a prototype of two images of the batch
    sum(terms).backward()
    assert [term.item() for term in terms] == pytest.approx(case["terms"], rel=1e-12)
    torch.testing.assert_close(
        outputs.grad.flatten().tolist(), case["gradients"][0], rtol=1e-10, atol=1e-14
    )


def test_the_queue_moves_as_in_the_authors_code():
    case = GOLDEN["pcl"]
    queue = Queue(case["queue"], case["d"]).double()
    queue.rows.copy_(unit(case["queue"], case["d"], phase=0.6))
    queue.enqueue(unit(case["n"], case["d"], phase=2.1))
    torch.testing.assert_close(queue.rows.flatten().tolist(), case["rows"], rtol=1e-12, atol=0)


def test_concentrations_equal_the_authors_code():
    case = GOLDEN["concentrations"]
    found = Clusters(
        torch.zeros(case["clusters"], 4),
        torch.tensor(case["assignments"], dtype=torch.int32),
        torch.tensor(case["distances"]),
    )
    sizes = found.assignments.bincount(minlength=case["clusters"])
    assert sizes.min() == 1  # of the clusters of one image
    phi = concentrations(found, smoothing=10, temperature=0.2)
    assert phi.tolist() == pytest.approx(case["concentrations"], rel=3e-7)  # theirs are floats
    assert phi.mean().item() == pytest.approx(0.2, rel=1e-12)


def test_a_concentration_is_the_mean_distance_over_the_log_of_the_size():
    found = Clusters(
        torch.zeros(2, 3),
        torch.tensor([0, 0, 1, 1, 1, 1], dtype=torch.int32),
        torch.tensor([1.0, 9, 4, 4, 4, 4]),
    )
    phi = concentrations(found, smoothing=10, temperature=0.1)
    a, b = 2 / math.log(12), 2 / math.log(14)
    low, high = b + 0.1 * (a - b), b + 0.9 * (a - b)  # percentiles of two values
    expected = [0.1 * 2 * high / (low + high), 0.1 * 2 * low / (low + high)]
    assert phi.tolist() == pytest.approx(expected, rel=1e-12)


def test_a_query_on_its_prototype_pays_for_the_rivals_by_their_concentrations():
    centroids = torch.eye(3, dtype=torch.float64)
    phi = torch.tensor([0.5, 1.0, 0.25], dtype=torch.float64)
    loss = proto_nce(centroids[:1], centroids, phi, torch.tensor([0]), torch.tensor([1, 2]))
    assert loss.item() == pytest.approx(math.log(1 + 2 * math.exp(-2)), rel=1e-12)


def test_the_order_of_rivals_and_rivals_that_belong_to_the_batch_change_nothing():
    query, centroids, phi = unit(3, 6, phase=0.3), unit(9, 6, phase=0.9), waves(9, phase=0.1).abs()
    own = torch.tensor([4, 0, 4])
    plain = proto_nce(query, centroids, phi, own, torch.tensor([1, 2, 7]))
    same = proto_nce(query, centroids, phi, own, torch.tensor([7, 4, 2, 0, 1]))
    assert same.item() == pytest.approx(plain.item(), rel=1e-12)


def test_rivals_are_other_clusters_without_repetition_and_follow_the_seed():
    own = torch.tensor([4, 0, 4, 9])
    draws = [
        draw_others(torch.Generator().manual_seed(seed), own, 20, 12).sort().values
        for seed in (1, 1, 2)
    ]
    assert draws[0].unique().numel() == 12 and not torch.isin(draws[0], own).any()
    assert torch.equal(draws[0], draws[1]) and not torch.equal(draws[0], draws[2])
    everything = draw_others(torch.Generator().manual_seed(1), own, 20, 20)
    assert everything.sort().values.tolist() == list(range(20))


def small_method() -> PCL:
    config = replace(
        PCLConfig(),
        hidden=(16,),
        width=8,
        queue=16,
        negative_prototypes=4,
        clusters=(4, 8),
        warmup_epochs=2,
        batch_norm_group=None,
    )
    torch.manual_seed(0)
    backbone = build_backbone(BackboneSpec(name="resnet_tiny"), 16)
    return PCL(config, backbone, 24).double().train()


def images(rank: int, world: int) -> TrainImages:
    """24 images; each process gets its share, in batches of 3."""
    everything, places = waves(24, 3, 16, 16, phase=0.4), torch.arange(24)
    parts = [places[rank::world][i : i + 3] for i in range(0, 24 // world, 3)]
    return TrainImages(lambda n: iter(()), lambda: (Batch([everything[p]], -p, p) for p in parts))


def trained(rank: int, world: int) -> dict[str, torch.Tensor]:
    """Buffers after a clustering, then terms and gradients of eight images."""
    method = small_method()
    method.after_epoch(Progress(2.0, 5), images(rank, world))
    buffers = {f"buffer {n}": b.clone() for n, b in method.clusterings.named_buffers()}
    dist.sync_batchnorm(method)
    places = torch.tensor([3, 1, 17, 9, 4, 12, 0, 8])[rank::world]
    views = [waves(8, 3, 16, 16, phase=phase)[rank::world] for phase in (0.4, 1.4)]
    terms = method.losses(Batch(views, -places, places, seed=5), Progress(2.0, 5))
    sum(terms.values()).backward()
    found = {f"term {name}": dist.all_reduce_mean(v.detach()) for name, v in terms.items()}
    trunk = [p.grad for p in method.student.parameters()]
    assert all(gradient is not None for gradient in trunk)
    gradients = torch.cat([dist.all_reduce_mean(g).flatten() for g in trunk])
    return buffers | found | {"gradients": gradients}


def trained_here() -> dict[str, torch.Tensor]:
    return trained(dist.rank(), dist.world())


def test_clusters_loss_and_gradients_are_the_same_on_two_processes(tmp_path):
    alone = trained(0, 1)
    assert alone["term ProtoNCE"] > 0
    for rank in run_on(2, trained_here, tmp_path):
        assert rank.keys() == alone.keys()
        for name, value in alone.items():
            torch.testing.assert_close(rank[name], value, rtol=1e-9, atol=1e-9, msg=name)


def test_prototypes_come_with_the_end_of_the_warm_up_and_not_after_the_last_epoch():
    method = small_method()
    for epoch in (1.0, 5.0):
        method.after_epoch(Progress(epoch, 5), images(0, 1))
        assert all(not one.centroids.any() for one in method._clusterings())
    places = torch.arange(8)
    batch = Batch([waves(8, 3, 16, 16, phase=p) for p in (0.4, 1.4)], -places, places, seed=5)
    terms = method.losses(batch, Progress(1.9, 5))
    assert terms["InfoNCE"] > 0 and terms["ProtoNCE"] == 0
    running = method.teacher.state_dict()
    running = {name: value.clone() for name, value in running.items()}
    method.after_epoch(Progress(2.0, 5), images(0, 1))
    assert all(m.training for m in method.teacher.modules() if isinstance(m, nn.BatchNorm2d))
    for name, value in method.teacher.state_dict().items():
        assert torch.equal(value, running[name]), name  # clustering moves no batch norm
    for one in method._clusterings():
        norms = one.centroids.norm(dim=1)
        torch.testing.assert_close(norms, torch.ones_like(norms), rtol=1e-6, atol=0)
        assert one.concentrations.mean().item() == pytest.approx(0.1, rel=1e-6)
    assert method.losses(batch, Progress(2.0, 5))["ProtoNCE"] > 0


def test_defaults_are_the_papers():
    first, second = RESNET50_V1.method, RESNET50_V2.method
    assert isinstance(first, PCLConfig) and isinstance(second, PCLConfig)
    assert first.clusters == (25000, 50000, 100000) and first.warmup_epochs == 20
    assert (first.temperature, first.hidden, first.smoothing) == (0.1, (), 10)
    assert (second.temperature, second.hidden) == (0.2, (2048,))
    assert (first.queue, first.negative_prototypes, first.key_momentum) == (16384, 16384, 0.999)
    for recipe in (RESNET50_V1, RESNET50_V2):
        assert (recipe.epochs, recipe.batch_size, recipe.optim.lr) == (200, 256, 0.03)
        assert len(recipe.views) == 2
    assert RESNET50_V1.optim.milestones == (120, 160)
    small = first.scaled(SCALES["cifar10-mini"])
    assert (small.clusters, small.warmup_epochs) == ((256, 512, 1024), 2)


def test_as_many_clusters_as_images_are_refused():
    backbone = build_backbone(BackboneSpec(name="resnet_tiny"), 16)
    with pytest.raises(UserError, match=r"100000 clusters .* use at most 99 clusters"):
        PCLConfig().build(backbone, TrainingSize(images=100, classes=2))
