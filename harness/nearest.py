"""The most similar rows of a bank, exact, in bounded memory: by torch, by faiss, or in fp64.

Cost: one matrix product of 2 * queries * rows * width operations, and little beside it: of each
block of similarities only what exceeds a query's worst place so far is ever sorted.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

Backend = Literal["torch", "faiss"]
Search = Callable[[Tensor, Tensor, int], tuple[Tensor, Tensor]]

# Working memory beside bank and queries: one block of similarities (32 MiB), the maxima of its
# groups and the candidates that pass, with faiss 16 MiB and the candidates; in fp64 a converted
# block of the bank: under 300 MiB at 2048-d.
QUERY_ROWS = 1024
BANK_ROWS = 8192
_GROUP = 8  # similarities whose maximum is looked at before any of them
_SPARSE = 0.3  # share of a block beyond which picking what passes takes more than sorting all
_SLACK = 64  # candidates beyond those asked for, among which fp64 finds the right ones
_RERANK = 2**22  # numbers of candidates' rows that are in fp64 at a time: 32 MiB
_GRID = 2.0**40  # fp64 similarities are rounded to 2^-40: a thousand times their rounding error
_THREADS_FROM = 1e10  # operations of a search below which threads take longer to meet than to work


class _Passed(NamedTuple):
    """Similarities that exceed a threshold, ordered by query: all of shape (c,)."""

    rows: Tensor
    columns: Tensor
    values: Tensor


def rounding(width: int) -> float:
    """Largest error of an fp32 similarity of unit rows of that width.

    Errors of a dot product grow with sqrt(d); 8 u sqrt(d) is exceeded with a probability of about
    1e-13 (Higham and Mary 2019, Thm. 3.1).
    """
    # Where the user lets matrix products be less precise (TF32, bf16), the bound has to know.
    exact = torch.get_float32_matmul_precision() == "highest"
    return 8 * (2.0**-24 if exact else 2.0**-8) * math.sqrt(width)


def default_backend(bank: Tensor) -> Backend:
    """On CPUs faiss, which takes hardly longer than the matrix product; on GPUs torch."""
    return "torch" if bank.is_cuda else "faiss"


def search_by(backend: Backend) -> Search:
    """The fp32 search of a backend: `nearest` or `nearest_by_faiss`."""
    return nearest if backend == "torch" else nearest_by_faiss


def _passing(block: Tensor, worst: Tensor) -> _Passed | None:
    """What exceeds `worst` (q, 1) in a block (q, b); None if that may be a large part of it."""
    b = block.shape[1]
    lanes = math.gcd(b, _GROUP)
    width = b // lanes
    # Groups are strided, so that their maxima are a vectorised pass: far cheaper than comparing
    # every similarity.
    tops = block.view(len(block), lanes, width).amax(dim=1)
    groups = (tops > worst).view(-1).nonzero().squeeze(1)
    if len(groups) * lanes > block.numel() * _SPARSE:
        return None
    rows = groups.div(width, rounding_mode="floor")
    offsets = torch.arange(lanes, device=block.device) * width
    places = (groups + rows * (b - width))[:, None] + offsets
    values = block.view(-1).take(places)
    hits = (values > worst.squeeze(1)[rows][:, None]).view(-1).nonzero().squeeze(1)
    chosen = places.view(-1)[hits]
    rows = chosen.div(b, rounding_mode="floor")
    return _Passed(rows, chosen - rows * b, values.view(-1)[hits])


def _lined_up(passed: _Passed, start: int, best: Tensor, places: Tensor) -> tuple[Tensor, Tensor]:
    """The running top (q, keep), and behind it what has passed, filled up with -inf: (q, wider)."""
    count, keep = best.shape
    counts = torch.bincount(passed.rows, minlength=count)
    width = keep + int(counts.max())
    first = counts.cumsum(0) - counts
    ranks = torch.arange(len(passed.rows), device=best.device) - first[passed.rows]
    slots = passed.rows * width + keep + ranks
    values = best.new_full((count, width), -math.inf)
    where = places.new_zeros((count, width))
    values[:, :keep], where[:, :keep] = best, places
    values.view(-1)[slots] = passed.values
    where.view(-1)[slots] = passed.columns + start
    return values, where


def nearest(bank: Tensor, queries: Tensor, keep: int) -> tuple[Tensor, Tensor]:
    """The `keep` most similar rows of the bank for each query, best first, ties in any order.

    Args:
        bank: (m, d) fp32 unit rows.
        queries: (q, d) fp32 unit rows; q is cut by the caller.
        keep: How many, at most m.

    Returns:
        Similarities (q, keep) and rows of the bank (q, keep), int64.
    """
    best = queries.new_full((len(queries), keep), -math.inf)
    places = torch.zeros((len(queries), keep), dtype=torch.int64, device=queries.device)
    worst = best[:, :1]
    scores = queries.new_empty(len(queries) * min(BANK_ROWS, len(bank)))
    for start in range(0, len(bank), BANK_ROWS):
        rows = bank[start : start + BANK_ROWS]
        block = scores[: len(queries) * len(rows)].view(len(queries), len(rows))
        torch.mm(queries, rows.T, out=block)
        if start == 0:
            worst = _first_threshold(block, keep)
        passed = _passing(block, worst)
        if passed is None:
            best, places = _whole(block, start, best, places)
        elif len(passed.rows):
            values, where = _lined_up(passed, start, best, places)
            best, order = values.topk(keep, dim=1, sorted=False)
            places = where.gather(1, order)
        worst = best.amin(dim=1, keepdim=True)
    best, order = best.sort(dim=1, descending=True)
    return best, places.gather(1, order)


def _whole(block: Tensor, start: int, best: Tensor, places: Tensor) -> tuple[Tensor, Tensor]:
    """The running top (q, keep) after a block (q, b) of which nothing is left out."""
    keep = best.shape[1]
    fresh, columns = block.topk(min(keep, block.shape[1]), dim=1, sorted=False)
    best, order = torch.cat([best, fresh], dim=1).topk(keep, dim=1, sorted=False)
    return best, torch.cat([places, columns + start], dim=1).gather(1, order)


def _first_threshold(block: Tensor, keep: int) -> Tensor:
    """A value (q, 1) that at least `keep` numbers of a block (q, b) exceed, if it has as many."""
    lanes = math.gcd(block.shape[1], _GROUP)
    if block.shape[1] // lanes < keep:
        return block.new_full((len(block), 1), -math.inf)
    tops = block.view(len(block), lanes, -1).amax(dim=1)
    least = tops.topk(keep, dim=1, sorted=False).values.amin(dim=1, keepdim=True)
    return torch.nextafter(least, torch.full_like(least, -math.inf))


@contextmanager
def _faiss_settings(operations: float) -> Iterator[Any]:
    """faiss, calling BLAS on torch's number of threads, or on one where there is little to do."""
    import faiss
    from threadpoolctl import threadpool_limits

    threshold = faiss.cvar.distance_compute_blas_threshold
    # From 1.15 on faiss takes loops of its own below 128,000 queries: eight times slower.
    faiss.cvar.distance_compute_blas_threshold = 20
    threads = torch.get_num_threads() if operations > _THREADS_FROM else 1
    try:
        with threadpool_limits(threads):
            yield faiss
    finally:
        faiss.cvar.distance_compute_blas_threshold = threshold


