"""Frobenius norms of cross-products by the cheaper of two exact forms."""

from __future__ import annotations

from torch import Tensor


def squared_norm_of_product(a: Tensor, b: Tensor) -> Tensor:
    """||aᵀb||²_F for a, b of shape (n, d), without the (d, d) matrix when n < d.

    ||aᵀb||²_F = <aaᵀ, bbᵀ>: two (n, n) Gram matrices instead of one (d, d) product.
    """
    n, d = a.shape
    if n >= d:
        return (a.T @ b).square().sum()
    gram = a @ a.T
    return gram.square().sum() if a is b else (gram * (b @ b.T)).sum()
