"""Sinkhorn-Knopp: soft assignments that use all prototypes equally (Cuturi 2013; SwAV, 2020)."""

from __future__ import annotations

import torch
from torch import Tensor

from harness import dist


@torch.no_grad()
def sinkhorn(scores: Tensor, *, epsilon: float, iterations: int) -> Tensor:
    """Assignments Q of the global batch to prototypes, of nearly equal total mass (SwAV, Eq. 3-5).

    Each iteration scales exp(scores / epsilon) so that prototypes weigh the same, then so that
    images do. All in logarithms, where nothing over- or underflows whatever epsilon is; SwAV's
    code @06b1b7c exponentiates, and its factors 1/K and 1/B cancel between the two scalings.

    Args:
        scores: (…, n, K) of this process's rows, which may differ in number from the others';
            leading axes are problems of their own. Half precision is computed in fp32.
        epsilon: Weight of the entropy: the smaller, the harder the assignments.
        iterations: Rounds of the two scalings; SwAV makes 3.

    Returns:
        (…, n, K), rows sum to 1, no gradient.
    """
    log_q = (scores.float() if scores.itemsize < 4 else scores) / epsilon
    for _ in range(iterations):
        masses = dist.gather_batch(log_q.logsumexp(dim=-2, keepdim=True)[None])
        log_q = log_q - masses.logsumexp(dim=0)
        log_q = log_q.log_softmax(dim=-1)
    return log_q.exp()
