"""Inputs of the golden values: closed formulas, so that no generator has to stay the same."""

from __future__ import annotations

import torch
from torch import Tensor


def waves(*shape: int, phase: float) -> Tensor:
    """Doubles of `shape` from sin(0.37 i² + phase) * 1.5: no two rows or columns alike."""
    i = torch.arange(torch.Size(shape).numel(), dtype=torch.float64)
    return (torch.sin(0.37 * i * i + phase) * 1.5).view(shape)
