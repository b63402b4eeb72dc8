"""Batches that a GPU makes while it computes: copies and colours on a stream of their own."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator
from typing import TypeVar

import torch
from torch import Tensor

B = TypeVar("B", bound=Iterable)


def made_aside(batches: Iterator[B], device: str) -> Iterator[B]:
    """The same batches; on a GPU, whatever `batches` launches for one runs beside the step before.

    A training loop queues a step's kernels and asks for its next batch long before the GPU has run
    them. On the loop's own stream that batch would wait for them all.

    Args:
        batches: Makes each batch, a tuple of tensors and lists of tensors, when it is asked for it.
        device: Where.
    """
    if not device.startswith("cuda"):
        yield from batches
        return
    aside = _stream(device)
    while True:
        with torch.cuda.stream(aside):
            batch = next(batches, None)
        if batch is None:
            return
        current = torch.cuda.current_stream(device)
        current.wait_stream(aside)
        for tensor in _tensors(batch):
            if tensor.is_cuda:
                # else the allocator gives its memory to the next batch while the step still reads
                tensor.record_stream(current)
        yield batch


@functools.cache
def _stream(device: str) -> torch.cuda.Stream:
    """One for all epochs: memory that was used on a stream is kept for that stream."""
    return torch.cuda.Stream(device)


def _tensors(batch: Iterable) -> Iterator[Tensor]:
    for part in batch:
        if isinstance(part, Tensor):
            yield part
        elif isinstance(part, list):
            yield from part
