import pytest

from harness import registry
from harness.errors import UserError
from methods import svib
from protocols import knn


def test_recipes_are_found_by_name_with_a_did_you_mean():
    assert registry.recipe("svib:VIT_SMALL") is svib.VIT_SMALL
    with pytest.raises(UserError, match="did you mean svib:VIT_SMALL"):
        registry.recipe("svib:VIT_SMAL")
    with pytest.raises(UserError, match="unknown method 'imsdv': did you mean imsvd"):
        registry.recipe("imsdv:RESNET50")


def test_variants_are_found_by_name_with_a_did_you_mean():
    assert registry.variant("knn:dino") is knn.DINO
    with pytest.raises(UserError, match="unknown variant 'knn:dion': did you mean knn:dino"):
        registry.variant("knn:dion")
    with pytest.raises(UserError, match="unknown protocol 'kn': did you mean knn"):
        registry.variant("kn:dino")


def test_files_are_the_registration():
    assert registry.names("protocol") == [
        *("classifier", "coco_maskrcnn", "knn", "linear", "onehot", "places205", "semisup"),
        "voc07_svm",
    ]
    assert registry.find("method", "svib") is svib.SVIBConfig
