"""What every registered method must do, whatever it is."""

from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch
from torch.nn.parallel import DistributedDataParallel

from harness import dist, registry
from harness.backbone import build_backbone
from harness.batchnorm import average_running_statistics, set_batchnorm
from harness.loader import Batch
from harness.recipe import (
    BackboneSpec,
    MethodConfig,
    Progress,
    Recipe,
    TrainingSize,
    fingerprint,
    pretrain_key,
    resolved,
)
from harness.scale import SCALES, scale_recipe
from harness.train import _Losses
from harness.training_images import UNSEEN
from tests.gloo import run_on
from tests.golden.inputs import waves
from tests.recipes import RECIPES, TRAINED

SIZE = TrainingSize(images=20, classes=3)
SCALE = replace(SCALES["demo"], width=32, prototypes=16, local_crops=1)


def build(recipe: Recipe) -> torch.nn.Module:
    """The method at a tiny size, in double precision, without stochastic depth."""
    recipe = scale_recipe(recipe, SCALE)
    torch.manual_seed(0)
    backbone = build_backbone(BackboneSpec(name=recipe.backbone.name), 16)
    return recipe.method.build(backbone, SIZE).double().train()


def make_batch(recipe: Recipe, rank: int = 0, world: int = 1) -> Batch:
    """Eight images of a set of `SIZE`, or a process's share of them."""
    sizes = {32: 16, 16: 8}
    views = []
    for i, view in enumerate(scale_recipe(recipe, SCALE).views):
        if view.patch_size:
            shape = (view.patch_grid**2, 3, view.patch_size, view.patch_size)
        else:
            shape = (3, sizes[view.size], sizes[view.size])
        views.append(waves(8, *shape, phase=0.1 + i)[rank::world])
    indices = torch.tensor([3, 1, 17, 9, 4, 12, 0, 8])[rank::world]
    labels = indices % SIZE.classes if recipe.labelled else torch.full_like(indices, UNSEEN)
    if 0 < recipe.labelled < 100:
        labels[len(labels) // 2 :] = UNSEEN
    return Batch(views, labels, indices, seed=5)


def test_every_method_of_the_papers_first_tables_is_registered():
    assert {"svib", "imsvd", "dino", "vicreg", "barlow_twins"} <= set(registry.names("method"))


@pytest.mark.parametrize("name", TRAINED)
def test_terms_are_finite_scalars_and_every_trainable_weight_gets_a_gradient(name):
    method = build(RECIPES[name])
    terms = method.losses(make_batch(RECIPES[name]), Progress(0.0, 10))
    assert terms and all(value.shape == () and value.isfinite() for value in terms.values())
    sum(terms.values()).backward()
    missing = [n for n, p in method.named_parameters() if p.requires_grad and p.grad is None]
    assert missing == []
    backbone = [p.grad.norm() for p in method.backbone.parameters()]
    assert torch.stack(backbone).max() > 0


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipes_method_is_its_config_with_the_papers_values(name):
    recipe = RECIPES[name]
    assert isinstance(recipe.method, MethodConfig)
    assert recipe.method == type(recipe.method)(
        **{f.name: getattr(recipe.method, f.name) for f in fields(recipe.method)}
    )
    few_labels = 0 < recipe.labelled < 100  # many passes over these make few epochs
    assert recipe.name and recipe.source
    assert recipe.epochs == 0 or recipe.epochs >= (10 if few_labels else 90)
    assert scale_recipe(recipe, SCALES["paper"]) is recipe


@pytest.mark.parametrize("name", TRAINED)
def test_a_state_dict_restores_the_method(name):
    method, other = build(RECIPES[name]), build(RECIPES[name])
    batch = make_batch(RECIPES[name])
    sum(method.losses(batch, Progress(0.0, 10)).values()).backward()
    method.after_step(Progress(0.0, 10))
    with torch.no_grad():
        for p in method.parameters():
            p.mul_(1.01)
    other.load_state_dict(method.state_dict())
    progress = Progress(1.0, 10)
    for key, value in method.losses(batch, progress).items():
        assert other.losses(batch, progress)[key].item() == pytest.approx(value.item(), rel=1e-12)


def losses_and_gradients(name: str) -> dict[str, torch.Tensor]:
    """On this process's share of 8 images, through DDP where there are several processes."""
    recipe = RECIPES[name]
    method = build(recipe)
    batch = make_batch(recipe, dist.rank(), dist.world())
    set_batchnorm(method, method.batch_norm_group, len(batch.indices) * dist.world())
    losses: torch.nn.Module = _Losses(method)
    if dist.world() > 1:
        losses = DistributedDataParallel(losses, broadcast_buffers=False)
    terms = losses(batch, Progress(0.0, 10))
    sum(terms.values()).backward()
    method.after_step(Progress(0.0, 10))
    average_running_statistics(method)
    found = {f"term {key}": dist.all_reduce_mean(v.detach()) for key, v in terms.items()}
    found |= {f"gradient {n}": p.grad for n, p in method.named_parameters() if p.grad is not None}
    return found | {f"buffer {n}": b for n, b in method.named_buffers()}


def all_losses_and_gradients() -> dict[str, dict[str, torch.Tensor]]:
    return {name: losses_and_gradients(name) for name in TRAINED}


@pytest.fixture(scope="module")
def on_two_processes(tmp_path_factory) -> list:
    return run_on(2, all_losses_and_gradients, Path(tmp_path_factory.mktemp("gloo")))


@pytest.mark.parametrize("name", TRAINED)
def test_loss_gradient_and_buffers_are_those_of_the_global_batch_on_two_processes(
    name, on_two_processes
):
    alone = losses_and_gradients(name)
    for rank in on_two_processes:
        assert rank[name].keys() == alone.keys()
        for key, value in alone.items():
            error = (rank[name][key] - value).abs().max()
            assert error <= 1e-9 * max(1.0, float(value.abs().max())), (key, float(error))


def test_fingerprints_ignore_names_and_follow_settings():
    recipe = next(iter(RECIPES.values()))
    assert fingerprint(replace(recipe, name="x", source="y"), 0) == fingerprint(recipe, 0)
    assert fingerprint(replace(recipe, epochs=7), 0) != fingerprint(recipe, 0)
    assert fingerprint(recipe, 1) != fingerprint(recipe, 0)
    assert pretrain_key(recipe, 0).endswith(fingerprint(recipe, 0))


def test_an_option_added_later_leaves_the_fingerprint_alone_until_it_is_used():
    recipe = next(iter(RECIPES.values()))
    assert "labelled" not in resolved(recipe)
    assert fingerprint(replace(recipe, labelled=0.0)) == fingerprint(recipe)
    assert fingerprint(replace(recipe, labelled=1.0)) != fingerprint(recipe)


def test_a_new_version_of_a_method_changes_the_fingerprint_but_not_the_slot(monkeypatch):
    recipe = next(iter(RECIPES.values()))
    before = fingerprint(recipe), fingerprint(recipe, versions=False)
    monkeypatch.setattr(type(recipe.method), "version", 99)
    assert fingerprint(recipe) != before[0]
    assert fingerprint(recipe, versions=False) == before[1]
