import math

import pytest
import torch
from torch.nn import functional as F

from baselines.simclr import RESNET50_V1, RESNET50_V2, SimCLRConfig, nt_xent
from harness.backbone import build_backbone
from harness.recipe import BackboneSpec, TrainingSize
from tests.golden import losses_of
from tests.golden.inputs import waves


@pytest.mark.parametrize("case", losses_of("simclr"), ids=lambda case: f"n={case['n']}")
def test_loss_and_gradients_equal_the_authors_code(case):
    z1, z2 = (waves(case["n"], case["d"], phase=p).requires_grad_() for p in (0.1, 1.3))
    loss = sum(nt_xent(z1, z2, temperature=case["temperature"]).values())
    loss.backward()
    assert loss.item() == pytest.approx(case["loss"], rel=1e-9)
    for z, gradient in zip((z1, z2), case["gradients"], strict=True):
        torch.testing.assert_close(z.grad.flatten().tolist(), gradient, rtol=1e-9, atol=1e-12)


def test_the_loss_is_twice_the_papers_mean_over_all_views():
    views = F.normalize(torch.cat([waves(4, 6, phase=0.1), waves(4, 6, phase=1.3)]), dim=1)
    similar = (views @ views.T / 0.1).exp()
    costs = [
        math.log(sum(similar[i, k].item() for k in range(8) if k != i) / similar[i, (i + 4) % 8])
        for i in range(8)
    ]
    terms = nt_xent(waves(4, 6, phase=0.1), waves(4, 6, phase=1.3), temperature=0.1)
    assert sum(terms.values()).item() == pytest.approx(2 * sum(costs) / 8, rel=1e-12)


def test_equal_pairs_on_orthogonal_axes_cost_the_log_of_their_share():
    axes = torch.eye(5, dtype=torch.float64) * 3
    terms = nt_xent(axes, axes, temperature=0.1)
    # of the 2N - 1 other views one is the partner, at cosine 1, and the rest at cosine 0
    expected = math.log(1 + 8 * math.exp(-10))
    assert terms["view1"].item() == pytest.approx(expected, rel=1e-12)
    assert terms["view2"].item() == pytest.approx(expected, rel=1e-12)


def test_lengths_and_the_order_of_images_do_not_matter():
    z1, z2 = waves(7, 6, phase=0.1), waves(7, 6, phase=1.3)
    plain = nt_xent(z1, z2, temperature=0.1)
    other = nt_xent(z1.flip(0) * 2, z2.flip(0) * 3, temperature=0.1)
    for name, value in plain.items():
        assert other[name].item() == pytest.approx(value.item(), rel=1e-12)


def test_exchanging_the_views_exchanges_the_terms():
    z1, z2 = waves(7, 6, phase=0.1), waves(7, 6, phase=1.3)
    plain, other = nt_xent(z1, z2, temperature=0.1), nt_xent(z2, z1, temperature=0.1)
    assert plain["view1"].item() == pytest.approx(other["view2"].item(), rel=1e-12)


def test_the_projectors_only_trained_bias_is_of_its_hidden_batch_norms():
    backbone = build_backbone(BackboneSpec(name="resnet_tiny"), 16)
    method = SimCLRConfig(projector=(16, 16, 8)).build(backbone, TrainingSize(20, 3))
    biases = {name for name, p in method.projector.named_parameters() if "bias" in name}
    assert biases == {"1.bias", "4.bias", "7.bias"}
    assert [p.requires_grad for p in method.projector[7].parameters()] == [True, False]


def test_defaults_are_the_papers():
    assert SimCLRConfig().temperature == 0.1
    assert (RESNET50_V1.method.projector, RESNET50_V2.method.projector) == (
        (2048, 128),
        (2048, 2048, 128),
    )
    assert (RESNET50_V1.epochs, RESNET50_V2.epochs) == (1000, 800)
    for recipe, peak, decay in ((RESNET50_V1, 4.8, 1e-6), (RESNET50_V2, 6.4, 1e-4)):
        assert recipe.batch_size == 4096
        assert recipe.optim.name == "simclr_lars"
        assert recipe.optim.lr * 4096 / 256 == pytest.approx(peak)
        assert recipe.optim.weight_decay == decay
    brightness = [recipe.views[0].brightness for recipe in (RESNET50_V1, RESNET50_V2)]
    assert brightness == ["additive", "multiplicative"]
