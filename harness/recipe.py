"""What to pretrain, as frozen data: Recipe, Optim, MethodConfig, and the fingerprint of them."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple, Self

from harness.views import View

if TYPE_CHECKING:
    from harness.backbone import Backbone
    from harness.method import Method
    from harness.scale import Scale

BASE_BATCH = 256  # the batch size that learning rates are quoted for (linear rule)


def unidentified(default: Any = dataclasses.MISSING) -> Any:
    """A dataclass field that may change without changing what is computed (a name, a citation)."""
    return field(default=default, metadata={"identity": False})


class Progress(NamedTuple):
    """Where a training run stands."""

    epoch: float  # epochs done, fractional within an epoch
    epochs: int  # epochs in all

    @property
    def fraction(self) -> float:
        """Share of the run that is done, in [0, 1]."""
        return self.epoch / self.epochs


@dataclass(frozen=True, kw_only=True)
class BackboneSpec:
    """A trunk by name (see `harness.backbone`) and how it is initialised."""

    name: str  # resnet50, resnet18, resnet18_cifar, vit_small_16, …
    drop_path: float = 0.0  # stochastic depth of a ViT student
    zero_init_residual: bool = False  # ResNets: start every residual branch at zero


@dataclass(frozen=True, kw_only=True)
class Reading:
    """Which features of a frozen trunk an evaluation reads; the default is what `dim` counts."""

    last_blocks: int = 1  # ViTs: CLS tokens of how many last blocks, each through the final norm
    stage: Literal["conv1", "layer1", "layer2", "layer3", "layer4"] = "layer4"  # of a ResNet
    pool: tuple[int, int, int] | None = None  # ResNets: side, stride and padding of an average
    # pooling of the stage's map, flattened; None: over the whole map


@dataclass(frozen=True, kw_only=True)
class Optim:
    """Optimiser and schedules: linear warm-up, then cosine, stepped every iteration."""

    name: Literal["adamw", "sgd", "lars"]
    lr: float  # peak at batch size 256; the peak used is lr * batch_size / 256
    final_lr: float = 0.0  # absolute, at the last step
    bias_lr: float | None = None  # like lr, for 1-D parameters; None: the same as lr
    momentum: float = 0.9  # SGD and LARS
    weight_decay: float = 0.0  # never on 1-D parameters
    final_weight_decay: float | None = None  # reached by a cosine; None: constant
    warmup_epochs: float = 10.0
    clip_grad: float | None = None  # largest gradient norm of each parameter, as DINO clips


@dataclass(frozen=True, kw_only=True)
class MethodConfig:
    """Hyper-parameters of a method, with its paper's values as defaults; one subclass a file."""

    version: ClassVar[int] = 1  # bump when numbers may change
    has_teacher: ClassVar[bool] = False  # whether an EMA teacher makes the targets

    def build(self, backbone: Backbone) -> Method:
        """The method around `backbone`, freshly initialised from torch's global generator."""
        raise NotImplementedError

    def scaled(self, scale: Scale) -> Self:
        """The same method with heads and prototypes of a size that fits the scale."""
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One pretraining run, complete but for the seed."""

    name: str = unidentified()
    source: str = unidentified()  # paper, section, table
    method: MethodConfig
    views: tuple[View, ...]
    backbone: BackboneSpec
    epochs: int  # 0: the untrained backbone
    batch_size: int  # global
    optim: Optim
    dataset: str = "imagenet"


def resolved(value: Any, *, versions: bool = True) -> Any:
    """`value` as plain JSON: dataclasses become dicts that carry class and version.

    Fields that identify nothing (names, citations) are left out.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        kind = type(value)
        head = {"class": f"{kind.__module__}.{kind.__qualname__}"}
        if versions and hasattr(kind, "version"):
            head["version"] = kind.version  # pyright: ignore[reportAttributeAccessIssue]
        return head | {
            f.name: resolved(getattr(value, f.name), versions=versions)
            for f in dataclasses.fields(value)
            if f.metadata.get("identity", True)
        }
    if isinstance(value, tuple | list):
        return [resolved(item, versions=versions) for item in value]
    assert value is None or isinstance(value, str | int | float | bool), type(value)
    return value


def fingerprint(*values: Any, versions: bool = True) -> str:
    """16 hex digits of the SHA-256 of the resolved JSON of `values`.

    Same fingerprint = same job. With `versions=False` the slot: the same job whatever the version
    of the code that did it.
    """
    text = json.dumps([resolved(v, versions=versions) for v in values], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def pretrain_key(recipe: Recipe, seed: int) -> str:
    """Folder name of a pretraining run: the method, then the fingerprint."""
    method = type(recipe.method).__module__.rpartition(".")[2]
    return f"{method}-{fingerprint(recipe, seed)}"
