"""Claim: Barlow Twins and VICReg many times faster than lightly's, in a fraction of the memory.

Theirs make the (d, d) covariance of the projections; here it is the (N, N) Gram matrices where
these are smaller. Forward and backward, one thread.
`python benchmarks/gram_losses.py [--quick] [--json]`
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from lightly.loss import BarlowTwinsLoss, VICRegLoss
from torch import Tensor

from baselines.barlow_twins import barlow_twins_terms
from baselines.vicreg import vicreg_terms
from benchmarks import timing

Loss = Callable[[Tensor, Tensor], Tensor]
_LOSSES: dict[str, dict[str, Loss]] = {
    "Barlow Twins": {
        "ours": lambda z1, z2: torch.stack([*barlow_twins_terms(z1, z2).values()]).sum(),
        "lightly": BarlowTwinsLoss(),
    },
    "VICReg": {
        "ours": lambda z1, z2: torch.stack([*vicreg_terms(z1, z2).values()]).sum(),
        "lightly": VICRegLoss(),
    },
}
# Speed at N 256 and N 1024, memory at N 256: must and stretch.
_PROMISED = {
    "Barlow Twins": ((20, 40), (3.5, 7), (0.12, 0.07)),
    "VICReg": ((40, 65), (8, 12), (0.12, 0.07)),
}
# Products of the Gram form, forward and backward: of aaᵀ, bbᵀ, and each with a or b.
_PRODUCTS = 4


def step(loss: str, who: str, images: int, width: int) -> timing.Run:
    """The loss by the implementation called `who`, with its gradients."""
    torch.set_num_threads(1)
    views = projections(images, width)
    return lambda: gradients(loss, who, views)


def projections(images: int, width: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """Both views' projections."""
    torch.manual_seed(0)
    return [torch.randn(images, width, dtype=dtype, requires_grad=True) for _ in range(2)]


def gradients(loss: str, who: str, views: list[Tensor]) -> list[Tensor]:
    """The loss and its gradients."""
    value = _LOSSES[loss][who](*views)
    return [value.detach(), *torch.autograd.grad(value, views)]


def products(images: int, width: int) -> timing.Run:
    """The matrix products of the Gram form: as many in both losses."""
    z = torch.randn(images, width)
    gram, gradient = torch.empty(images, images), torch.empty_like(z)

    def run() -> None:
        for _ in range(_PRODUCTS // 2):
            torch.mm(z, z.T, out=gram)
            torch.mm(gram, z, out=gradient)

    return run


def error(loss: str, images: int, width: int) -> float:
    """Largest relative difference to lightly's value and gradients, in double precision."""
    ours, theirs = (
        gradients(loss, who, projections(images, width, torch.float64))
        for who in ("ours", "lightly")
    )
    return max(
        ((a - b).abs().max() / b.abs().max()).item() for a, b in zip(ours, theirs, strict=True)
    )


def measure(loss: str, *, quick: bool) -> list[timing.Claim]:
    """All claims of one loss."""
    tiny, width = (4, 16), 64 if quick else 8192
    claims = []
    *speeds, memory = _PROMISED[loss]
    for images, (must, stretch) in zip((8, 16) if quick else (256, 1024), speeds, strict=True):
        case = f"{loss}, N {images}, D {width}"
        runs = {who: step(loss, who, images, width) for who in _LOSSES[loss]}
        runs["products"] = products(images, width)
        times = timing.interleaved(runs, repetitions=1 if quick else 5)
        claims += [
            timing.claim(case, times, "lightly", speed=True, must=must, stretch=stretch),
            timing.claim(case, times, "products"),
        ]
        if images < 512:
            ours, theirs = (
                timing.peak_memory(step, (loss, who, *tiny), (loss, who, images, width))
                for who in ("ours", "lightly")
            )
            must, stretch = memory
            claims.append(
                timing.memory_claim(case, ours, "lightly", theirs, must=must, stretch=stretch)
            )
    for images in (12, 60):  # fewer than columns: Gram; more: covariance
        claims.append(
            timing.error_claim(
                f"{loss}, N {images}, D 40, fp64", "lightly", error(loss, images, 40), 1e-12
            )
        )
    return claims


def main() -> None:
    """Measure and print."""
    options = timing.options(__doc__)
    torch.set_num_threads(1)
    claims = [claim for loss in _LOSSES for claim in measure(loss, quick=options.quick)]
    timing.show_claims(claims, as_json=options.json)


if __name__ == "__main__":
    main()
