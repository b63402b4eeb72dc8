import math

import pytest
import torch
from torch.nn import functional as F

from harness.backbone import build_backbone
from harness.errors import UserError
from harness.recipe import BackboneSpec, TrainingSize
from methods.imsvd import IMSVDConfig, discretise, imsvd_terms, joint_distribution
from tests.golden import losses_of
from tests.golden.inputs import waves


def one_hot_logits(codes: torch.Tensor, units: int) -> torch.Tensor:
    """Logits whose softmax picks `codes` (n, variables) with certainty."""
    return 1e4 * F.one_hot(codes, units).double().flatten(1)


def every_pair_of_codes(units: int) -> torch.Tensor:
    """Two variables that take each pair of values once: independent and uniform."""
    first, second = torch.meshgrid(torch.arange(units), torch.arange(units), indexing="ij")
    return torch.stack([first.flatten(), second.flatten()], dim=1)


def test_independent_uniform_one_hot_codes_reach_the_optimum_of_the_paper():
    z = one_hot_logits(every_pair_of_codes(5), 5)
    terms = imsvd_terms(z, z, units=5, temperature=1.0)
    assert terms["TI"].item() == pytest.approx(0, abs=1e-6)
    assert terms["DE"].item() == pytest.approx(-math.log(5), abs=1e-5)
    assert terms["OE"].item() == pytest.approx(-2 * math.log(5), abs=1e-5)


def test_collapsed_codes_have_no_entropy():
    z = one_hot_logits(torch.zeros(8, 3, dtype=torch.long), 4)
    terms = imsvd_terms(z, z, units=4, temperature=1.0)
    assert terms["DE"].item() == pytest.approx(0, abs=1e-5)
    assert terms["OE"].item() == pytest.approx(0, abs=1e-5)


def test_two_copies_of_one_variable_lose_half_of_the_joint_entropy():
    codes = torch.arange(6)[:, None].expand(6, 2)
    z = one_hot_logits(codes, 6)
    assert imsvd_terms(z, z, units=6, temperature=1.0)["OE"].item() == pytest.approx(
        -math.log(6), abs=1e-5
    )


def test_uniform_assignments_have_a_closed_form():
    z = torch.zeros(4, 3 * 5, dtype=torch.float64)
    terms = imsvd_terms(z, z, units=5, temperature=1.0)
    assert terms["TI"].item() == pytest.approx(math.log(5))
    assert terms["DE"].item() == pytest.approx(-2 * math.log(5) / 5)  # 5 entries of 1/25
    assert terms["OE"].item() == pytest.approx(-2 * math.log(5))


@pytest.mark.parametrize("case", losses_of("imsvd"), ids=lambda case: f"n={case['n']}")
def test_terms_and_gradients_equal_the_authors_code(case):
    shape = (case["n"], case["variables"] * case["units"])
    z1, z2 = (waves(*shape, phase=phase).requires_grad_() for phase in (0.1, 1.3))
    terms = imsvd_terms(z1, z2, units=case["units"], temperature=case["temperature"])
    sum(terms.values()).backward()
    for name in ("TI", "DE", "OE"):
        assert terms[name].item() == pytest.approx(case[name], rel=1e-9)
    for z, gradient in zip((z1, z2), case["gradients"], strict=True):
        torch.testing.assert_close(z.grad.flatten().tolist(), gradient, rtol=1e-6, atol=1e-12)


def test_renaming_the_units_of_a_variable_changes_nothing():
    z1, z2 = waves(9, 3 * 4, phase=0.1), waves(9, 3 * 4, phase=1.3)
    swap = torch.tensor([2, 0, 3, 1, 4, 5, 6, 7, 8, 9, 10, 11])
    plain = imsvd_terms(z1, z2, units=4, temperature=1.0)
    renamed = imsvd_terms(z1[:, swap], z2[:, swap], units=4, temperature=1.0)
    for name, value in plain.items():
        assert renamed[name].item() == pytest.approx(value.item(), rel=1e-12)


def test_the_joint_distribution_of_each_pair_of_variables_sums_to_one():
    p, q = (discretise(waves(9, 12, phase=t), units=4, temperature=1.0) for t in (0.1, 1.3))
    joint = joint_distribution(p, q)
    assert joint.shape == (3, 4, 3, 4)
    torch.testing.assert_close(joint.sum(dim=(1, 3)), torch.ones(3, 3, dtype=torch.float64))


def test_half_precision_projections_that_saturate_give_finite_gradients():
    z = (200 * waves(16, 4 * 8, phase=0.1)).half().requires_grad_()
    terms = imsvd_terms(z, z.flip(0), units=8, temperature=1.0)
    assert all(value.dtype == torch.float32 for value in terms.values())
    sum(terms.values()).backward()
    assert z.grad.isfinite().all()


def test_the_switches_of_table_8_choose_the_terms():
    z1, z2 = waves(9, 12, phase=0.1), waves(9, 12, phase=1.3)

    whole = imsvd_terms(z1, z2, units=4, temperature=1.0)
    assert set(whole) == {"TI", "DE", "OE"}
    for names in (("DE", "OE"), ("OE", "TI"), ("DE", "OE", "TIC")):
        terms = imsvd_terms(z1, z2, units=4, temperature=1.0, names=names)
        assert set(terms) == set(names)
        for name in set(names) & set(whole):
            assert terms[name].item() == whole[name].item()


def test_the_cross_entropy_of_two_views_is_the_mean_of_both_directions():
    z1, z2 = waves(9, 12, phase=0.1), waves(9, 12, phase=1.3)
    value = imsvd_terms(z1, z2, units=4, temperature=1.0, names=("TIC",))["TIC"]
    p, q = (F.softmax(z.view(-1, 4), dim=1) for z in (z1, z2))
    expected = (F.cross_entropy(z2.view(-1, 4), p) + F.cross_entropy(z1.view(-1, 4), q)) / 2
    assert value.item() == pytest.approx(expected.item(), rel=1e-6)


def test_a_projector_that_the_units_do_not_divide_names_the_next_width():
    backbone = build_backbone(BackboneSpec(name="resnet_tiny"), 32)
    with pytest.raises(UserError, match="8192 is not a multiple of units=80; use 8160"):
        IMSVDConfig(projector=(8192, 8192)).build(backbone, TrainingSize(20, 3))


def test_defaults_are_the_papers():
    config = IMSVDConfig()
    assert (config.projector, config.units, config.temperature) == ((8192, 8160), 80, 1.0)
    assert config.projector[-1] // config.units == 102
