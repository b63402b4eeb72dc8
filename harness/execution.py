"""How a run computes, which is no part of its recipe: precision, compilation, what is kept."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Precision = Literal["auto", "fp32", "bf16", "fp16"]


@dataclass(frozen=True, kw_only=True)
class Execution:
    """Settings of a training run that leave its recipe alone."""

    precision: Precision = "auto"  # of matrix products; auto: half on GPU, fp32 on CPU
    compile: bool = False  # torch.compile the trunk: minutes at the start, faster steps behind
    recompute: bool = False  # ViTs: keep each block's input only, and compute the block again
    # backwards: a third more time for less memory
    save_every: float = 10.0  # seconds between checkpoints at least


AS_USUAL = Execution()
