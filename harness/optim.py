"""Optimisers and schedules: parameter groups, LARS, warm-up and cosine."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from harness.recipe import BASE_BATCH, Recipe

TRUST = 0.001  # LARS's eta in the released code of VICReg, Barlow Twins, IMSVD and DINO


def cosine(start: float, end: float, fraction: float) -> float:
    """From `start` at 0 to `end` at 1 along half a cosine."""
    return end + 0.5 * (start - end) * (1 + math.cos(math.pi * fraction))


def learning_rate(
    peak: float, final: float, *, warmup_epochs: float, epoch: float, epochs: int
) -> float:
    """Rate after `epoch` of `epochs`: linear from 0 to `peak`, then a cosine to `final`."""
    if epoch < warmup_epochs:
        return peak * epoch / warmup_epochs
    left = max(epochs - warmup_epochs, 1e-9)
    return cosine(peak, final, min((epoch - warmup_epochs) / left, 1.0))


class Lars(torch.optim.Optimizer):
    """Layer-wise adaptive rate scaling, as VICReg, Barlow Twins, IMSVD and DINO run it.

    Per matrix d = grad + wd * w; d *= trust * ||w|| / ||d|| (1 if either norm is 0); then
    momentum m = mu * m + d and w -= lr * m. Groups with `adapt=False` skip the first line.
    Source: You et al. 2017; barlowtwins @8e8d284.
    """

    def __init__(self, groups: Iterable[dict[str, Any]], *, lr: float, momentum: float) -> None:
        super().__init__(groups, {"lr": lr, "momentum": momentum, "weight_decay": 0.0})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """One update of all parameters that have a gradient."""
        assert closure is None, "LARS evaluates no closure"
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            if not parameters:
                continue
            updates = [p.grad for p in parameters]
            if group["adapt"]:
                updates = _adapted(parameters, updates, group["weight_decay"])
            for p in parameters:
                if not self.state[p]:
                    self.state[p]["momentum"] = torch.zeros_like(p)
            buffers = [self.state[p]["momentum"] for p in parameters]
            torch._foreach_mul_(buffers, group["momentum"])
            torch._foreach_add_(buffers, updates)
            torch._foreach_add_(parameters, buffers, alpha=-group["lr"])


def _adapted(weights: list[Tensor], gradients: list[Tensor], weight_decay: float) -> list[Tensor]:
    """Decayed gradients, each rescaled to TRUST times its weight's norm."""
    updates = torch._foreach_add(gradients, weights, alpha=weight_decay)
    weight_norms = torch.stack(torch._foreach_norm(weights))
    update_norms = torch.stack(torch._foreach_norm(updates))
    ratios = torch.where(
        (weight_norms > 0) & (update_norms > 0), TRUST * weight_norms / update_norms, 1.0
    )
    return list(torch._foreach_mul(updates, list(ratios.unbind())))


def build_optimizer(
    module: nn.Module, recipe: Recipe, no_decay: tuple[str, ...]
) -> torch.optim.Optimizer:
    """The recipe's optimiser over the trainable parameters of `module`.

    Matrices are decayed (and adapted by LARS); 1-D parameters and those named in `no_decay` are
    not. Only 1-D parameters take the recipe's `bias_lr`; their final rate is lower in proportion.
    """
    optim = recipe.optim
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for name, p in module.named_parameters():
        if p.requires_grad:
            plain = p.ndim <= 1
            groups.setdefault((plain, not plain and name not in no_decay), []).append(p)
    peak = optim.lr * recipe.batch_size / BASE_BATCH
    bias_share = 1.0 if optim.bias_lr is None else optim.bias_lr / optim.lr
    dicts = [
        {
            "params": parameters,
            "peak": peak * (bias_share if plain else 1.0),
            "final": optim.final_lr * (bias_share if plain else 1.0),
            "decayed": decayed,
            "weight_decay": 0.0,
        }
        for (plain, decayed), parameters in groups.items()
    ]
    match optim.name:
        case "adamw":
            return torch.optim.AdamW(dicts, lr=0.0, fused=True)
        case "sgd":
            return torch.optim.SGD(dicts, lr=0.0, momentum=optim.momentum, foreach=True)
        case "lars":
            dicts = [group | {"adapt": group["decayed"]} for group in dicts]
            return Lars(dicts, lr=0.0, momentum=optim.momentum)


def set_schedules(optimizer: torch.optim.Optimizer, recipe: Recipe, epoch: float) -> None:
    """Write this moment's learning rate and weight decay into every group."""
    optim = recipe.optim
    decay = optim.weight_decay
    if optim.final_weight_decay is not None:
        decay = cosine(decay, optim.final_weight_decay, epoch / recipe.epochs)
    for group in optimizer.param_groups:
        group["lr"] = learning_rate(
            group["peak"],
            group["final"],
            warmup_epochs=optim.warmup_epochs,
            epoch=epoch,
            epochs=recipe.epochs,
        )
        group["weight_decay"] = decay if group["decayed"] else 0.0


@torch.no_grad()
def clip_each_gradient(module: nn.Module, largest: float) -> None:
    """Scale down every gradient longer than `largest`, parameter by parameter, as DINO clips."""
    gradients = [p.grad for p in module.parameters() if p.grad is not None]
    norms = torch.stack(torch._foreach_norm(gradients))
    factors = (largest / (norms + 1e-6)).clamp(max=1.0)
    torch._foreach_mul_(gradients, list(factors.unbind()))
