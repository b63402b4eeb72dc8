"""Claim: kNN votes for four k cost little more than the matrix product of similarities.

Beside lightly's function and the formula as DINO prints it (one k after the other, as their callers
do), and scikit-learn's classifier for one k. One thread. Without lightly its row is left out.
`python benchmarks/knn.py [--quick] [--json]`
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import normalize

from benchmarks import timing
from harness import nearest
from harness.nearest import Backend
from harness.neighbours import Bank, Vote, knn_predict

Peer = Callable[[Tensor, Tensor, Tensor], list[Tensor]]

_K = (10, 20, 100, 200)
_TEMPERATURE = 0.07
_CLASSES = 1000
_LOOP = 128  # queries at a time of the peers
_BOUND = 300 * 2**20  # bytes of working memory that harness.nearest states


def problem(rows: int, queries: int, width: int) -> tuple[Tensor, Tensor, Tensor]:
    """Bank, labels and queries: classes overlap so that about nine queries in ten are right."""
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn((_CLASSES, width), generator=generator)
    labels = torch.randint(_CLASSES, (rows + queries,), generator=generator)
    features = centres[labels]
    features += 3.0 * torch.randn(features.shape, generator=generator)
    normalize(features, out=features)
    return features[:rows].clone(), labels[:rows], features[rows:].clone()


def ours(backend: Backend, bank: Tensor, labels: Tensor, queries: Tensor) -> list[Tensor]:
    """Predictions for every k."""
    vote = Vote(k=_K, temperature=_TEMPERATURE, classes=_CLASSES)
    return list(knn_predict(Bank(bank, labels), queries, vote, backend=backend).values())


def textbook(bank: Tensor, labels: Tensor, queries: Tensor) -> list[Tensor]:
    """Every k by itself: all similarities of some queries, the k largest, weighted one-hot rows."""
    found = []
    for k in _K:
        parts = []
        for block in queries.split(_LOOP):
            similarities, places = (block @ bank.T).topk(k, dim=1)
            one_hot = torch.zeros((len(block) * k, _CLASSES), dtype=bank.dtype)
            one_hot.scatter_(1, labels[places].view(-1, 1), 1)
            weights = (similarities / _TEMPERATURE).exp()
            votes = (one_hot.view(len(block), k, _CLASSES) * weights[:, :, None]).sum(dim=1)
            parts.append(votes.argmax(dim=1))
        found.append(torch.cat(parts))
    return found


def lightlys(bank: Tensor, labels: Tensor, queries: Tensor) -> list[Tensor]:
    """`lightly.utils.benchmarking.knn_predict`, once for each k."""
    from lightly.utils import benchmarking  # pyright: ignore[reportMissingImports]

    return [
        torch.cat(
            [
                benchmarking.knn_predict(block, bank.T, labels, _CLASSES, k, _TEMPERATURE)[:, 0]
                for block in queries.split(_LOOP)
            ]
        )
        for k in _K
    ]


def scikit_learns(bank: Tensor, labels: Tensor, queries: Tensor) -> list[Tensor]:
    """`KNeighborsClassifier` for the largest k alone."""
    import numpy as np
    from sklearn.neighbors import KNeighborsClassifier

    def weights(distances: np.ndarray) -> np.ndarray:
        return np.exp((1 - distances) / _TEMPERATURE)

    model = KNeighborsClassifier(
        _K[-1],
        weights=weights,  # pyright: ignore[reportArgumentType]
        algorithm="brute",
        metric="cosine",
    )
    model.fit(bank.numpy(), labels.numpy())
    return [torch.from_numpy(model.predict(queries.numpy()))]


def product(bank: Tensor, queries: Tensor) -> None:
    """The bound: all similarities, block by block into the same memory."""
    out = torch.empty(len(queries), min(nearest.BANK_ROWS, len(bank)))
    for start in range(0, len(bank), nearest.BANK_ROWS):
        rows = bank[start : start + nearest.BANK_ROWS]
        torch.mm(queries, rows.T, out=out[:, : len(rows)])


def peers() -> dict[str, Peer]:
    """Those that are installed, by name."""
    found = {"plain formula": textbook, "scikit-learn, one k": scikit_learns}
    try:
        import lightly  # noqa: F401  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        print(f"lightly is left out: {error}", file=sys.stderr)
        return found
    return {"lightly": lightlys, **found}


def alone(backend: Backend, rows: int, queries: int, width: int) -> timing.Run:
    """The votes of one backend, for a process of its own."""
    torch.set_num_threads(1)
    return partial(ours, backend, *problem(rows, queries, width))


def mistakes() -> float:
    """Share of predictions that differ from the formula in fp64, neighbours nearly the same."""
    bank, labels, queries = problem(3000, 500, 32)
    bank[:1500] = normalize(bank[:50].repeat(30, 1) + 1e-4 * bank[:1500], dim=1)
    expected = textbook(bank.double(), labels, queries.double())
    wrong = [
        (a != b).float().mean().item()
        for backend in ("torch", "faiss")
        for a, b in zip(ours(backend, bank, labels, queries), expected, strict=True)
    ]
    return max(wrong)


def main() -> None:
    """Measure and print."""
    options = timing.options(__doc__)
    torch.set_num_threads(1)
    tiny = (2000, 8, 16)
    rows, queries, width = tiny if options.quick else (131_072, 512, 384)
    bank, labels, asked = problem(rows, queries, width)
    case = f"bank {rows:,} × {width}, k {'/'.join(map(str, _K))}"
    others = peers()
    runs: dict[str, timing.Run] = {
        "torch": partial(ours, "torch", bank, labels, asked),
        "faiss": partial(ours, "faiss", bank, labels, asked),
        "matrix product": partial(product, bank, asked),
        **{name: partial(peer, bank, labels, asked) for name, peer in others.items()},
    }
    times = timing.interleaved(runs, repetitions=1 if options.quick else 5)
    claims = []
    for backend, must, stretch in (("torch", 1.7, 1.25), ("faiss", 1.3, 1.1)):
        both = times | {"ours": times[backend]}
        name = f"{case}, {backend}"
        bound = {"must": must, "stretch": stretch}
        claims.append(timing.claim(name, both, "matrix product", **bound))
        for peer in others:
            promised = {"must": 4, "stretch": 8} if peer == "lightly" else {}
            claims.append(timing.claim(name, both, peer, speed=True, **promised))
        peak = timing.peak_memory(alone, (backend, *tiny), (backend, rows, queries, width))
        claims.append(timing.memory_claim(name, peak, "bound stated", _BOUND, must=1.0))
    claims.append(timing.error_claim("predictions that differ", "formula, fp64", mistakes(), 0.0))
    timing.show_claims(claims, as_json=options.json)


if __name__ == "__main__":
    main()
