"""Evaluation protocols as versioned data: EvalProtocol, Metric, and settings they share."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple, Self

from harness.errors import UserError

if TYPE_CHECKING:
    from harness.backbone import Backbone
    from harness.data import Split
    from harness.scale import Scale


@dataclass(frozen=True, kw_only=True)
class Metric:
    """A number that a protocol measures."""

    name: str
    unit: str = "%"
    higher_is_better: bool = True
    noise: float = 0.5  # what repeating a run may change, in the unit: less is no difference


class Estimate(NamedTuple):
    """A measured number, and what its 95 % bootstrap interval over the evaluated images is."""

    value: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True, kw_only=True)
class EvalProtocol:
    """Settings of an evaluation; one subclass a file, its fields are its command line."""

    version: ClassVar[int] = 1  # bump when numbers may change
    predictions: ClassVar[str] = "predictions.npz"  # file that `run` leaves in its folder

    dataset: str = "imagenet"  # a data set's name (imagenet, cifar10, mnist5k) or a folder

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """What these settings measure, the metric to report first first."""
        raise NotImplementedError

    def run(self, backbone: Backbone, workdir: Path) -> dict[str, Estimate]:
        """Evaluate a backbone, which stays as it is; returns each metric (percent) by name.

        Writes per-image predictions to `workdir/predictions.npz`; whatever else it leaves in
        `workdir` lets a killed evaluation go on where it stopped.
        """
        raise NotImplementedError

    def data(self) -> dict[str, dict[str, Any]]:
        """What the record says of the images: checksum, number and classes of each split."""
        from harness.data import open_split

        splits: tuple[Split, ...] = ("train", "val")
        return {split: open_split(self.dataset, split).describe() for split in splits}

    def scaled(self, scale: Scale) -> Self:
        """The same protocol on the data set and image size of another scale."""
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class HeadTraining:
    """How linear heads are trained on a frozen backbone: SGD, one head per learning rate."""

    lr: tuple[float, ...] = (0.3,)  # effective; several train side by side, the best is chosen
    optimizer: Literal["sgd", "larc"] = "sgd"  # larc: SGD at rates adapted to each tensor's norm
    momentum: float = 0.9  # of SGD
    nesterov: bool = False  # Nesterov's momentum
    weight_decay: float = 0.0  # L2, on weight and bias
    batch_size: int = 256  # global
    epochs: int = 100
    schedule: Literal["cosine", "steps"] = "cosine"  # of the learning rate, per epoch
    milestones: tuple[int, ...] = ()  # schedule "steps": epochs at which the rate drops
    drop: float = 0.1  # schedule "steps": what the rate is multiplied by
    init_std: float = 0.01  # of the head's normal initial weights; biases start at 0
    last_blocks: int = 1  # ViTs: CLS tokens of how many last blocks make the feature
    seed: int = 0  # of initial weights, order of images and crops

    def lr_factor(self, epoch: int) -> float:
        """What the learning rates are multiplied by in an epoch, counted from 0."""
        if self.schedule == "cosine":
            return 0.5 * (1 + math.cos(math.pi * epoch / self.epochs))
        return self.drop ** sum(epoch >= milestone for milestone in self.milestones)


class Trial(NamedTuple):
    """One choice among the settings of a fine-tuning."""

    lr: float
    head_lr: float
    epochs: int


@dataclass(frozen=True, kw_only=True)
class FineTuning:
    """How a trunk and a linear head are trained together, each at a learning rate of its own."""

    lr: tuple[float, ...] = (0.01,)  # of the trunk, effective; several are tried one by one
    head_lr: tuple[float, ...] = ()  # of the head, one for each lr; none: the same as lr
    epochs: tuple[int, ...] = (20,)  # several are tried with each lr
    optimizer: Literal["sgd", "lars"] = "sgd"  # lars: adapts the rates of the trunk's matrices
    momentum: float = 0.9
    nesterov: bool = False  # Nesterov's momentum (sgd)
    weight_decay: float = 0.0  # L2
    batch_size: int = 256  # global
    schedule: Literal["cosine", "cosine_by_step", "steps"] = "cosine"  # by epoch or by step to 0
    milestones: tuple[int, ...] = ()  # schedule "steps": epochs at which the rates drop
    drop: float = 0.1  # schedule "steps": what the rates are multiplied by
    head_drop: float | None = None  # the same for the head's rate; None: as the trunk's
    sync_bn: bool = False  # batch norm over all processes, or over each one's share of the batch
    head_init: Literal["normal", "zeros", "torch"] = "normal"  # N(0, .01) with bias 0; 0; uniform
    seed: int = 0  # of balanced subsets, initial weights, order of images and crops

    def trials(self) -> list[Trial]:
        """Every learning rate with every number of epochs.

        Raises:
            UserError: There is none, or not one rate of the head for each of the trunk.
        """
        head_lr = self.head_lr or self.lr
        if len(head_lr) != len(self.lr):
            raise UserError(
                f"lr={self.lr} has {len(self.lr)} rates of the trunk and head_lr={head_lr} "
                f"{len(head_lr)} of the head; give one --head-lr for each --lr, or none"
            )
        if not self.lr or not self.epochs or min(self.epochs) < 1:
            raise UserError(
                f"lr={self.lr} with epochs={self.epochs} trains nothing; give at least one "
                "learning rate and one epoch"
            )
        pairs = zip(self.lr, head_lr, strict=True)
        return [Trial(*pair, epochs) for pair in pairs for epochs in self.epochs]

    def lr_factor(self, epoch: float, epochs: int, drop: float) -> float:
        """What a learning rate is multiplied by after `epoch` of `epochs`.

        Args:
            epoch: Epochs done, fractional within an epoch.
            epochs: Of the whole training.
            drop: What is multiplied by at each milestone.
        """
        if self.schedule == "steps":
            return drop ** sum(epoch >= milestone for milestone in self.milestones)
        done = epoch if self.schedule == "cosine_by_step" else math.floor(epoch)
        return 0.5 * (1 + math.cos(math.pi * done / epochs))
