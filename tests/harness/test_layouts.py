"""Every layout that was released, written synthetically, gives the trunk it was made from."""

from __future__ import annotations

import dataclasses
import pickle
import sys
import types
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from harness.backbone import Backbone, build_backbone
from harness.errors import UserError
from harness.foreign import load_checkpoint
from harness.recipe import BackboneSpec
from harness.resnets import PLANS
from harness.views import IMAGENET_PIXELS, RAW_PIXELS, SWAV_PIXELS
from tests.harness.released import CASES, HEAD, TINY, haiku_of, lightning, slow, under

IMAGES = torch.sin(torch.arange(2 * 3 * 64 * 64).float() * 0.011).reshape(2, 3, 64, 64)


@pytest.fixture(scope="module", autouse=True)
def slim() -> Iterator[None]:
    """A quarter of ResNet-50's channels: layouts are about names, and 25 M weights take seconds.

    The full shapes are held by test_backbone.py.
    """
    narrow = {
        name: dataclasses.replace(plan, channels=16)
        for name, plan in PLANS.items()
        if plan.depth == 50 and plan.channels == 64
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, plan in narrow.items():
            patch.setitem(PLANS, name, plan)
        yield


@pytest.fixture(scope="module")
def trunks(slim: None) -> Callable[[str], Backbone]:
    """Each trunk is built once, with statistics that show whether they arrive."""
    built: dict[str, Backbone] = {}

    def trunk(name: str) -> Backbone:
        if name not in built:
            torch.manual_seed(len(built))
            built[name] = build_backbone(BackboneSpec(name=name), 64).eval()
            for key, value in built[name].trunk.state_dict().items():
                if "running_var" in key:
                    value.uniform_(0.5, 1.5)
                elif value.dim() == 1:
                    value.add_(torch.empty_like(value).uniform_(-0.1, 0.1))
            assert features(built[name]).std(dim=1).min() > 0.01
        return built[name]

    return trunk


def features(backbone: Backbone) -> Tensor:
    side = 64 if backbone.is_vit else 32
    with torch.inference_mode():
        return backbone(IMAGES[..., :side, :side])


@pytest.mark.parametrize("case", CASES)
def test_a_released_layout_gives_the_features_of_its_trunk(case, trunks, tmp_path):
    name, content, family, dropped = CASES[case]
    trunk = trunks(name)
    path = tmp_path / "released.pth"
    torch.save(content(trunk.trunk.state_dict()), path)
    found, info = load_checkpoint(path)
    assert torch.equal(features(found), features(trunk))
    assert (info.arch, info.family, info.unexpected) == (name, family, tuple(dropped.split()))
    counters = sum(key.endswith("tracked") for key in trunk.trunk.state_dict())
    assert info.matched + len(info.missing) == len(trunk.trunk.state_dict())
    assert len(info.missing) in (0, counters) and not info.partial
    pixels = {"swav": SWAV_PIXELS, "simclr": RAW_PIXELS}.get(family, IMAGENET_PIXELS)
    assert found.pixels == pixels
    assert f"normalised by mean {pixels.mean} and std {pixels.std}" in info.report()


def test_safetensors_are_read(tmp_path, trunks):
    save_file(trunks(TINY).trunk.state_dict(), tmp_path / "model.safetensors")
    found, info = load_checkpoint(tmp_path / "model.safetensors")
    assert torch.equal(features(found), features(trunks(TINY))) and info.arch == TINY


class Absent:
    """Classes of modules that can be made to be gone: as if they were not installed."""

    def __init__(self) -> None:
        self.modules: list[str] = []

    def add(self, module: str, name: str, kind: Any) -> Any:
        """Give `kind` the name `module.name`, so that pickles look for it there."""
        parts = module.split(".")
        for end in range(1, len(parts) + 1):
            part = ".".join(parts[:end])
            assert part not in sys.modules or part in self.modules
            sys.modules[part] = types.ModuleType(part)
            self.modules.append(part)
        kind.__module__, kind.__qualname__, kind.__name__ = module, name, name
        setattr(sys.modules[module], name, kind)
        return kind

    def forget(self) -> None:
        """Remove them all."""
        while self.modules:
            sys.modules.pop(self.modules.pop(), None)


@pytest.fixture
def absent() -> Iterator[Absent]:
    classes = Absent()
    yield classes
    classes.forget()


class Frozen:
    """Pickles as haiku's frozendict does."""

    def __init__(self, given: dict[str, Any]) -> None:
        self.given = given

    def __reduce__(self) -> tuple:
        return type(self), (self.given,)


def test_npids_pickled_memory_bank_needs_trust_and_is_then_left_out(tmp_path, trunks, absent):
    bank = absent.add("lib.NCEAverage", "NCEAverage", type("NCEAverage", (torch.nn.Module,), {}))()
    bank.register_buffer("memory", HEAD)
    state = trunks(TINY).trunk.state_dict() | {"fc.weight": HEAD, "fc.bias": HEAD}
    content = {"epoch": 200, "state_dict": under("module.", state), "lemniscate": bank}
    torch.save(content, tmp_path / "lemniscate_resnet50_update.pth")
    absent.forget()
    said = r"needs lib\.NCEAverage\.NCEAverage, and loading that may run any code; if you trust"
    with pytest.raises(UserError, match=said):
        load_checkpoint(tmp_path / "lemniscate_resnet50_update.pth")
    found, info = load_checkpoint(tmp_path / "lemniscate_resnet50_update.pth", trust=True)
    assert torch.equal(features(found), features(trunks(TINY)))
    assert (info.family, info.unexpected) == ("npid", ("fc",))


def test_hyper_parameters_of_a_library_that_is_not_installed_need_trust(tmp_path, trunks, absent):
    kind = absent.add("lightning_like.parsing", "AttributeDict", type("_", (dict,), {}))
    state = trunks(TINY).trunk.state_dict()
    content = lightning(under("backbone.", state)) | {"hyper_parameters": kind(lr=0.1)}
    torch.save(content, tmp_path / "last.ckpt")
    absent.forget()
    with pytest.raises(UserError, match=r"needs lightning_like\.parsing\.AttributeDict, and"):
        load_checkpoint(tmp_path / "last.ckpt")
    found, _ = load_checkpoint(tmp_path / "last.ckpt", trust=True)
    assert torch.equal(features(found), features(trunks(TINY)))


def test_byols_own_pickle_is_read_without_jax_and_haiku(tmp_path, trunks, absent):
    trunk = trunks("resnet50_same")
    frozen = absent.add("haiku._src.data_structures", "frozendict", type("_", (Frozen,), {}))
    experiment = absent.add("byol.byol_experiment", "_ByolExperimentState", type("_", (tuple,), {}))
    params, state = haiku_of(trunk.trunk.state_dict())
    target, _ = haiku_of(slow(trunk.trunk.state_dict()))
    nets = [frozen({k: frozen(v) for k, v in net.items()}) for net in (params, target, state)]
    content = {"experiment_state": experiment([*nets, nets[2], None]), "step": 9, "rng": None}
    path = tmp_path / "pretrain_res50x1.pkl"
    path.write_bytes(pickle.dumps(content, protocol=4))
    absent.forget()
    with pytest.raises(UserError, match="add --trust-checkpoint"):
        load_checkpoint(path)
    found, info = load_checkpoint(path, trust=True)
    assert torch.equal(features(found), features(trunk))
    assert (info.arch, info.family) == ("resnet50_same", "byol")
    assert info.unexpected == ("fc", "projector")
    assert 'pad as TensorFlow\'s "SAME" does' in info.report()


def test_dinos_linear_weights_are_refused_as_a_head_without_trunk(tmp_path):
    content = {
        "epoch": 100,
        "state_dict": {"module.linear.weight": HEAD, "module.linear.bias": HEAD},
    }
    torch.save(content, tmp_path / "dino_linearweights.pth")
    with pytest.raises(UserError, match=r"holds only a head \(module.linear.weight, .*no trunk"):
        load_checkpoint(tmp_path / "dino_linearweights.pth")


def test_two_trunks_of_which_none_is_a_known_copy_are_not_guessed_between(tmp_path, trunks):
    state = trunks(TINY).trunk.state_dict()
    torch.save(under("backbone.", state) | under("encoder.", slow(state)), tmp_path / "x.pth")
    with pytest.raises(UserError, match=r"it has unknown encoder\."):
        load_checkpoint(tmp_path / "x.pth")


@pytest.mark.parametrize(
    ("file", "said"),
    [
        ("swav_800ep.pth", "the file's name looks like swav's: if it is, add --family swav"),
        ("simclr.pth", "looks like simclr's: if it is, add --family simclr"),
        ("resnet.pth", "nothing in it says who trained it: if SwAV, Google's SimCLR or DeepMind's"),
    ],
)
def test_a_file_name_is_a_hint_in_the_report_and_changes_nothing(tmp_path, trunks, file, said):
    torch.save(trunks(TINY).trunk.state_dict(), tmp_path / file)
    found, info = load_checkpoint(tmp_path / file)
    assert said in info.report()
    assert found.pixels == IMAGENET_PIXELS and info.family == "torchvision"


def test_the_user_says_the_family_that_a_stripped_file_does_not_show(tmp_path, trunks):
    path = tmp_path / "stripped.pth"
    torch.save(trunks(TINY).trunk.state_dict(), path)
    found, info = load_checkpoint(path, family="swav")
    assert (found.pixels, info.family, info.arch) == (SWAV_PIXELS, "swav", TINY)
    assert "family swav, as told" in info.report() and "add --family" not in info.report()
    assert torch.equal(features(found), features(trunks(TINY)))
    assert info.identity != load_checkpoint(path)[1].identity
    assert load_checkpoint(path, family="augreg")[0].pixels.mean == (0.5, 0.5, 0.5)
    with pytest.raises(UserError, match=r"unknown family 'swaw': did you mean swav\?"):
        load_checkpoint(path, family="swaw")


def test_byols_padding_comes_with_the_family_or_the_arch(tmp_path, trunks):
    path = tmp_path / "stripped.pth"
    torch.save(trunks("resnet50_same").trunk.state_dict(), path)
    found, info = load_checkpoint(path, family="byol")
    assert info.arch == "resnet50_same" and "SAME" in info.report()
    assert torch.equal(features(found), features(trunks("resnet50_same")))
    info = load_checkpoint(path)[1]
    assert info.arch == "resnet50" and "SAME" not in info.report()
