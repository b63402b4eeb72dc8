"""Claim: frozen features come faster with channels last, and faster still with fused batch norms.

Beside the same ResNet-50 as its library builds it. One thread, 224 px, images in memory.
`python benchmarks/features.py [--quick] [--json]`
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from benchmarks import timing
from harness.backbone import Backbone, build_backbone
from harness.features import embed
from harness.fusion import fused
from harness.recipe import BackboneSpec


def plain(backbone: Backbone, images: Tensor) -> Tensor:
    """Features (n, dim) of the backbone as it is, images in whatever memory format they have."""
    with torch.no_grad():
        return backbone(images)


def ours(backbone: Backbone, images: Tensor) -> Tensor:
    """The same by `embed`, in one batch."""
    with torch.no_grad():
        return embed(backbone, images, rows=len(images))


def trunk(name: str, size: int, memory_format: torch.memory_format) -> Backbone:
    """A backbone whose batch norms have seen images, so that they are not the identity."""
    torch.manual_seed(0)
    backbone = build_backbone(BackboneSpec(name=name), size).train()
    with torch.no_grad():
        for _ in range(3):
            backbone(torch.randn(8, 3, 64, 64))
    return backbone.to(memory_format=memory_format).eval()  # pyright: ignore[reportCallIssue]


def main() -> None:
    """Measure and print."""
    options = timing.options(__doc__)
    torch.set_num_threads(1)
    name, size, count = ("resnet_tiny", 32, 2) if options.quick else ("resnet50", 224, 16)
    images = torch.randn(count, 3, size, size)
    as_built = trunk(name, size, torch.contiguous_format)
    last = trunk(name, size, torch.channels_last)
    folded = fused(last)
    runs: dict[str, timing.Run] = {
        "as built": partial(plain, as_built, images),
        "channels last": partial(ours, last, images),
        "fused": partial(ours, folded, images),
    }
    times = timing.interleaved(runs, repetitions=1 if options.quick else 5)
    expected = plain(as_built, images)
    error = (ours(folded, images) - expected).abs().max() / expected.abs().max()
    case = f"{name}, {size} px, {count} images"
    claims = [
        timing.claim(
            f"{case}, {who}", times | {"ours": times[who]}, "as built", speed=True, must=must
        )
        for who, must in (("channels last", 1.3), ("fused", 1.4))
    ]
    claims.append(timing.error_claim(case, "as built", error.item(), 1e-5))
    timing.show_claims(claims, as_json=options.json)


if __name__ == "__main__":
    main()
