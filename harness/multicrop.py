"""Multi-crop distillation: a student sees all crops, a teacher the two global ones."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def forward_by_size(trunk: nn.Module, views: list[Tensor]) -> Tensor:
    """`trunk` on all views, one call per run of equal sizes, as DINO batches its crops.

    Args:
        trunk: Maps (m, 3, H, W) to (m, dim), one row per image.
        views: V batches (n, 3, H_v, W_v), equal sizes next to each other.

    Returns:
        (V, n, dim), view by view.
    """
    runs: list[list[Tensor]] = []
    for view in views:
        if runs and runs[-1][0].shape == view.shape:
            runs[-1].append(view)
        else:
            runs.append([view])
    rows = torch.cat([trunk(torch.cat(run)) for run in runs])
    return rows.unflatten(0, (len(views), -1))


def forward_crops(trunk: nn.Module, head: nn.Module, views: list[Tensor]) -> Tensor:
    """`head` of `trunk` on all views (V, n, d), the head in one call.

    So batch norm sees crops of one size in the trunk and all crops together in the head, as in the
    code of DINO (@7c446df, MultiCropWrapper) and SwAV.
    """
    features = forward_by_size(trunk, views)
    return head(features.flatten(0, 1)).unflatten(0, features.shape[:2])


def cross_crop_entropy(student_logits: Tensor, targets: Tensor) -> Tensor:
    """Mean cross-entropy of every teacher crop with every other student crop (DINO Eq. 3).

    The targets are summed per student crop first, so that there is no loop over pairs.

    Args:
        student_logits: (V, n, K) student outputs over temperature; the first T are the
            teacher's crops.
        targets: (T, n, K) teacher distributions, T <= V.

    Returns:
        Scalar, nats, averaged over the T * (V - 1) pairs and the n images.
    """
    crops, images, _ = student_logits.shape
    log_p = F.log_softmax(student_logits, dim=-1)
    everything = (targets.sum(0) * log_p.sum(0)).sum()
    same_crop = (targets * log_p[: len(targets)]).sum()
    return (same_crop - everything) / (len(targets) * (crops - 1) * images)
