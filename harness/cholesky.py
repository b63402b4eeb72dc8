"""Cholesky factors that neither wait for the GPU nor hide a failure."""

from __future__ import annotations

import torch
from torch import Tensor


def cholesky(matrices: Tensor) -> Tensor:
    """Lower factors L of symmetric matrices L Lᵀ (…, d, d); NaN for one that isn't positive.

    `torch.linalg.cholesky` reads back whether it succeeded, which stops the GPU's queue at every
    step; here a failure shows as a loss that isn't finite, which ends a run anyway.
    """
    factors, failures = torch.linalg.cholesky_ex(matrices)
    return torch.where((failures == 0)[..., None, None], factors, torch.nan)


def log_determinant(matrices: Tensor) -> Tensor:
    """Logarithms of the determinants (…) of positive definite matrices (…, d, d)."""
    return 2 * cholesky(matrices).diagonal(dim1=-2, dim2=-1).log().sum(dim=-1)