def nearest_by_faiss(bank: Tensor, queries: Tensor, keep: int) -> tuple[Tensor, Tensor]:
    """`nearest` by faiss's exact search on the CPU; neither bank nor queries are copied."""
    with _faiss_settings(2.0 * bank.numel() * len(queries)) as faiss:
        found = faiss.knn(queries.numpy(), bank.numpy(), keep, metric=faiss.METRIC_INNER_PRODUCT)
    return torch.from_numpy(found[0]), torch.from_numpy(found[1])


def nearest_exactly(
    bank: Tensor, queries: Tensor, keep: int, search: Search
) -> tuple[Tensor, Tensor]:
    """The `keep` most similar rows in fp64, best first, ties to the lower row.

    The fp32 search names a few more candidates than asked for. Where the last of them lies further
    behind the `keep`-th than both can be wrong, no other row comes into question, and the
    candidates are sorted by their fp64 similarities. Elsewhere (images many times over) the whole
    bank is searched in fp64.

    Args:
        bank: (m, d) fp32 unit rows.
        queries: (q, d) fp32 unit rows.
        keep: How many, at most m.
        search: The fp32 search.

    Returns:
        fp64 similarities on a grid of 2^-40, so that equal pairs tie, and rows: (q, keep) each.
    """
    wider = min(keep + _SLACK, len(bank))
    found, candidates = search(bank, queries, wider)
    gap = found[:, keep - 1] - found[:, -1]
    covered = (gap > 2 * rounding(bank.shape[1])) | (wider == len(bank))
    best = torch.empty((len(queries), keep), dtype=torch.float64, device=queries.device)
    places = torch.empty((len(queries), keep), dtype=torch.int64, device=queries.device)
    for chosen in covered.nonzero().squeeze(1).split(max(_RERANK // (wider * bank.shape[1]), 1)):
        best[chosen], places[chosen] = _reranked(bank, queries[chosen], candidates[chosen], keep)
    rest = (~covered).nonzero().squeeze(1)
    if len(rest):
        best[rest], places[rest] = _scanned(bank, queries[rest].double(), keep)
    return best, places


def _on_grid(similarities: Tensor) -> Tensor:
    return (similarities * _GRID).round_() / _GRID


def _reranked(
    bank: Tensor, queries: Tensor, candidates: Tensor, keep: int
) -> tuple[Tensor, Tensor]:
    """The best `keep` of candidates (q, c) in fp64."""
    candidates = candidates.sort(dim=1).values  # ties go to the lower row
    rows = bank[candidates].double()
    similarities = _on_grid((rows * queries.double()[:, None]).sum(dim=2))
    best, order = similarities.sort(dim=1, descending=True, stable=True)
    return best[:, :keep], candidates.gather(1, order)[:, :keep]


def _scanned(bank: Tensor, queries: Tensor, keep: int) -> tuple[Tensor, Tensor]:
    """The best `keep` of all rows in fp64."""
    best = queries.new_full((len(queries), keep), -math.inf)
    places = torch.zeros((len(queries), keep), dtype=torch.int64, device=queries.device)
    # Blocks are half as wide as in fp32; the first one, of which everything passes, is short.
    step = BANK_ROWS // 2
    start, stop = 0, min(step, max(keep, 1024))
    while start < len(bank):
        block = _on_grid(queries @ bank[start:stop].double().T)
        rows, columns = (block > best[:, -1:]).nonzero(as_tuple=True)
        if len(rows):
            passed = _Passed(rows, columns, block[rows, columns])
            values, where = _lined_up(passed, start, best, places)
            # Rows come in order, so that a stable sort gives ties to the lower one.
            values, order = values.sort(dim=1, descending=True, stable=True)
            best, places = values[:, :keep], where.gather(1, order[:, :keep])
        start, stop = stop, stop + step
    return best, places
