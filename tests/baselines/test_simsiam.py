import pytest
import torch

from baselines.simsiam import RESNET50, SimSiam, SimSiamConfig, simsiam_terms
from harness.loader import Batch
from harness.optim import build_optimizer, set_schedules
from harness.recipe import Progress
from tests.baselines.tiny import TinyTrunk, fill
from tests.golden import golden
from tests.golden.inputs import waves

CASES = golden("simsiam.json")
LOSSES = [case for name, case in CASES.items() if name.startswith("loss_")]


def tiny() -> SimSiam:
    method = SimSiam(SimSiamConfig(projector=(5, 5, 4), predictor=3), TinyTrunk())
    fill(method.double().train())
    return method


@pytest.mark.parametrize("case", LOSSES, ids=lambda case: f"n={case['n']}")
def test_loss_and_gradients_equal_the_authors_code(case):
    p1, p2, z1, z2 = (
        waves(case["n"], case["d"], phase=phase).requires_grad_() for phase in (0.1, 1.3, 2.2, 3.1)
    )
    loss = simsiam_terms(p1, p2, z1, z2)["cosine"]
    loss.backward()
    assert loss.item() == pytest.approx(case["loss"], rel=1e-9)
    for p, gradient in zip((p1, p2), case["gradients"], strict=True):
        torch.testing.assert_close(p.grad.flatten().tolist(), gradient, rtol=1e-9, atol=1e-12)
    assert z1.grad is None and z2.grad is None


def test_a_network_of_the_same_weights_has_the_loss_and_gradients_of_the_authors_code():
    case, method = CASES["network"], tiny()
    views = [waves(8, 6, phase=phase) for phase in (0.1, 1.3)]
    batch = Batch(views, torch.full((8,), -1), torch.arange(8))
    loss = method.losses(batch, Progress(0.0, 10))["cosine"]
    loss.backward()
    assert loss.item() == pytest.approx(case["loss"], rel=1e-9)
    gradients = [p.grad.flatten().tolist() for p in method.parameters() if p.requires_grad]
    torch.testing.assert_close(gradients, case["gradients"], rtol=1e-9, atol=1e-12)


def test_predictions_along_their_targets_cost_minus_one_and_across_them_nothing():
    axes = torch.eye(4, dtype=torch.float64)
    assert simsiam_terms(axes, axes, axes, axes * 5)["cosine"].item() == pytest.approx(-1)
    across = axes.roll(1, dims=0)
    assert simsiam_terms(axes, axes, across, axes)["cosine"].item() == pytest.approx(-0.5)


def test_lengths_and_the_order_of_images_do_not_matter():
    inputs = [waves(6, 5, phase=phase) for phase in (0.1, 1.3, 2.2, 3.1)]
    plain = simsiam_terms(*inputs)["cosine"]
    other = simsiam_terms(*[x.flip(0) * (i + 2) for i, x in enumerate(inputs)])["cosine"]
    assert other.item() == pytest.approx(plain.item(), rel=1e-12)


def test_the_predictors_rate_stays_where_the_others_falls_to_zero():
    optimizer = build_optimizer(tiny(), RESNET50)
    for epoch, share in ((0.0, 1.0), (50.5, 0.5), (99.9, 0.5 * (1 - 0.99951))):
        set_schedules(optimizer, RESNET50, epoch)
        rates = {group["constant"]: group["lr"] for group in optimizer.param_groups}
        assert rates[True] == pytest.approx(0.1)
        assert rates[False] == pytest.approx(0.1 * share, rel=1e-2)
        assert {group["weight_decay"] for group in optimizer.param_groups} == {1e-4}


def test_the_projectors_last_bias_is_frozen_and_its_last_batch_norm_has_no_weights():
    method = tiny()
    assert not method.projector[-2].bias.requires_grad
    assert list(method.projector[-1].parameters()) == []


def test_defaults_are_the_papers():
    config = SimSiamConfig()
    assert (config.projector, config.predictor) == ((2048, 2048, 2048), 512)
    assert (RESNET50.epochs, RESNET50.batch_size, RESNET50.optim.lr) == (100, 512, 0.05)
    assert RESNET50.backbone.zero_init_residual
