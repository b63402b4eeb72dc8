"""A network small enough to hand to the authors' code, for golden values of whole steps."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from harness.backbone import Backbone
from harness.recipe import BackboneSpec, Reading
from tests.golden.inputs import waves


class TinyTrunk(Backbone):
    """Rows of six numbers for images, five features: Linear, batch norm, ReLU."""

    dim = 5

    def __init__(self) -> None:
        super().__init__(BackboneSpec(name="tiny"), 1)
        self.trunk = nn.Sequential(nn.Linear(6, 5, bias=False), nn.BatchNorm1d(5), nn.ReLU())

    def forward(self, images: Tensor, reading: Reading | None = None) -> Tensor:
        return self.trunk(images)


@torch.no_grad()
def fill(*modules: nn.Module) -> None:
    """Give every parameter, in order, the values that the golden runs started from."""
    parameters = [p for module in modules for p in module.parameters()]
    for i, p in enumerate(parameters):
        p.copy_(waves(*p.shape, phase=0.3 + i) * 0.5)
