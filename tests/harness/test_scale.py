import pytest

from baselines import dino, pseudo_label, vicreg
from harness.errors import UserError
from harness.scale import SCALES, find_scale, scale_recipe
from harness.views import IMAGENET_PIXELS
from methods import imsvd, svib


def test_the_papers_scale_changes_nothing():
    assert scale_recipe(imsvd.RESNET50, find_scale("paper")) is imsvd.RESNET50


def test_the_demo_shrinks_data_network_head_and_epochs_but_not_the_method():
    small = scale_recipe(imsvd.RESNET50, SCALES["demo"])
    assert (small.dataset, small.backbone.name) == ("mnist5k", "resnet_tiny")
    assert (small.epochs, small.batch_size) == (5, 128)
    assert small.method.projector == (256, 256)
    assert small.method.units == 16
    assert small.method.terms == imsvd.RESNET50.method.terms
    assert [view.size for view in small.views] == [32, 32]
    assert all(view.blur_p == 0 for view in small.views)
    assert small.views[0].pixels == IMAGENET_PIXELS


def test_vits_stay_vits_with_their_own_optimiser():
    small = scale_recipe(svib.VIT_SMALL, SCALES["cifar10"])
    assert small.backbone.name == "vit_tiny_4"
    assert small.optim.name == "adamw"
    assert small.method.means == 4096
    assert [view.size for view in small.views] == [32] * 2 + [16] * 6


def test_zero_epochs_stay_zero_and_one_never_becomes_none():
    from dataclasses import replace

    for epochs, expected in ((0, 0), (1, 1), (100, 1), (300, 2), (1000, 5)):
        recipe = replace(vicreg.RESNET50, epochs=epochs)
        assert scale_recipe(recipe, SCALES["demo"]).epochs == expected


def test_a_run_of_two_phases_keeps_both():
    small = scale_recipe(pseudo_label.RESNET50V2_1, SCALES["demo"])
    assert (small.method.first.epochs, small.epochs) == (1, 2)


def test_no_crop_of_a_small_image_is_less_than_a_fifth_of_it():
    for recipe in (dino.RESNET50, dino.VIT_SMALL, imsvd.RESNET50):
        for view in scale_recipe(recipe, SCALES["cifar10"]).views:
            assert view.scale[0] >= 0.2
            assert view.scale[1] > view.scale[0]


def test_an_unknown_scale_suggests_the_closest():
    with pytest.raises(UserError, match="unknown scale 'cifar': did you mean cifar10"):
        find_scale("cifar")
