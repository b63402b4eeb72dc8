"""What a method remembers of earlier batches: a queue of keys, a bank with a row per image."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from harness import dist
from harness.backbone import Backbone
from harness.loader import Batch
from harness.method import Method
from harness.recipe import Progress


class Queue(nn.Module):
    """The last `size` rows that came in, the oldest replaced first (MoCo, He et al. 2020).

    A copy on each process: 4 * size * width bytes (33.6 MB for MoCo's 65,536 x 128).

    Attributes:
        rows: (size, width), unit rows, random at first.
        cursor: int64 scalar, where the next row goes.
    """

    rows: Tensor
    cursor: Tensor

    def __init__(self, size: int, width: int) -> None:
        super().__init__()
        self.register_buffer("rows", F.normalize(torch.randn(size, width), dim=1))
        self.register_buffer("cursor", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def enqueue(self, rows: Tensor) -> None:
        """Take in this process's rows (n, width) and, in the global batch's order, all others'.

        A batch that reaches beyond the end goes on at the start; of one larger than the queue
        the last rows stay.
        """
        rows = dist.gather_batch(rows).to(self.rows.dtype)[-len(self.rows) :]
        places = (self.cursor + torch.arange(len(rows), device=rows.device)) % len(self.rows)
        self.rows[places] = rows
        self.cursor.add_(len(rows)).remainder_(len(self.rows))


class MemoryBank(nn.Module):
    """A moving average of every training image's embedding (NPID, Wu et al. 2018).

    A copy on each process: 4 * images * width bytes (656 MB for ImageNet at 128).

    Attributes:
        rows: (images, width), unit rows; at first uniform in +-1/sqrt(width / 3), as in NPID.
    """

    rows: Tensor

    def __init__(self, images: int, width: int) -> None:
        super().__init__()
        bound = (width / 3) ** -0.5
        self.register_buffer("rows", torch.empty(images, width).uniform_(-bound, bound))

    @torch.no_grad()
    def update(self, indices: Tensor, embeddings: Tensor, momentum: float) -> None:
        """Rows of a batch become normalise(momentum * row + (1 - momentum) * embedding).

        Args:
            indices: (n,), this process's images; each image occurs once in the global batch.
            embeddings: (n, width) unit rows.
            momentum: Weight of the old row.
        """
        indices, new = dist.gather_batch(indices), dist.gather_batch(embeddings)
        mixed = torch.lerp(new.to(self.rows.dtype), self.rows[indices], momentum)
        self.rows[indices] = F.normalize(mixed, dim=1)


class BankMethod(Method):
    """A trunk and a projector whose embeddings meet those of earlier steps, kept in a bank."""

    def __init__(
        self, backbone: Backbone, projector: nn.Module, memory: MemoryBank, *, momentum: float
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.projector = projector
        self.memory = memory
        self._momentum = momentum
        self._seen: tuple[Tensor, Tensor] | None = None  # indices and embeddings of the step

    def embed(self, batch: Batch) -> Tensor:
        """Unit rows (n, width) of the only view, in the bank's precision."""
        (view,) = batch.views
        z = F.normalize(self.projector(self.backbone(view)).to(self.memory.rows.dtype), dim=1)
        self._seen = batch.indices, z.detach()
        return z

    def after_step(self, progress: Progress) -> None:
        """Move the rows of the step's images towards their embeddings."""
        assert self._seen is not None
        self.memory.update(*self._seen, self._momentum)
