"""How nearly one-hot the discrete variables of a network are (IMSVD, section V-C)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

from harness.errors import UserError
from harness.protocol import Estimate, EvalProtocol, Metric
from harness.views import BILINEAR, CenterCrop

if TYPE_CHECKING:
    from torch import Tensor

    from harness.backbone import Backbone, OwnProjector
    from harness.features import Features
    from harness.scale import Scale


@dataclass(frozen=True, kw_only=True)
class OneHot(EvalProtocol):
    """Share of the soft variables whose likeliest unit is more probable than a threshold."""

    split: Literal["train", "val"] = "train"  # whose images
    transform: CenterCrop = BILINEAR  # of each image
    thresholds: tuple[float, ...] = (0.9, 0.99)

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """The share above each threshold: `onehot_90`, `onehot_99`."""
        return tuple(Metric(name=f"onehot_{100 * t:g}") for t in self.thresholds)

    def run(self, backbone: Backbone, workdir: Path) -> dict[str, Estimate]:
        """Percent of all variables of all images; each image counts once.

        `predictions.npz` holds each image's share of variables above each threshold. Takes memory
        for the features (4 bytes x images x dim) and beside them 13 bytes x images x variables,
        all shared among the processes: 10.5 and 1.7 GB for ImageNet's train, ResNet-50 and the
        paper's 102 variables.

        Raises:
            UserError: The checkpoint has no projector with discrete variables.
        """
        from harness.bootstrap import mean_share
        from harness.data import open_split
        from harness.features import collect, extract

        if backbone.projector is None:
            raise UserError(
                "this checkpoint holds a trunk without a projector whose output is discrete; give "
                "a backbone.pt of imsvd:RESNET50 (one from before projectors were kept gets its "
                "own when it is deleted and its pretraining started again, from the last step)"
            )
        features = extract(backbone, open_split(self.dataset, self.split), self.transform)
        largest = _largest(features, backbone.projector)
        shares = {
            metric.name: (largest > threshold).double().mean(dim=1)
            for metric, threshold in zip(self.metrics, self.thresholds, strict=True)
        }
        found = collect(features, shares, workdir)
        return {metric.name: mean_share(found[metric.name]) for metric in self.metrics}

    def data(self) -> dict[str, dict[str, Any]]:
        """Checksum, number and classes of the one split."""
        from harness.data import open_split

        return {self.split: open_split(self.dataset, self.split).describe()}

    def scaled(self, scale: Scale) -> Self:
        """The scale's data set, whole images at its size."""
        size = scale.image_size
        transform = replace(self.transform, resize=size, size=size)
        return replace(self, dataset=scale.dataset, transform=transform)


def _largest(features: Features, projector: OwnProjector) -> Tensor:
    """Probability of the likeliest unit of each variable (n, variables), on the CPU.

    In batches of one size: products differ in the last bit from one to another.
    """
    import torch

    from harness.features import BATCH_SIZE, filled_up

    projector.layers.to(features.values.device).eval()
    parts = [torch.empty(0, projector.widths[-1] // projector.units)]
    with torch.no_grad():
        for part in features.values.split(BATCH_SIZE):
            if len(part):
                found = projector.assignments(filled_up(part)).amax(dim=2)
                parts.append(found[: len(part)].cpu())
    return torch.cat(parts)


# The text says neither which images nor how they were cropped: all of train, as the joint matrix of
# the same section, cropped as val is.
IMSVD = OneHot()
VARIANTS = {"imsvd": IMSVD}


if __name__ == "__main__":
    from harness.command import main

    main("onehot")
