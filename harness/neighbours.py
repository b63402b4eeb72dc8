"""Weighted k-nearest-neighbour votes: exact, all k in one pass, the bank shared among processes.

The search runs in fp32. Where its rounding could change a vote (near-ties at the k-th place or
between two classes), the query is searched again in fp64 on a fixed grid of similarities. So the
predictions don't depend on how bank and queries are cut, hence not on the number of processes, nor
on who searches (torch, faiss).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from harness import dist, nearest
from harness.errors import UserError
from harness.nearest import Backend, Search


class Bank(NamedTuple):
    """Images whose classes are known; each process may hold the features of some of them."""

    rows: Tensor  # (m, d) fp32 unit rows, on this process's device
    labels: Tensor  # (M,) int64 classes of all processes' images, on the CPU
    # int64 (m,), ascending: which of the M images the rows are; None: all, on this process alone
    positions: Tensor | None = None


@dataclass(frozen=True, kw_only=True)
class Vote:
    """How neighbours vote."""

    k: tuple[int, ...]  # numbers of neighbours
    temperature: float  # T of exp(similarity / T), above 0
    classes: int

    def of(self, similarities: Tensor, labels: Tensor, error: float) -> tuple[Tensor, Tensor]:
        """Votes of the nearest, on the CPU in fp64, where the order of summation is fixed.

        Args:
            similarities: (q, at least max(k)) fp64, best first; the one after the k-th shows
                near-ties.
            labels: (q, at least max(k)) classes of these neighbours.
            error: Largest error of a similarity.

        Returns:
            Predicted classes (len(k), q), and whether exact similarities must give the same ones
            for every k (q,).
        """
        weights = ((similarities - similarities[:, :1]) / self.temperature).exp()
        votes = weights.new_zeros((len(weights), self.classes))
        predicted = torch.empty((len(self.k), len(weights)), dtype=torch.int64)
        safe = torch.ones(len(weights), dtype=torch.bool)
        counted = 0
        for place, k in sorted(enumerate(self.k), key=lambda pair: pair[1]):
            votes.scatter_add_(1, labels[:, counted:k], weights[:, counted:k])
            counted = k
            best, winner = votes.max(dim=1, keepdim=True)  # the lowest class of a tie
            runner_up = votes.scatter_(1, winner, -math.inf).amax(dim=1)
            votes.scatter_(1, winner, best)
            predicted[place], best = winner.squeeze(1), best.squeeze(1)
            # Each weight is wrong by at most this share; and where the next neighbour is about as
            # near as the k-th, that many may change places, each taking a vote from the best class
            # to another.
            share = math.expm1(min(error / self.temperature, 50.0))
            top, last = similarities[:, :k], similarities[:, k - 1 : k]
            close = (last - similarities[:, k : k + 1] <= 2 * error).any(dim=1)
            swaps = (top <= last + 2 * error).sum(dim=1) * close
            bound = 2 * (share * best + swaps * weights[:, k - 1] * (1 + share))
            safe &= best - runner_up > bound
        return predicted, safe


def _check(images: int, k: tuple[int, ...], temperature: float) -> None:
    """Raise on settings that mean nothing."""
    if not k or min(k) < 1:
        raise UserError(f"k={k} must name at least one number of neighbours, each 1 or more")
    if max(k) > images:
        raise UserError(
            f"k={max(k)} is more than the bank's {images} images; use k of at most {images}"
        )
    if not temperature > 0:
        raise UserError(f"temperature={temperature} must be above 0; the field uses 0.07")


def knn_predict(
    bank: Bank, queries: Tensor, vote: Vote, *, backend: Backend | None = None
) -> dict[int, Tensor]:
    """Weighted k-nearest-neighbour classification by cosine similarity, for all k in one pass.

    Each of the k most similar bank images votes for its class with weight exp(cos / T)
    (Wu et al. 2018, Sec. 3.4; DINO, eval_knn.py). Ties between images go to the lower position in
    the bank, between classes to the lower class.

    Every process searches its share of the bank for everybody's queries, so that together they do
    the work once and none holds more of the bank than its share. Working memory is bounded (see
    `harness.nearest`); bank and queries are never copied whole.

    Args:
        bank: Its rows and their labels.
        queries: (n, d) fp32 rows of unit length, on the same device; n may differ from process to
            process.
        vote: k, temperature, number of classes.
        backend: Who searches; predictions are the same. Default: faiss on CPUs, torch on GPUs.

    Returns:
        For each k the predicted classes (n,), int64, on the CPU.

    Raises:
        UserError: k is empty, below 1 or more than the images; temperature is not above 0.
    """
    _check(len(bank.labels), vote.k, vote.temperature)
    keep = min(max(vote.k) + 1, len(bank.labels))
    search = nearest.search_by(backend or nearest.default_backend(bank.rows))
    predictions = torch.empty((len(vote.k), len(queries)), dtype=torch.int64)
    unsure = torch.zeros(len(queries), dtype=torch.bool)
    exactly = partial(nearest.nearest_exactly, search=search)
    rows = torch.arange(len(queries))
    for chosen in _rounds(rows):
        similarities, places = _everywhere(bank, queries[chosen], keep, search)
        error = nearest.rounding(queries.shape[1])
        predictions[:, chosen], safe = vote.of(similarities, bank.labels[places], error)
        unsure[chosen] = ~safe
    for chosen in _rounds(rows[unsure]):
        similarities, places = _everywhere(bank, queries[chosen], keep, exactly)
        predictions[:, chosen], _ = vote.of(similarities, bank.labels[places], 0.0)
    return dict(zip(vote.k, predictions, strict=True))


def _rounds(rows: Tensor) -> tuple[Tensor, ...]:
    """`rows` in blocks, as many on each process: the last ones may be empty."""
    size = max(nearest.QUERY_ROWS // dist.world(), 1)
    blocks = rows.split(size) if len(rows) else ()
    count = torch.tensor([len(blocks)], device=dist.device())
    most = int(dist.gather_rows(count).max())
    return (*blocks, *[rows[:0]] * (most - len(blocks)))


def _everywhere(bank: Bank, queries: Tensor, keep: int, search: Search) -> tuple[Tensor, Tensor]:
    """The nearest of all processes' rows to this process's queries, on the CPU.

    Args:
        bank: This process's share.
        queries: (q, d), this process's.
        keep: How many, at most the images of all processes.
        search: Of one share.

    Returns:
        fp64 similarities and positions (q, keep), best first, ties to the lower position.
    """
    if bank.positions is None:
        similarities, places = search(bank.rows, queries, keep)
        return similarities.double().cpu(), places.cpu()
    asked = dist.gather_rows(queries)
    counts = dist.gather_rows(torch.tensor([len(queries)], device=dist.device())).tolist()
    own = min(keep, len(bank.rows))
    found = torch.full((len(asked), keep), -math.inf, dtype=torch.float64, device=asked.device)
    positions = torch.zeros((len(asked), keep), dtype=torch.int64, device=asked.device)
    if own and len(asked):
        similarities, places = search(bank.rows, asked, own)
        found[:, :own] = similarities
        positions[:, :own] = bank.positions.to(places.device)[places]
    similarities = dist.exchange(found, counts).cpu().flatten(1)
    positions = dist.exchange(positions, counts).cpu().flatten(1)
    positions, order = positions.sort(dim=1, stable=True)
    best, by_rank = similarities.gather(1, order).sort(dim=1, descending=True, stable=True)
    return best[:, :keep], positions.gather(1, by_rank)[:, :keep]
