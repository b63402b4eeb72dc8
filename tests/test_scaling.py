from pathlib import Path

import pytest

from benchmarks import scaling
from benchmarks.loads import crop_load, loss_products, step_load
from harness.recipe import BackboneSpec

PAGE = Path(__file__).parents[1] / "benchmarks" / "scaling.md"


def test_a_resnet50_takes_its_well_known_flop():
    crop = crop_load(BackboneSpec(name="resnet50"), 224)
    assert crop.forward == pytest.approx(2 * 4.09e9, rel=0.001)  # 4.09 G multiply-adds
    # backward twice as much, but for the first layer, whose input needs no gradient
    assert crop.training == pytest.approx(3 * crop.forward, rel=0.01)
    assert crop.training < 3 * crop.forward


def test_gram_matrices_are_cheaper_where_images_are_fewer_than_dimensions():
    assert loss_products("barlow_twins", 256, 8192) == (6 * 256 * 8192**2, 8 * 256**2 * 8192)
    assert loss_products("vicreg", 4096, 2048) == (8 * 4096 * 2048**2,) * 2
    assert loss_products("imsvd", 10, 20) == (6 * 10 * 400,) * 2


def test_gradients_of_imsvd_on_32_gpus_are_sent_once_round_the_ring():
    recipe = scaling.METHODS["IMSVD ResNet-50"]
    step = step_load(recipe, 32, plain=True)
    weights = 23_508_032 + 2048 * 8192 + 3 * 8192 + 8192 * 8160
    gradients = 2 * 31 / 32 * 4 * weights
    projections = 4 * 31 / 32 * 4 * 2048 * 8160
    channels = 26_560 + 8192
    statistics = 2 * channels * 4 * (2 * 31 + 4 * 31 / 32)
    assert step.wire == pytest.approx(gradients + projections + statistics)


def test_five_constants_give_fourteen_published_figures_to_four_percent():
    points = scaling.measured()
    assert len(points) == 7
    v100 = scaling.fit(points)
    for point in points:
        step = step_load(point.recipe, scaling.GPUS, plain=True)
        hours = v100.hours(step, scaling.steps(point.recipe))
        assert hours == pytest.approx(point.hours, rel=0.04), point.label
        assert v100.gigabytes(step) == pytest.approx(point.gigabytes, rel=0.04), point.label


def test_the_page_is_what_the_script_prints():
    assert PAGE.read_text() == scaling.report()
