"""Optimisers and schedules: parameter groups, LARS, warm-up and cosine."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from harness.recipe import BASE_BATCH, Optim, Progress, Recipe

if TYPE_CHECKING:
    from harness.method import Method

TRUST = 0.001  # LARS's eta in the released code of VICReg, Barlow Twins, IMSVD and DINO


def cosine(start: float, end: float, fraction: float) -> float:
    """From `start` at 0 to `end` at 1 along half a cosine."""
    return end + 0.5 * (start - end) * (1 + math.cos(math.pi * fraction))


def learning_rate(optim: Optim, peak: float, final: float, progress: Progress) -> float:
    """Rate at a moment of the run: linear to `peak`, then by the recipe's schedule to `final`."""
    epoch = math.floor(progress.epoch) if optim.by_epoch else progress.epoch
    if epoch < optim.warmup_epochs:
        return optim.first_lr + (peak - optim.first_lr) * epoch / optim.warmup_epochs
    match optim.schedule:
        case "constant":
            return peak
        case "steps":
            return peak * optim.drop ** sum(epoch >= mark for mark in optim.milestones)
        case "cosine":
            begun = 0.0 if optim.whole_cosine else optim.warmup_epochs
            left = max(progress.epochs - begun, 1e-9)
            return cosine(peak, final, min((epoch - begun) / left, 1.0))


class Lars(torch.optim.Optimizer):
    """Layer-wise adaptive rate scaling, as VICReg, Barlow Twins, IMSVD and DINO run it.

    Per matrix d = grad + wd * w; d *= trust * ||w|| / ||d|| (1 if either norm is 0); then
    momentum m = mu * m + d and w -= lr * m. Groups with `adapt=False` skip the first line.
    Source: You et al. 2017; barlowtwins @8e8d284.

    With `rate_inside` m = mu * m + lr * d and w -= m, as SimCLR runs it (simclr @383d414,
    lars_optimizer.py with its default classic_momentum): it differs while the rate changes.
    """

    def __init__(
        self,
        groups: Iterable[dict[str, Any]],
        *,
        lr: float,
        momentum: float,
        rate_inside: bool = False,
    ) -> None:
        super().__init__(groups, {"lr": lr, "momentum": momentum, "weight_decay": 0.0})
        self.rate_inside = rate_inside

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
                updates = self.adapted(parameters, updates, group["weight_decay"])
            for p in parameters:
                if not self.state[p]:
                    self.state[p]["momentum"] = torch.zeros_like(p)
            buffers = [self.state[p]["momentum"] for p in parameters]
            torch._foreach_mul_(buffers, group["momentum"])
            inside, outside = (group["lr"], 1.0) if self.rate_inside else (1.0, group["lr"])
            torch._foreach_add_(buffers, updates, alpha=inside)
            torch._foreach_add_(parameters, buffers, alpha=-outside)

    @staticmethod
    def adapted(
        weights: list[Tensor], gradients: list[Tensor], weight_decay: float
    ) -> list[Tensor]:
        """Decayed gradients, each rescaled to TRUST times its weight's norm."""
        updates = torch._foreach_add(gradients, weights, alpha=weight_decay)
        weight_norms = torch.stack(torch._foreach_norm(weights))
        update_norms = torch.stack(torch._foreach_norm(updates))
        ratios = torch.where(
            (weight_norms > 0) & (update_norms > 0), TRUST * weight_norms / update_norms, 1.0
        )
        return list(torch._foreach_mul(updates, list(ratios.unbind())))


class Larc(Lars):
    """LARS as apex's LARC(trust_coefficient=.001, clip=False) around SGD: SwAV, DISSL.

    The trust ratio is ||w|| / (||grad|| + wd * ||w|| + 1e-8), and a tensor of which either norm
    is 0 keeps its plain gradient, without decay.
    """

    @staticmethod
    def adapted(
        weights: list[Tensor], gradients: list[Tensor], weight_decay: float
    ) -> list[Tensor]:
        """Decayed gradients, each rescaled to TRUST times its weight's norm."""
        weight_norms = torch.stack(torch._foreach_norm(weights))
        slopes = torch.stack(torch._foreach_norm(gradients))
        adapts = (weight_norms > 0) & (slopes > 0)
        ratios = TRUST * weight_norms / (slopes + weight_decay * weight_norms + 1e-8)
        ratios = torch.where(adapts, ratios, 1.0)
        decays = torch.where(adapts, weight_decay * ratios, 0.0)
        updates = torch._foreach_mul(gradients, list(ratios.unbind()))
        torch._foreach_add_(updates, torch._foreach_mul(weights, list(decays.unbind())))
        return list(updates)


