import pytest
import torch

from harness import registry, train
from harness.backbone import build_backbone
from harness.errors import UserError
from harness.execution import Execution
from harness.recipe import BackboneSpec
from tests.harness.test_train import Killed, tiny


def weights(recipe, runs, execution, *, steps=9):
    """The method's state after some steps."""
    state = {}

    def on_step(run):
        if run.step == steps:
            state.update({k: v.clone() for k, v in run.method.state_dict().items()})
            raise Killed

    with pytest.raises(Killed):
        train.pretrain(recipe, 0, runs, execution, on_step=on_step)
    return state


def kept_bytes(trunk):
    """What the trunk keeps for its backward pass on two images, its own weights left out."""
    own = {p.data_ptr() for p in trunk.parameters()}
    sizes = {}

    def keep(tensor):
        if tensor.data_ptr() not in own:
            sizes[tensor.data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        trunk(torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)))
    return sum(sizes.values())


def test_recomputed_blocks_give_the_same_weights_to_the_last_bit(tiny_images, tmp_path):
    recipe = tiny(registry.recipe("dino:VIT_SMALL"), tiny_images)
    plain = weights(recipe, tmp_path / "plain", Execution())
    again = weights(recipe, tmp_path / "again", Execution(recompute=True))
    torch.testing.assert_close(again, plain, rtol=0, atol=0)


def test_recomputed_blocks_keep_their_inputs_only():
    trunk = build_backbone(BackboneSpec(name="vit_demo"), 32)
    everything = kept_bytes(trunk)
    trunk.recompute()
    # 4 blocks: an input each of (2, 17, 96) floats, and what the layers around the blocks keep
    assert 4 * 2 * 17 * 96 * 4 < kept_bytes(trunk) < everything / 5


def test_a_convnet_is_not_recomputed():
    trunk = build_backbone(BackboneSpec(name="resnet_tiny"), 32)
    with pytest.raises(UserError, match="is for ViTs: the batch norms of a resnet_tiny"):
        trunk.recompute()


def test_a_compiled_trunk_trains_under_the_same_names(tiny_images, tmp_path):
    # the compiler itself takes a minute: what it compiles runs as it stands here
    recipe = tiny(registry.recipe("dino:VIT_SMALL"), tiny_images)
    plain = weights(recipe, tmp_path / "plain", Execution(), steps=3)
    with torch.compiler.set_stance("force_eager"):
        compiled = weights(recipe, tmp_path / "compiled", Execution(compile=True), steps=3)
    torch.testing.assert_close(compiled, plain, rtol=0, atol=0)


def test_a_vit_is_compiled_block_by_block_and_a_convnet_as_a_whole():
    vit = build_backbone(BackboneSpec(name="vit_demo"), 32)
    vit.compile_trunk()
    assert all(block._compiled_call_impl for block in vit.trunk.blocks)
    assert vit.trunk._compiled_call_impl is None
    resnet = build_backbone(BackboneSpec(name="resnet_tiny"), 32)
    resnet.compile_trunk()
    assert resnet.trunk._compiled_call_impl


def test_a_run_goes_on_as_it_began(tiny_images, tmp_path, monkeypatch):
    monkeypatch.setattr(train, "LOG_EVERY", 1)
    recipe = tiny(registry.recipe("imsvd:RESNET50"), tiny_images)
    weights(recipe, tmp_path, Execution(save_every=0), steps=3)
    with pytest.raises(UserError, match="was trained without --compile; leave out --compile"):
        train.pretrain(recipe, 0, tmp_path, Execution(compile=True))
