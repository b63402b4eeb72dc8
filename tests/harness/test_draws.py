import numpy as np
import pytest

from harness.draws import permutation, subset, torch_seed, uniforms


def test_uniforms_have_the_moments_of_the_unit_interval():
    u = uniforms(0, 0, np.arange(20_000), 0, 20)
    assert u.shape == (20_000, 20) and u.dtype == np.float64
    assert u.min() >= 0 and u.max() < 1
    # 400,000 draws: the standard error of the mean is 0.00046, that of the variance 0.00012.
    assert abs(u.mean() - 1 / 2) < 0.0015
    assert abs(u.var() - 1 / 12) < 0.0005
    assert np.abs(u.mean(axis=0) - 1 / 2).max() < 0.008


def test_slots_views_epochs_seeds_and_neighbouring_images_are_uncorrelated():
    images = np.arange(20_000)
    base = uniforms(3, 5, images, 1, 12)
    columns = [*base.T]
    columns += [uniforms(*key, 2).T[0] for key in [(4, 5, images, 1), (3, 6, images, 1)]]
    columns += [uniforms(3, 5, images, 2, 1)[:, 0], uniforms(3, 5, images + 1, 1, 1)[:, 0]]
    correlation = np.corrcoef(columns) - np.eye(len(columns))
    assert np.abs(correlation).max() < 5 / np.sqrt(20_000)  # five standard errors


def test_every_byte_of_a_slot_is_uniform_by_chi_squared():
    u = uniforms(0, 0, np.arange(51_200), 0, 1)[:, 0]
    for shift in (1, 256, 256**2, 256**4):
        counts = np.bincount((u * 256 * shift % 256).astype(int), minlength=256)
        statistic = ((counts - 200) ** 2 / 200).sum()  # 255 degrees of freedom, sd 22.6
        assert 255 - 5 * 22.6 < statistic < 255 + 5 * 22.6


def test_a_row_depends_on_its_own_index_alone():
    whole = uniforms(1, 2, np.arange(100), 3, 7)
    assert np.array_equal(uniforms(1, 2, [57, 3, 99], 3, 7), whole[[57, 3, 99]])
    assert np.array_equal(uniforms(1, 2, [57], 3, 4)[0], whole[57, :4])


def test_the_numbers_are_pinned_so_that_old_runs_stay_reproducible():
    assert uniforms(0, 0, [0, 1], 0, 2).tolist() == [
        [0.7434741365502295, 0.538763050175552],
        [0.35961840973983306, 0.03834687068381948],
    ]
    assert permutation(0, 0, 8).tolist() == [1, 7, 6, 0, 4, 5, 2, 3]
    assert torch_seed(1, 2, 3) == 7426655061376854499


def test_a_permutation_holds_every_image_once_and_changes_with_epoch_and_seed():
    first = permutation(0, 0, 1_000)
    assert sorted(first.tolist()) == list(range(1_000))
    for other in (permutation(0, 1, 1_000), permutation(1, 0, 1_000)):
        assert (first == other).sum() < 10  # 1 expected
    assert permutation(0, 0, 0).tolist() == []


def test_a_subset_is_sorted_without_repeats_and_follows_seed_and_tag():
    drawn = subset(0, "held-out", 1_000, 100)
    assert len(set(drawn.tolist())) == 100 and (np.diff(drawn) > 0).all()
    assert np.array_equal(drawn, subset(0, "held-out", 1_000, 100))
    assert not np.array_equal(drawn, subset(0, "bank", 1_000, 100))
    assert not np.array_equal(drawn, subset(1, "held-out", 1_000, 100))
    assert subset(0, "all", 5, 5).tolist() == [0, 1, 2, 3, 4]


def test_a_subset_larger_than_the_whole_is_refused():
    with pytest.raises(ValueError, match="cannot draw 6 of 5"):
        subset(0, "x", 5, 6)


def test_torch_seeds_depend_on_every_word_and_their_order():
    seeds = {torch_seed(*words) for words in [(), (0,), (0, 0), (0, 1), (1, 0), (1, 0, 0)]}
    assert len(seeds) == 6
    assert all(0 <= seed < 2**63 for seed in seeds)
