"""Weighted k-nearest-neighbour votes, exact, in one streaming pass and bounded memory.

The pass runs in fp32. Where its rounding could change a vote (near-ties at the k-th place or
between two classes), the query is searched again in fp64 on a fixed grid of similarities. So the
predictions don't depend on how bank and queries are cut, hence not on the number of processes.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from harness.errors import UserError

# Working memory beside bank and queries: one block of similarities (32 MiB), its mask, the
# candidates that pass and, in fp64, a converted block of the bank: under 300 MiB at 2048-d.
QUERY_ROWS = 1024
BANK_ROWS = 8192
_GRID = 2.0**40  # fp64 similarities are rounded to 2^-40: a thousand times their rounding error


def _block(queries: Tensor, bank: Tensor) -> Tensor:
    """Similarities (q, b) of unit rows; fp64 ones lie on a grid, so that equal pairs tie."""
    similarities = queries @ bank.to(queries.dtype).T
    return (
        (similarities * _GRID).round_() / _GRID if queries.dtype == torch.float64 else similarities
    )


def _merge(best: Tensor, places: Tensor, block: Tensor, start: int) -> tuple[Tensor, Tensor]:
    """The running top (q, keep) after a block of similarities (q, b) that begins at row `start`.

    Only what exceeds the current last place is sorted in. Rows come in order, so a stable sort
    gives ties to the lower row of the bank.
    """
    rows, columns = (block > best[:, -1:]).nonzero(as_tuple=True)
    if not len(rows):
        return best, places
    counts = torch.bincount(rows, minlength=len(block))
    first = counts.cumsum(0) - counts
    slots = torch.arange(len(rows), device=rows.device) - first[rows]
    width = int(counts.max())
    fresh = best.new_full((len(block), width), -math.inf)
    fresh[rows, slots] = block[rows, columns]
    where = places.new_zeros((len(block), width))
    where[rows, slots] = columns + start
    merged, order = torch.cat([best, fresh], dim=1).sort(dim=1, descending=True, stable=True)
    keep = best.shape[1]
    return merged[:, :keep], torch.cat([places, where], dim=1).gather(1, order[:, :keep])


def nearest(bank: Tensor, queries: Tensor, keep: int) -> tuple[Tensor, Tensor]:
    """The `keep` most similar rows of the bank for each query, best first.

    Args:
        bank: (m, d) unit rows; converted to the queries' type block by block.
        queries: (q, d) unit rows, fp32 or fp64; q is cut by the caller.
        keep: How many, at most m.

    Returns:
        Similarities (q, keep) and rows of the bank (q, keep), int64.
    """
    best = queries.new_full((len(queries), keep), -math.inf)
    places = torch.zeros((len(queries), keep), dtype=torch.int64, device=queries.device)
    # In fp64 blocks are half as wide; the first one, of which everything passes, is short.
    step = BANK_ROWS * 4 // queries.element_size()
    start, stop = 0, min(step, max(keep, 1024))
    while start < len(bank):
        best, places = _merge(best, places, _block(queries, bank[start:stop]), start)
        start, stop = stop, stop + step
    return best, places


def _vote(
    similarities: Tensor, labels: Tensor, *, k: int, temperature: float, classes: int, error: float
) -> tuple[Tensor, Tensor]:
    """Vote of the k nearest, on the CPU in fp64, where the order of summation is fixed.

    Args:
        similarities: (q, at least k) fp64, best first; the one after the k-th shows near-ties.
        labels: (q, at least k) classes of these neighbours.
        k: Neighbours that vote.
        temperature: T of exp(similarity / T).
        classes: Number of classes.
        error: Largest error of a similarity.

    Returns:
        Predicted classes (q,) and whether exact similarities must give the same ones (q,).
    """
    top = similarities[:, :k]
    weights = ((top - top[:, :1]) / temperature).exp()  # a common factor changes no vote
    votes = weights.new_zeros((len(top), classes)).scatter_add_(1, labels[:, :k], weights)
    predicted = votes.argmax(dim=1)  # the lowest class of a tie
    best = votes.amax(dim=1)
    runner_up = votes.scatter(1, predicted[:, None], -math.inf).amax(dim=1)
    # Each weight is wrong by at most this share; and where the next neighbour is about as near as
    # the k-th, that many may change places, each taking a vote from the best class to another.
    share = math.expm1(min(error / temperature, 50.0))
    close = (top[:, -1:] - similarities[:, k : k + 1] <= 2 * error).any(dim=1)
    swaps = (top <= top[:, -1:] + 2 * error).sum(dim=1) * close
    bound = 2 * (share * best + swaps * weights[:, -1] * (1 + share))
    return predicted, best - runner_up > bound


def _check(bank: Tensor, k: tuple[int, ...], temperature: float) -> None:
    """Raise on settings that mean nothing."""
    if not k or min(k) < 1:
        raise UserError(f"k={k} must name at least one number of neighbours, each 1 or more")
    if max(k) > len(bank):
        raise UserError(
            f"k={max(k)} is more than the bank's {len(bank)} images; use k of at most {len(bank)}"
        )
    if not temperature > 0:
        raise UserError(f"temperature={temperature} must be above 0; the field uses 0.07")


def knn_predict(
    bank: Tensor,
    bank_labels: Tensor,
    queries: Tensor,
    *,
    k: tuple[int, ...],
    temperature: float,
    classes: int,
) -> dict[int, Tensor]:
    """Weighted k-nearest-neighbour classification by cosine similarity, for all k in one pass.

    Each of the k most similar bank images votes for its class with weight exp(cos / T)
    (Wu et al. 2018, Sec. 3.4; DINO, eval_knn.py). Ties between images go to the lower row of the
    bank, between classes to the lower class. Working memory is bounded (see QUERY_ROWS and
    BANK_ROWS); bank and queries are never copied whole.

    Args:
        bank: (m, d) fp32 rows of unit length.
        bank_labels: (m,) int64 classes, 0 to classes - 1.
        queries: (n, d) fp32 rows of unit length, on the same device.
        k: Numbers of neighbours.
        temperature: T, above 0.
        classes: Number of classes.

    Returns:
        For each k the predicted classes (n,), int64, on the CPU.

    Raises:
        UserError: k is empty, below 1 or above m; temperature is not above 0.
    """
    _check(bank, k, temperature)
    keep = min(max(k) + 1, len(bank))
    # Rounding errors of a dot product of unit rows grow with sqrt(d); 8 u sqrt(d) is exceeded
    # with a probability of about 1e-13 (Higham and Mary 2019, Thm. 3.1).
    error = 8 * 2.0**-24 * math.sqrt(bank.shape[1])
    labels = bank_labels.cpu()

    def search(block: Tensor, error: float) -> tuple[Tensor, Tensor]:
        similarities, places = (found.cpu() for found in nearest(bank, block, keep))
        votes = [
            _vote(
                similarities.double(),
                labels[places],
                k=each,
                temperature=temperature,
                classes=classes,
                error=error,
            )
            for each in k
        ]
        return torch.stack([v[0] for v in votes]), torch.stack([v[1] for v in votes]).all(dim=0)

    predictions = torch.empty((len(k), len(queries)), dtype=torch.int64)
    for start in range(0, len(queries), QUERY_ROWS):
        block = queries[start : start + QUERY_ROWS]
        predicted, safe = search(block, error)
        unsure = (~safe).nonzero().squeeze(1)
        if len(unsure):
            predicted[:, unsure], _ = search(block[unsure.to(block.device)].double(), 0.0)
        predictions[:, start : start + QUERY_ROWS] = predicted
    return dict(zip(k, predictions, strict=True))
