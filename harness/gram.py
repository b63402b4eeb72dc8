"""Frobenius norms of cross-products of the global batch, by the cheaper of two exact forms.

||aᵀb||²_F over N images and d columns is <aaᵀ, bbᵀ>: two (N, N) Gram matrices in place of a (d, d)
covariance. Both forms are shared among processes, without repeated work: each computes its own
rows of the Gram matrices against the gathered batch, or its own images' part of the covariance.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from harness import dist, shard

# Columns of the covariance at a time: see `harness.joint`.
_COLUMNS = {"cpu": 1024, "cuda": 4096}


def squared_norm_of_product(a: Tensor, b: Tensor) -> Tensor:
    """||aᵀb||²_F of the global batch; `a` may be `b`, which costs half.

    With N images in all and n here, 4 or 8 n N d flops forward and backward together where
    N < d, and 4 or 6 n d² elsewhere. Kept for the backward pass: the (n, N) Gram matrices and,
    with several processes, the gathered batch; or the gradients (n, d). The covariance exists
    in chunks of `_COLUMNS` columns only.

    Args:
        a: This process's rows (n, d), as many on each process.
        b: Likewise.

    Returns:
        Scalar, equal on all processes, with the gradient of `dist.gather`.
    """
    other = None if a is b else b
    if len(a) * dist.world() < a.shape[1]:
        return _GramForm.apply(a, other)
    gradients = torch.is_grad_enabled() and (a.requires_grad or b.requires_grad)
    return _CovarianceForm.apply(a, other, gradients)


class _GramForm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor | None) -> Tensor:
        # The rows of aaᵀ make the gradient to b, and those of bbᵀ the one to a.
        factors = [a] if b is None else [a, b]
        everything = [shard.gathered(x) for x in factors]
        grams = [x @ all_x.T for x, all_x in zip(factors, everything, strict=True)]
        ctx.save_for_backward(*everything, *grams)
        return shard.summed(torch.sum(grams[0] * grams[-1]))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        gradient = 2 * shard.summed(gradient.clone())
        with torch.autocast(gradient.device.type, enabled=False):
            if len(ctx.saved_tensors) == 2:
                everything, gram = ctx.saved_tensors
                return (2 * gradient * gram) @ everything, None
            all_a, all_b, gram_a, gram_b = ctx.saved_tensors
            return (gradient * gram_b) @ all_a, (gradient * gram_a) @ all_b


class _CovarianceForm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor | None, gradients: bool) -> Tensor:
        right = a if b is None else b
        by_a = torch.zeros_like(a) if gradients and b is not None else None
        by_right = torch.empty_like(right) if gradients else None
        total = a.new_zeros(())
        width = _COLUMNS.get(a.device.type, _COLUMNS["cuda"])
        for start in range(0, a.shape[1], width):
            columns = slice(start, start + width)
            covariance = shard.summed(a.T @ right[:, columns])
            total += covariance.square().sum()
            if by_right is not None:
                by_right[:, columns] = 2 * (a @ covariance)
            if by_a is not None:
                by_a.addmm_(right[:, columns], covariance.T, alpha=2)
        ctx.save_for_backward(by_a, by_right)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        gradient = shard.summed(gradient.clone())
        by_a, by_right = ctx.saved_tensors
        if by_a is None:
            return 2 * gradient * by_right, None, None
        return gradient * by_a, gradient * by_right, None


def centre(x: Tensor) -> Tensor:
    """This process's rows (n, d) less the mean over the global batch."""
    return x - dist.all_reduce_mean(x.mean(dim=0))


def standardise(x: Tensor, *, eps: float = 1e-5) -> Tensor:
    """This process's rows (n, d) with mean 0 and variance 1 over the global batch.

    Args:
        x: As many rows on each process.
        eps: Added to the (biased) variance, as batch norm does.
    """
    if dist.world() == 1:
        return F.batch_norm(x, None, None, training=True, eps=eps)
    centred = centre(x)
    variance = dist.all_reduce_mean(centred.square().mean(dim=0))
    return centred * (variance + eps).rsqrt()
