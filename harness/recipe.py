"""What to pretrain, as frozen data: Recipe, Optim, MethodConfig, and the fingerprint of them."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
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


def added(default: Any) -> Any:
    """A dataclass field that came after records did: while at its default it identifies nothing.

    So that a new option leaves the fingerprints of all that doesn't use it, and their records.
    """
    return field(default=default, metadata={"identity": "unless default"})


class Progress(NamedTuple):
    """Where a training run stands."""

    epoch: float  # epochs done, fractional within an epoch
    epochs: int  # epochs in all

    @property
    def fraction(self) -> float:
        """Share of the run that is done, in [0, 1]."""
        return self.epoch / self.epochs


class TrainingSize(NamedTuple):
    """What a method may know of its training set when it is built."""

    images: int  # a memory bank has a row for each
    classes: int  # of its labels, which only supervised recipes see


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
    """Optimiser and schedules: linear warm-up, then by default a cosine, stepped every iteration.

    "lars" is VICReg's (see `harness.optim.Lars`), "simclr_lars" has the rate inside its momentum,
    "larc" is apex's as SwAV runs it; "adam" adds the weight decay to the gradient.
    """

    name: Literal["adamw", "adam", "sgd", "lars", "simclr_lars", "larc"]
    lr: float  # peak at batch size 256; the peak used is lr * batch_size / 256
    final_lr: float = 0.0  # absolute, at the last step
    bias_lr: float | None = None  # like lr, for 1-D parameters; None: the same as lr
    momentum: float = 0.9  # SGD and LARS
    weight_decay: float = 0.0  # never on 1-D parameters
    final_weight_decay: float | None = None  # reached by a cosine; None: constant
    warmup_epochs: float = 10.0
    clip_grad: float | None = None  # largest gradient norm of each parameter, as DINO clips
    schedule: Literal["cosine", "steps", "constant"] = added("cosine")  # after the warm-up
    milestones: tuple[float, ...] = added(())  # epochs at which steps multiply the rate …
    drop: float = added(0.1)  # … by this
    first_lr: float = added(0.0)  # absolute, where the warm-up starts
    by_epoch: bool = added(False)  # the rate changes between epochs only
    whole_cosine: bool = added(False)  # it spans the run, and the warm-up stands for its beginning
    decay_all: bool = added(False)  # weight decay (and LARC's adaptation) of 1-D parameters too
    nesterov: bool = added(False)  # SGD


@dataclass(frozen=True, kw_only=True)
class FirstPhase:
    """The start of a run with a schedule of its own, before its recipe's starts from the top."""

    epochs: int
    optim: Optim  # of the same name and momentum as the recipe's


# Where a recipe shows only some labels: batches of labelled images, of all images alike, or half
# of labelled and half of other images (S4L, Zhai et al., ICCV 2019, section 4.3).
Pool = Literal["labelled", "all", "halves"]


@dataclass(frozen=True, kw_only=True)
class MethodConfig:
    """Hyper-parameters of a method, with its paper's values as defaults; one subclass a file."""

    version: ClassVar[int] = 1  # bump when numbers may change
    has_teacher: ClassVar[bool] = False  # whether an EMA teacher makes the targets

    def build(self, backbone: Backbone, training: TrainingSize) -> Method:
        """The method around `backbone`, freshly initialised from torch's global generator."""
        raise NotImplementedError

    def scaled(self, scale: Scale) -> Self:
        """The same method with heads and prototypes of a size that fits the scale."""
        raise NotImplementedError

    def pool(self, epoch: int) -> Pool:
        """Which images an epoch draws from, where only some labels are shown."""
        return "halves"

    def first_phase(self) -> FirstPhase | None:
        """A start with another schedule, for methods that train twice."""
        return None


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
    labelled: float = added(0.0)  # percent of the training images whose label the method sees
    # After these percents of the steps the trunk is kept as well; nothing else changes by it.
    snapshots: tuple[int, ...] = unidentified(())

    def schedule_at(self, epoch: float) -> tuple[Optim, Progress]:
        """Whose schedules hold after `epoch` epochs, and where they stand."""
        first = self.method.first_phase()
        if first is None:
            return self.optim, Progress(epoch, self.epochs)
        if epoch < first.epochs:
            return first.optim, Progress(epoch, first.epochs)
        return self.optim, Progress(epoch - first.epochs, self.epochs - first.epochs)


def with_changes(value: Any, changes: Mapping[str, Any]) -> Any:
    """A dataclass with other values at some dotted names: {"method.units": 64}."""
    for name, new in changes.items():
        first, _, rest = name.partition(".")
        inner = with_changes(getattr(value, first), {rest: new}) if rest else new
        value = dataclasses.replace(value, **{first: inner})
    return value


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
            if _identifies(f, getattr(value, f.name))
        }
    if isinstance(value, tuple | list):
        return [resolved(item, versions=versions) for item in value]
    assert value is None or isinstance(value, str | int | float | bool), type(value)
    return value


def _identifies(f: dataclasses.Field[Any], value: Any) -> bool:
    rule = f.metadata.get("identity", True)
    return value != f.default if rule == "unless default" else rule


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
