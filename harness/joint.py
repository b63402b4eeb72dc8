"""Entropies of the joint distribution of soft variables, without the matrix that holds it.

For two views' assignments p, q (N, D), D = variables * units, the joint distribution P = pᵀq / N
(D, D) needs three products: itself, and its gradient with p and with q. Nothing else is
unavoidable, and P need not exist: a walk over chunks of its columns, whole variables each, sums
P log P and computes the gradients to p and to the chunk's q in the same step. Across processes
the columns are shared: each computes its own against the gathered batch.

What is done image by image is recomputed in the backward pass, a block of rows at a time, so that
nothing but two (n, D) gradients is kept between the passes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from harness import dist, shard

# Columns of P at a time. Fewer cost the matrix product its speed, more cost memory: a chunk has
# _COLUMNS * D entries.
_COLUMNS = {"cpu": 1024, "cuda": 4096}
# Entries of p in a block of rows: what fits into a core's cache, or fills a GPU.
_BLOCK = {"cpu": 1 << 17, "cuda": 1 << 24}

PerImage = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True, kw_only=True)
class JointTerms:
    """What to compute of two views' assignments."""

    assign: Callable[[Tensor], Tensor]  # (n, D) projections to (n, variables, units), rows alone
    per_image: tuple[PerImage, ...] = ()  # of two (n, variables, units): a mean over images
    diagonal: bool = True  # see `joint_terms`
    off_diagonal: bool = True


def joint_terms(z1: Tensor, z2: Tensor, terms: JointTerms) -> list[Tensor]:
    """Per-image terms of this process's images, and sums of P log P over the global batch's P.

    P[(m, i), (l, j)] is the mean over images of p[m, i] q[l, j]. Time, on N images: 6 N D² flops,
    a third of them without gradients, divided by the number of processes. Memory, beside the
    inputs and their gradients: two (n, D) between the passes; in the forward pass three, and a
    chunk of P with `_COLUMNS` columns; across processes two of the three have all N rows.

    Args:
        z1: Projections (n, D) of this process's images under the first view.
        z2: The same images' projections under the second view.
        terms: What to compute.

    Returns:
        Scalars: each of `terms.per_image`; the sum of P log P over m = l, i = j; the sum over
        all m != l. The last two are equal on all processes, with the gradient of `dist.gather`,
        and 0 where not asked for.
    """
    gradients = torch.is_grad_enabled() and (z1.requires_grad or z2.requires_grad)
    return list(_JointTerms.apply(z1, z2, terms, gradients))


class _JointTerms(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, z1: Tensor, z2: Tensor, terms: JointTerms, gradients: bool
    ) -> tuple[Tensor, ...]:
        units = terms.assign(z1[:1]).shape[2]
        p, q, same, per_image = _assignments(z1, z2, terms)
        same = shard.summed(same) / (len(z1) * dist.world())
        diagonal = -torch.special.entr(same).sum()
        off_diagonal, by_p, by_q = torch.zeros_like(diagonal), None, None
        if p is not None and q is not None:
            off_diagonal, by_p, by_q = _shared_walk(p, q, units, gradients=gradients)
        if gradients:
            ctx.terms = terms
            ctx.save_for_backward(z1, z2, same, by_p, by_q)
        return *per_image, diagonal, off_diagonal

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        z1, z2, same, by_p, by_q = ctx.saved_tensors
        terms, images = ctx.terms, len(z1)
        per_image = gradients[:-2]
        on_diagonal, off_diagonal = shard.summed(torch.stack(gradients[-2:]))
        slope = (same.log() + 1) * (on_diagonal / (images * dist.world()))
        dz1, dz2 = torch.empty_like(z1), torch.empty_like(z2)
        for rows in _blocks(z1):
            with torch.enable_grad():
                x1, x2 = (z[rows].detach().requires_grad_() for z in (z1, z2))
                p, q = terms.assign(x1), terms.assign(x2)
                values = [term(p, q) for term in terms.per_image]
            share = len(x1) / images
            dp, dq = (torch.zeros_like(p), torch.zeros_like(q))
            if by_p is not None:
                dp = (by_p[rows] * off_diagonal).view_as(p)
                dq = (by_q[rows] * off_diagonal).view_as(q)
            if terms.diagonal:
                dp.addcmul_(slope, q.detach())
                dq.addcmul_(slope, p.detach())
            outer = [share * g for g in per_image]
            dz1[rows], dz2[rows] = torch.autograd.grad([*values, p, q], [x1, x2], [*outer, dp, dq])
        return dz1, dz2, None, None


