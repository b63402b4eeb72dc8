"""Claim: thirteen learning rates of a linear head cost hardly more than one backbone pass.

A training step of all heads (features, gradients, SGD) beside the features alone. One thread,
1,000 classes. `python benchmarks/linear_heads.py [--quick] [--json]`
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from benchmarks import timing
from harness.backbone import build_backbone
from harness.classify import Heads, gradients, initial_heads, sgd_step
from harness.features import embed, frozen
from harness.fusion import fused
from harness.protocol import HeadTraining
from harness.recipe import BackboneSpec

# DINOv2's grid, eval/linear.py: the largest that is in use.
_RATES = (1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 0.1)


def step(heads: Heads, features: Tensor, labels: Tensor, settings: HeadTraining) -> None:
    """One of all heads."""
    sgd_step(heads, gradients(heads, features, labels), settings, 1.0)


def error(settings: HeadTraining) -> float:
    """Largest difference of a head's weights after three steps to those of a head trained alone."""
    torch.manual_seed(0)
    batches = [(torch.randn(32, 24), torch.randint(7, (32,))) for _ in range(3)]
    heads = initial_heads(settings, 7, 24)
    for features, labels in batches:
        step(heads, features, labels, settings)
    largest = 0.0
    for place, rate in enumerate(settings.lr):
        alone = replace(settings, lr=(rate,))
        head = initial_heads(alone, 7, 24)
        for features, labels in batches:
            step(head, features, labels, alone)
        difference = (head.weight[0] - heads.weight[place]).abs().max() / head.weight.abs().max()
        largest = max(largest, difference.item())
    return largest


def main() -> None:
    """Measure and print."""
    options = timing.options(__doc__)
    torch.set_num_threads(1)
    name, size, count = ("resnet_tiny", 32, 4) if options.quick else ("resnet50", 224, 64)
    settings = HeadTraining(lr=_RATES, batch_size=count)
    torch.manual_seed(0)
    backbone = build_backbone(BackboneSpec(name=name), size)
    images, labels = torch.randn(count, 3, size, size), torch.randint(1000, (count,))
    heads = initial_heads(settings, 1000, backbone.dim)
    with frozen(backbone):
        trunk = fused(backbone)

        def features() -> Tensor:
            return embed(trunk, images, rows=count)

        runs = {
            "ours": lambda: step(heads, features(), labels, settings),
            "one backbone pass": features,
        }
        times = timing.interleaved(runs, repetitions=1 if options.quick else 5)
    case = f"{len(_RATES)} rates, {name}, {size} px, batch {count}"
    claims = [
        timing.claim(case, times, "one backbone pass", must=1.15, stretch=1.05),
        timing.error_claim(f"{len(_RATES)} rates, weights", "one at a time", error(settings), 1e-6),
    ]
    timing.show_claims(claims, as_json=options.json)


if __name__ == "__main__":
    main()
