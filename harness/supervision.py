"""Learning from labels, where some images have none."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from harness import dist
from harness.backbone import Backbone
from harness.loader import Batch
from harness.method import Method
from harness.recipe import Progress

UNSEEN = -1  # in place of a label that the recipe doesn't show


def cross_entropy_of_labelled(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy over the labelled images of the global batch, in nats.

    Args:
        logits: (n, classes) of this process's images.
        labels: (n,), UNSEEN for images that don't count.

    Returns:
        Scalar whose mean over processes is the global batch's; 0 if no image is labelled.
    """
    logits = logits.float() if logits.itemsize < 4 else logits
    total = F.cross_entropy(logits, labels, ignore_index=UNSEEN, reduction="sum")
    with torch.no_grad():
        images = dist.all_reduce_mean((labels != UNSEEN).sum().to(logits.dtype))
    # 0 images have a sum of 0, whatever it is divided by.
    return total / images.clamp(min=1 / dist.world())


class SupervisedMethod(Method):
    """A trunk and a linear classifier, trained on the labels that there are."""

    def __init__(self, backbone: Backbone, classes: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = nn.Linear(backbone.dim, classes)

    @property
    def classifier(self) -> nn.Linear:
        """Its only head."""
        return self.head

    def losses(self, batch: Batch, progress: Progress) -> dict[str, Tensor]:
        """Cross-entropy of the labelled images' first view."""
        logits = self.head(self.backbone(batch.views[0]))
        return {"cross_entropy": cross_entropy_of_labelled(logits, batch.labels)}
