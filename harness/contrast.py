"""InfoNCE: an image's own key against those of other images."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def info_nce(query: Tensor, key: Tensor, negatives: Tensor, *, temperature: float) -> Tensor:
    """Mean -log of the softmax weight of each query's own key (MoCo, Eq. 1), in nats.

    Args:
        query: (n, d) unit rows of this process's images; gradients flow through them.
        key: (n, d) unit rows of the same images under another view.
        negatives: (m, d) unit rows of other images, shared by all queries.
        temperature: tau.

    Returns:
        Scalar, computed in single precision at least.
    """
    with torch.autocast(query.device.type, enabled=False):
        query, key, negatives = (
            x.float() if x.itemsize < 4 else x for x in (query, key, negatives)
        )
        positive = (query * key).sum(dim=1, keepdim=True)
        logits = torch.cat([positive, query @ negatives.T], dim=1) / temperature
        return F.cross_entropy(logits, logits.new_zeros(len(logits), dtype=torch.int64))
