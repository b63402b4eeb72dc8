"""Momentum contrast: a query encoder that learns, its moving average that makes keys, a queue."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from harness import dist
from harness.backbone import Backbone
from harness.memory import Queue
from harness.method import TeacherMethod, ema_update
from harness.optim import cosine
from harness.recipe import Progress


class MomentumContrast(TeacherMethod):
    """Query encoder (`student`), key encoder (`teacher`) and a queue of earlier batches' keys.

    The query encoder is what is evaluated. MoCo's code moves the key encoder right before it
    makes a step's keys; as both encoders start equal, moving it after each step's update is the
    same, and leaves `losses` without side effects. Likewise the keys enter the queue after the
    step.

    A subclass sets `batch_keys` in its `losses`.
    """

    batch_keys: Tensor  # this process's keys of the step, (n, width)

    def __init__(
        self,
        backbone: Backbone,
        head: nn.Module,
        queue: Queue,
        *,
        momentum: tuple[float, float],
        batch_norm_group: int | None,
    ) -> None:
        """Start both encoders equal.

        Args:
            backbone: Trunk of the query encoder.
            head: Its head, to the width of the queue's rows.
            queue: Of keys.
            momentum: Of the key encoder, at the start and, along a cosine, at the end.
            batch_norm_group: See `Method.batch_norm_group`; keys are shuffled among the groups.
        """
        super().__init__(backbone, head, momentum[0])
        self.queue = queue
        self.batch_norm_group = batch_norm_group
        self._final_momentum = momentum[1]

    @property
    def evaluated(self) -> Backbone:
        """The query encoder's trunk."""
        return self.backbone

    def queries(self, images: Tensor) -> Tensor:
        """Unit rows (n, width) of the query encoder."""
        return F.normalize(self.student(images), dim=1)

    @torch.no_grad()
    def keys(self, images: Tensor, seed: int) -> Tensor:
        """Unit rows (n, width) of the key encoder, without gradient.

        Args:
            images: (n, 3, H, W), this process's share.
            seed: Of the shuffle that hides from batch norm which images go together, if batch
                norm is taken over groups; the same on all processes.
        """
        if self.batch_norm_group is None:
            return F.normalize(self.teacher(images), dim=1)
        # The whole batch's images visit every process, as in MoCo's code: 154 MB for 256 of them.
        everything = dist.gather_batch(images)
        generator = torch.Generator().manual_seed(seed)
        order = torch.randperm(len(everything), generator=generator)
        mine = slice(dist.rank(), None, dist.world())
        keys = self.teacher(everything[order[mine].to(images.device)])
        back = order.argsort()[mine].to(images.device)
        return F.normalize(dist.gather_batch(keys)[back], dim=1)

    def after_step(self, progress: Progress) -> None:
        """Move the key encoder, and put the step's keys into the queue."""
        momentum = cosine(self._momentum, self._final_momentum, progress.fraction)
        ema_update(self.teacher, self.student, momentum)
        self.queue.enqueue(self.batch_keys)
