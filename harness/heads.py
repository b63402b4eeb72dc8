"""Projectors and prototypes: what stands between a trunk and its loss."""

from __future__ import annotations

import itertools
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from harness.crop_entropy import logits_without_gradient


def mlp(
    widths: tuple[int, ...],
    *,
    hidden_bias: bool = True,
    hidden_norm: bool = True,
    last_bias: bool = False,
    last_norm: Literal["none", "affine", "plain"] = "none",
) -> nn.Sequential:
    """Linear-BN-ReLU blocks, then a Linear: the projectors and predictors of most methods.

    Args:
        widths: Input, hidden and output widths: (2048, 8192, 8160) is IMSVD's.
        hidden_bias: Whether the hidden Linears have a bias (Barlow Twins': no).
        hidden_norm: Whether batch norm follows them (MoCo v2's: no).
        last_bias: Whether the last Linear has a bias.
        last_norm: Batch norm after the last Linear, with or without weight and bias.
    """
    *hidden, last = itertools.pairwise(widths)
    layers: list[nn.Module] = []
    for width_in, width_out in hidden:
        layers += [
            nn.Linear(width_in, width_out, bias=hidden_bias),
            *([nn.BatchNorm1d(width_out)] if hidden_norm else []),
            nn.ReLU(inplace=True),
        ]
    layers.append(nn.Linear(*last, bias=last_bias))
    if last_norm != "none":
        layers.append(nn.BatchNorm1d(last[1], affine=last_norm == "affine"))
    return nn.Sequential(*layers)


class DINOProjector(nn.Module):
    """DINO's head before its last layer: three Linears with GELU, rows L2-normalised.

    Source: DINO (Caron et al. 2021), appendix C and released code @7c446df.
    """

    def __init__(self, width_in: int, hidden: int, width_out: int, *, batch_norm: bool) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            *_gelu_block(width_in, hidden, batch_norm),
            *_gelu_block(hidden, hidden, batch_norm),
            nn.Linear(hidden, width_out),
        )
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def forward(self, features: Tensor) -> Tensor:
        """(n, width_in) features to (n, width_out) unit vectors."""
        return F.normalize(self.layers(features), dim=1)


def _gelu_block(width_in: int, width_out: int, batch_norm: bool) -> list[nn.Module]:
    norm: list[nn.Module] = [nn.BatchNorm1d(width_out)] if batch_norm else []
    return [nn.Linear(width_in, width_out), *norm, nn.GELU()]


class Prototypes(nn.Module):
    """DINO's last layer: a weight-normalised Linear without bias.

    Its weight starts as nn.Linear's does and is normalised at use, so that its norm only sets the
    pace of learning; the gain is 1 and fixed, or learnt (`norm_last_layer=False` in DINO's code).
    """

    def __init__(self, width_in: int, prototypes: int, *, fixed_gain: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(nn.Linear(width_in, prototypes, bias=False).weight.detach())
        self.gain = nn.Parameter(torch.ones(prototypes, 1), requires_grad=not fixed_gain)

    def forward(self, z: Tensor) -> Tensor:
        """Logits (…, prototypes) of unit rows z (…, width_in)."""
        if not torch.is_grad_enabled():
            return logits_without_gradient(z, self.weight, self.gain)
        return F.linear(z, F.normalize(self.weight, dim=1) * self.gain)
