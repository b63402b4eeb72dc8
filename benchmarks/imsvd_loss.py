"""Claim: IMSVD's terms cost little more than the three matrix products that they need.

And a fraction of the memory of the formula as printed, which holds the joint matrix several
times. Forward and backward, one thread. `python benchmarks/imsvd_loss.py [--quick] [--json]`
"""

from __future__ import annotations

import torch
from torch import Tensor

from benchmarks import timing
from methods.imsvd import imsvd_terms, plain_terms

_UNITS = 80
_TERMS = {"ours": imsvd_terms, "plain formula": plain_terms}


def projections(images: int, variables: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """Both views' projections."""
    torch.manual_seed(0)
    shape = (images, variables * _UNITS)
    return [torch.randn(shape, dtype=dtype, requires_grad=True) for _ in range(2)]


def step(who: str, images: int, variables: int) -> timing.Run:
    """Terms and gradients by the implementation called `who`."""
    torch.set_num_threads(1)
    views = projections(images, variables)
    return lambda: gradients(who, views)


def gradients(who: str, views: list[Tensor]) -> list[Tensor]:
    """Values of the three terms, and the gradients of their sum."""
    terms = _TERMS[who](*views, units=_UNITS, temperature=1.0)
    found = torch.autograd.grad(torch.stack(list(terms.values())).sum(), views)
    return [*terms.values(), *found]


def products(images: int, variables: int) -> timing.Run:
    """The joint matrix, and what its gradient takes: two more products."""
    p, q = (x.detach() for x in projections(images, variables))
    joint, gradient = torch.empty(p.shape[1], p.shape[1]), torch.empty_like(p)

    def run() -> None:
        torch.mm(p.T, q, out=joint)
        torch.mm(p, joint, out=gradient)
        torch.mm(q, joint.T, out=gradient)

    return run


def error() -> float:
    """Largest relative difference to the plain formula in double precision."""
    ours, plain = (gradients(who, projections(37, 5, torch.float64)) for who in _TERMS)
    return max(
        ((a - b).abs().max() / b.abs().max()).item() for a, b in zip(ours, plain, strict=True)
    )


def main() -> None:
    """Measure and print."""
    options = timing.options(__doc__)
    torch.set_num_threads(1)
    tiny = (4, 2)
    timed, remembered = (tiny, tiny) if options.quick else ((1024, 51), (2048, 102))
    case = "N {}, D {}"
    runs = {who: step(who, *timed) for who in _TERMS} | {"three products": products(*timed)}
    times = timing.interleaved(runs, repetitions=1 if options.quick else 7)
    name = case.format(timed[0], timed[1] * _UNITS)
    peaks = {who: timing.peak_memory(step, (who, *tiny), (who, *remembered)) for who in _TERMS}
    claims = [
        timing.claim(name, times, "three products", must=1.30, stretch=1.12),
        timing.claim(name, times, "plain formula", speed=True),
        timing.memory_claim(
            case.format(remembered[0], remembered[1] * _UNITS),
            peaks["ours"],
            "plain formula",
            peaks["plain formula"],
            must=0.40,
            stretch=0.20,
        ),
        timing.error_claim("N 37, D 400, fp64", "plain formula", error(), 1e-12),
    ]
    timing.show_claims(claims, as_json=options.json)


if __name__ == "__main__":
    main()
