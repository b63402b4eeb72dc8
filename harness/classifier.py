"""A trunk with a linear head, trained together: the network, its optimiser, its predictions."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from harness import dist, draws
from harness.features import BATCH_SIZE, Features, embed, frozen, gather_numbers
from harness.loader import Plan, eval_batches, loader_workers
from harness.optim import Lars
from harness.progress import track

if TYPE_CHECKING:
    from harness.backbone import Backbone
    from harness.data import ImageSet
    from harness.protocol import FineTuning, Trial
    from harness.views import CenterCrop


class Classifier(nn.Module):
    """A trunk and its linear head: images in, logits out."""

    def __init__(self, backbone: Backbone, classes: int, settings: FineTuning) -> None:
        super().__init__()
        # Of the sources none drops paths while fine-tuning.
        self.backbone = backbone.teacher().requires_grad_(True)
        self.head = _initial_head(backbone.dim, classes, settings)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (n, classes) of images (n, 3, H, W)."""
        return self.head(self.backbone(images))


def _initial_head(width: int, classes: int, settings: FineTuning) -> nn.Linear:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(draws.torch_seed(settings.seed))
        head = nn.Linear(width, classes)
        if settings.head_init != "torch":
            nn.init.normal_(head.weight, std=0.01 if settings.head_init == "normal" else 0.0)
            nn.init.zeros_(head.bias)
    return head


def build_optimizer(model: Classifier, settings: FineTuning, trial: Trial) -> torch.optim.Optimizer:
    """SGD, or LARS on the trunk's matrices, with the trunk and the head at rates of their own."""
    trunk = {"peak": trial.lr, "drop": settings.drop}
    head_drop = settings.drop if settings.head_drop is None else settings.head_drop
    head = {"peak": trial.head_lr, "drop": head_drop, "params": list(model.head.parameters())}
    parameters = list(model.backbone.parameters())
    if settings.optimizer == "sgd":
        return torch.optim.SGD(
            [{"params": parameters, **trunk}, head],
            lr=0.0,
            momentum=settings.momentum,
            nesterov=settings.nesterov,
            weight_decay=settings.weight_decay,
            foreach=True,
        )
    # simclr @383d414: norms, biases and the supervised head are neither adapted nor decayed. (Its
    # momentum buffer holds the learning rate too, which differs only while the rate changes.)
    matrices = [p for p in parameters if p.ndim > 1]
    others = [p for p in parameters if p.ndim <= 1]
    groups = [
        {"params": matrices, "adapt": True, "weight_decay": settings.weight_decay, **trunk},
        {"params": others, "adapt": False, **trunk},
        {"adapt": False, **head},
    ]
    return Lars(groups, lr=0.0, momentum=settings.momentum)


def set_rates(
    optimizer: torch.optim.Optimizer, settings: FineTuning, epoch: float, epochs: int
) -> None:
    """Write the learning rates after `epoch` of `epochs` into every group."""
    for group in optimizer.param_groups:
        group["lr"] = group["peak"] * settings.lr_factor(epoch, epochs, group["drop"])


def likeliest(
    model: Classifier, data: ImageSet, transform: CenterCrop, *, indices: np.ndarray | None = None
) -> Features:
    """The five likeliest classes of images, each image once over all processes.

    Args:
        model: In eval mode here.
        data: A split.
        transform: Of each image; the normalisation is the trunk's.
        indices: Only these images of the split; default all.

    Returns:
        This process's share; `values` are classes (n, min(5, classes)), best first, on the CPU.
    """
    positions = np.arange(len(data)) if indices is None else indices
    mine = torch.from_numpy(positions[dist.rank() :: dist.world()])
    plan = Plan(
        rank=dist.rank(),
        world=dist.world(),
        indices=positions,
        device=str(dist.device()),
        workers=loader_workers(),
    )
    top = [torch.empty((0, min(5, len(data.classes))), dtype=torch.int64)]
    with frozen(model.backbone) as trunk:
        batches = eval_batches(data, transform, trunk.pixels, batch_size=BATCH_SIZE, plan=plan)
        total = math.ceil(len(mine) / BATCH_SIZE)
        for batch in track(batches, label=f"classes of {data.name} {data.split}", total=total):
            scores = model.head(embed(trunk, batch.views[0]))
            ranked = scores.sort(dim=1, descending=True, stable=True).indices
            top.append(ranked[:, :5].cpu())
    return Features(values=torch.cat(top), labels=torch.from_numpy(data.labels)[mine], indices=mine)


def top1(found: Features) -> float:
    """Share in percent of images whose likeliest class is theirs, over all processes."""
    return float(gather_numbers((found.values[:, 0] == found.labels).double()).mean()) * 100
