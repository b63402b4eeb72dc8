"""What every self-supervised method offers to the training loop."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from harness.backbone import Backbone, OwnProjector
from harness.loader import Batch
from harness.optim import cosine
from harness.recipe import Progress


@dataclass(frozen=True)
class TrainImages:
    """The training images, for what a method does between epochs; each process gets its share."""

    # sample(n): batches of the first random view of at least n distinct images, equal shares
    sample: Callable[[int], Iterator[Tensor]]
    # centres(): every image once, its one view resized and cropped at the centre
    centres: Callable[[], Iterator[Batch]]


class Method(nn.Module):
    """A method: its trunk, its heads, its losses, and what it does between steps."""

    backbone: Backbone  # the trunk that the optimiser trains
    no_decay: ClassVar[tuple[str, ...]] = ()  # parameters without weight decay and LARS adaptation
    constant_rate: ClassVar[tuple[str, ...]] = ()  # modules whose learning rate stays at its peak
    # Images that batch norm takes its statistics over (`harness.batchnorm`); None: the global batch
    batch_norm_group: int | None = None

    def losses(self, batch: Batch, progress: Progress) -> dict[str, Tensor]:
        """Weighted loss terms by name, the same names all run long; their sum is minimised.

        Args:
            batch: This process's share of a step's images: one (n, 3, H, W) tensor per view,
                global views first; their places in the training set; their labels, -1 unless
                the recipe shows them; a seed for draws that all processes share.
            progress: Where the run stands, for schedules.
        """
        raise NotImplementedError

    def after_backward(self, progress: Progress) -> None:
        """Change gradients before the optimiser sees them (DINO's frozen last layer)."""

    def after_step(self, progress: Progress) -> None:
        """Update what gradients do not: EMA teachers, centres, queues."""

    def after_epoch(self, progress: Progress, images: TrainImages) -> list[nn.Parameter]:
        """Work between epochs (SVIB's re-initialised means, k-means).

        Returns:
            Parameters that were replaced: the trainer drops their optimiser state.
        """
        return []

    @property
    def evaluated(self) -> Backbone:
        """The trunk that protocols evaluate: the teacher where the paper says so."""
        return self.backbone

    @property
    def classifier(self) -> nn.Linear | None:
        """The layer of classes on the evaluated trunk, where the method trains one."""
        return None

    @property
    def own_projector(self) -> OwnProjector | None:
        """The projector on the evaluated trunk, where its discrete variables are looked at."""
        return None


class TwinMethod(Method):
    """Two branches with shared weights and a loss on their projections, nothing else."""

    def __init__(
        self,
        backbone: Backbone,
        projector: nn.Module,
        terms: Callable[[Tensor, Tensor], dict[str, Tensor]],
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.projector = projector
        self._terms = terms

    def losses(self, batch: Batch, progress: Progress) -> dict[str, Tensor]:
        """Terms of the two views, each through the network on its own (BN statistics per view)."""
        first, second = (self.projector(self.backbone(view)) for view in batch.views)
        return self._terms(first, second)


class TeacherMethod(Method):
    """A student and an EMA teacher of the same trunk and head; the teacher is evaluated."""

    def __init__(self, backbone: Backbone, head: nn.Module, momentum: float) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head
        self.teacher = nn.Sequential(backbone.teacher(), copy.deepcopy(head).requires_grad_(False))
        self._momentum = momentum

    @property
    def student(self) -> nn.Sequential:
        """Trunk and head, in the teacher's order."""
        return nn.Sequential(self.backbone, self.head)

    @property
    def evaluated(self) -> Backbone:
        """The teacher's trunk, as DINO evaluates."""
        trunk = self.teacher[0]
        assert isinstance(trunk, Backbone)
        return trunk

    def after_step(self, progress: Progress) -> None:
        """Move the teacher; its momentum rises to 1 along a cosine."""
        ema_update(self.teacher, self.student, cosine(self._momentum, 1.0, progress.fraction))


@torch.no_grad()
def ema_update(teacher: nn.Module, student: nn.Module, momentum: float) -> None:
    """Teacher = momentum * teacher + (1 - momentum) * student, parameters only.

    BN buffers are left alone: DINO's teacher forwards in train mode and keeps its own.
    """
    torch._foreach_lerp_(
        list(teacher.parameters()), [p.detach() for p in student.parameters()], 1 - momentum
    )
