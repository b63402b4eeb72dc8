"""The size of the largest tensor that a computation makes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class _Largest(TorchDispatchMode):
    entries = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        found = func(*args, **(kwargs or {}))
        sizes = [x.numel() for x in tree_leaves(found) if isinstance(x, torch.Tensor)]
        self.entries = max([self.entries, *sizes])
        return found


def largest(function: Callable[[], object]) -> int:
    """Entries of the largest tensor made on this thread, the backward pass of a CPU included."""
    with _Largest() as mode:
        function()
    return mode.entries
