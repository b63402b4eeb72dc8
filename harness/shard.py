"""One global computation divided among processes: each does a share of the columns.

Nothing here has a gradient: losses that share their work know theirs. With one process every
function is the identity. Collectives move equal rows of each process: (n, …) of (world * n, …).
"""

from __future__ import annotations

import torch
import torch.distributed as torch_dist
from torch import Tensor

from harness import dist


def shares(count: int) -> list[int]:
    """How many of `count` things each process does, in rank order; differing by one at most."""
    whole, rest = divmod(count, dist.world())
    return [whole + (rank < rest) for rank in range(dist.world())]


def gathered(x: Tensor) -> Tensor:
    """The global batch (world * n, d), in rank order, from each process's rows (n, d)."""
    if dist.world() == 1:
        return x
    everything = x.new_empty((dist.world() * len(x), *x.shape[1:]))
    torch_dist.all_gather_into_tensor(everything, x.contiguous())
    return everything


def summed(x: Tensor) -> Tensor:
    """Sum of `x` over processes; x itself is overwritten."""
    if dist.world() > 1:
        torch_dist.all_reduce(x)
    return x


def own_rows_of_sum(x: Tensor) -> Tensor:
    """This process's rows (n, d) of the sum over processes of x (world * n, d)."""
    if dist.world() == 1:
        return x
    rows = x.new_empty((len(x) // dist.world(), *x.shape[1:]))
    torch_dist.reduce_scatter_tensor(rows, x.contiguous())
    return rows


def columns_from_rows(x: Tensor, widths: list[int]) -> Tensor:
    """This process's share of columns (world * n, widths[rank]) from its rows (n, sum(widths)).

    Args:
        x: Rows of this process.
        widths: Columns of each process, in rank order.
    """
    if dist.world() == 1:
        return x
    parts = [part.flatten() for part in x.split(widths, dim=1)]
    columns = x.new_empty((dist.world() * len(x), widths[dist.rank()]))
    received = [len(x) * widths[dist.rank()]] * dist.world()
    sent = [len(part) for part in parts]
    torch_dist.all_to_all_single(columns.view(-1), torch.cat(parts), received, sent)
    return columns


def rows_from_columns(x: Tensor, widths: list[int]) -> Tensor:
    """The inverse of `columns_from_rows`: (n, sum(widths)) from (world * n, widths[rank])."""
    if dist.world() == 1:
        return x
    n = len(x) // dist.world()
    received = [n * width for width in widths]
    flat = x.new_empty(sum(received))
    sent = [n * widths[dist.rank()]] * dist.world()
    torch_dist.all_to_all_single(flat, x.contiguous().view(-1), received, sent)
    return torch.cat([part.view(n, -1) for part in flat.split(received)], dim=1)