def _blocks(z: Tensor) -> Iterator[slice]:
    """Slices of rows."""
    rows = max(1, _BLOCK.get(z.device.type, _BLOCK["cuda"]) // z.shape[1])
    return (slice(start, start + rows) for start in range(0, len(z), rows))


def _assignments(
    z1: Tensor, z2: Tensor, terms: JointTerms
) -> tuple[Tensor | None, Tensor | None, Tensor, list[Tensor]]:
    """Both views' assignments (n, D) if P is needed; sum of p * q (M, B); the per-image terms."""
    p = q = None
    same = torch.zeros(())
    per_image: list[Tensor] = []
    for rows in _blocks(z1):
        a, b = terms.assign(z1[rows]), terms.assign(z2[rows])
        if rows.start == 0:
            per_image = [a.new_zeros(()) for _ in terms.per_image]
            same = a.new_zeros(a.shape[1:])
            if terms.off_diagonal:
                p, q = a.new_empty(z1.shape), a.new_empty(z2.shape)
        for value, term in zip(per_image, terms.per_image, strict=True):
            value.add_(term(a, b), alpha=len(a) / len(z1))
        if p is not None and q is not None:
            p[rows], q[rows] = a.flatten(1), b.flatten(1)
        if terms.diagonal:
            same += (a * b).sum(dim=0)
    return p, q, same, per_image


def _shared_walk(
    p: Tensor, q: Tensor, units: int, *, gradients: bool
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """`_walk` with the columns of P divided among processes; p and q are this process's rows."""
    widths = [units * variables for variables in shard.shares(p.shape[1] // units)]
    first = sum(widths[: dist.rank()])
    q = shard.columns_from_rows(q, widths)
    total, by_p = _walk(shard.gathered(p), q, units, first // units, gradients=gradients)
    total = shard.summed(total)
    if by_p is None:
        return total, None, None
    return total, shard.own_rows_of_sum(by_p), shard.rows_from_columns(q, widths)


def _walk(
    p: Tensor, q: Tensor, units: int, first: int, *, gradients: bool
) -> tuple[Tensor, Tensor | None]:
    """Sum of P log P over pairs of different variables, and its gradients.

    Args:
        p: Assignments (N, D).
        q: (N, c): columns of the other view's, whole variables. If `gradients`, they are
            overwritten by their gradient.
        units: Columns of a variable.
        first: Which variable the first column of q belongs to.
        gradients: Whether to compute them.

    Returns:
        The sum, and the gradient to p if asked for.
    """
    images, variables = len(p), q.shape[1] // units
    at_once = max(1, _COLUMNS.get(p.device.type, _COLUMNS["cuda"]) // units)
    chunks = max(1, math.ceil(variables / at_once))
    at_once = max(1, math.ceil(variables / chunks))
    by_p = torch.zeros_like(p) if gradients else None
    total = -_mass(p, q, units, first) if gradients else p.new_zeros(())
    # One allocation: large ones are mapped anew each time.
    space = p.new_empty((at_once * units, p.shape[1]))
    by_columns_space = q.new_empty((images, at_once * units if gradients else 0))
    for start in range(0, variables, at_once):
        columns = q[:, start * units : (start + at_once) * units]
        joint = space[: columns.shape[1]]
        # log(e P) = log P + 1 is the derivative of P log P.
        scale = (math.e if gradients else 1.0) / images
        torch.addmm(joint, columns.T, p, beta=0, alpha=scale, out=joint)
        blocks = joint.view(-1, units, p.shape[1] // units, units)
        # 1 log 1 = 0 and log 1 = 0: a variable with itself counts neither here nor there.
        blocks.diagonal(first + start, dim1=0, dim2=2).fill_(1)
        if by_p is None:
            total -= torch.special.entr(joint).sum()
            continue
        slope = joint.log_()
        by_columns = by_columns_space[:, : columns.shape[1]]
        torch.addmm(by_columns, p, slope.T, beta=0, alpha=1 / images, out=by_columns)
        by_p.addmm_(columns, slope, alpha=1 / images)
        # sum P (log P + 1) = <q, its gradient>, N c products in place of D c.
        total += (columns * by_columns).sum()
        columns.copy_(by_columns)
    return total, by_p


def _mass(p: Tensor, q: Tensor, units: int, first: int) -> Tensor:
    """Sum of P over pairs of different variables; arguments as of `_walk`."""
    p, q = (x.unflatten(1, (-1, units)).sum(dim=2) for x in (p, q))
    everything = p.sum(dim=1) @ q.sum(dim=1)
    return (everything - (p[:, first : first + q.shape[1]] * q).sum()) / len(p)