class _Group(NamedTuple):
    """What parameters of one group have in common."""

    plain: bool  # 1-D: biases and norms
    decayed: bool
    constant: bool  # rate


def _group_of(name: str, p: nn.Parameter, method: Method, optim: Optim) -> _Group:
    plain = p.ndim <= 1
    decayed = name not in method.no_decay and (optim.decay_all or not plain)
    return _Group(plain, decayed, name.startswith(tuple(f"{m}." for m in method.constant_rate)))


def build_optimizer(method: Method, recipe: Recipe) -> torch.optim.Optimizer:
    """The recipe's optimiser over the trainable parameters of `method`.

    Matrices are decayed (and adapted by LARS); 1-D parameters are not unless the recipe says so,
    those in the method's `no_decay` never. Only 1-D parameters take the recipe's `bias_lr`; their
    final rate is lower in proportion. Modules in `constant_rate` keep their peak rate throughout.
    """
    optim = recipe.optim
    groups: dict[_Group, list[nn.Parameter]] = {}
    for name, p in method.named_parameters():
        if p.requires_grad:
            groups.setdefault(_group_of(name, p, method, optim), []).append(p)
    peak = optim.lr * recipe.batch_size / BASE_BATCH
    bias_share = 1.0 if optim.bias_lr is None else optim.bias_lr / optim.lr
    dicts = [
        {
            "params": parameters,
            "peak": peak * (bias_share if group.plain else 1.0),
            "final": optim.final_lr * (bias_share if group.plain else 1.0),
            "decayed": group.decayed,
            "adapt": group.decayed,
            "constant": group.constant,
            "weight_decay": 0.0,
        }
        for group, parameters in groups.items()
    ]
    momentum = optim.momentum
    match optim.name:
        case "adamw":
            return torch.optim.AdamW(dicts, lr=0.0, fused=True)
        case "adam":
            return torch.optim.Adam(dicts, lr=0.0, fused=True)
        case "sgd":
            return torch.optim.SGD(
                dicts, lr=0.0, momentum=momentum, nesterov=optim.nesterov, foreach=True
            )
        case "lars" | "simclr_lars":
            inside = optim.name == "simclr_lars"
            return Lars(dicts, lr=0.0, momentum=momentum, rate_inside=inside)
        case "larc":
            return Larc(dicts, lr=0.0, momentum=momentum)


def set_schedules(optimizer: torch.optim.Optimizer, recipe: Recipe, epoch: float) -> None:
    """Write this moment's learning rate and weight decay into every group."""
    optim, progress = recipe.schedule_at(epoch)
    decay = optim.weight_decay
    if optim.final_weight_decay is not None:
        decay = cosine(decay, optim.final_weight_decay, progress.fraction)
    pace = 1.0 if optim is recipe.optim else optim.lr / recipe.optim.lr
    for group in optimizer.param_groups:
        group["lr"] = group["peak"] * pace
        if not group["constant"]:
            group["lr"] = learning_rate(optim, group["lr"], group["final"] * pace, progress)
        group["weight_decay"] = decay if group["decayed"] else 0.0


@torch.no_grad()
def clip_each_gradient(module: nn.Module, largest: float) -> None:
    """Scale down every gradient longer than `largest`, parameter by parameter, as DINO clips."""
    gradients = [p.grad for p in module.parameters() if p.grad is not None]
    norms = torch.stack(torch._foreach_norm(gradients))
    factors = (largest / (norms + 1e-6)).clamp(max=1.0)
    torch._foreach_mul_(gradients, list(factors.unbind()))
