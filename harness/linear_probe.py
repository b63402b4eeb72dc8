"""Linear classification on frozen features: what the linear and the Places205 protocol share."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Self

from harness.errors import UserError
from harness.protocol import Estimate, EvalProtocol, HeadTraining, Metric
from harness.recipe import Reading
from harness.views import BICUBIC, CROP_AND_FLIP, SMALL_SCALE_CROP, CenterCrop, View

if TYPE_CHECKING:
    from harness.backbone import Backbone
    from harness.scale import Scale

# Learning rates for small features and few steps, where the papers' values say nothing.
SMALL_SCALE_LR = (0.03, 0.1, 0.3, 1.0, 3.0)


@dataclass(frozen=True, kw_only=True)
class LinearProbe(HeadTraining, EvalProtocol):
    """Train linear heads on a frozen backbone; val is read once, after the last epoch.

    Where several learning rates are given, the best is chosen on images held out of train.
    """

    prefix: ClassVar[str]  # of the metrics' names

    train_view: View = CROP_AND_FLIP  # random crop and flip of the train images
    transform: CenterCrop = BICUBIC  # of the held-out and the val images
    holdout: float = 0.01  # share of train that chooses among several learning rates

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """Top-1 and top-5 accuracy of the last epoch."""
        return (Metric(name=f"{self.prefix}_top1"), Metric(name=f"{self.prefix}_top5"))

    def run(self, backbone: Backbone, workdir: Path) -> dict[str, Estimate]:
        """Top-1 and top-5 in percent; each val image counts once.

        With fewer than five classes top-5 counts them all. An interrupted run goes on
        from `workdir/heads`. `predictions.npz` holds the five likeliest classes of each val
        image, best first.

        Raises:
            UserError: Settings that don't fit the data set; every head diverged.
        """
        from harness.bootstrap import accuracy
        from harness.classify import TrainingSet, choose, fit, hold_out, top_classes
        from harness.features import collect, extract, open_pair

        if not 0 < self.holdout < 1:
            raise UserError(f"holdout={self.holdout} is a share of train; use 0.01 or so")
        train, val = open_pair(self.dataset)
        kept, held = hold_out(train.labels, self.holdout if len(self.lr) > 1 else 0.0, self.seed)
        training = TrainingSet(data=train, indices=kept, view=self.train_view)
        heads = fit(backbone, training, self, workdir)
        reading = Reading(last_blocks=self.last_blocks)
        held_out = None
        if len(self.lr) > 1:
            held_out = extract(backbone, train, self.transform, reading, indices=held)
        head = choose(heads, held_out, self.lr)
        features = extract(backbone, val, self.transform, reading)
        top = top_classes(heads, head, features.values, 5)
        found = collect(features, {"top5": top}, workdir)
        hits = found["top5"] == found["labels"][:, None]
        top1, top5 = self.metrics
        return {top1.name: accuracy(hits[:, 0]), top5.name: accuracy(hits.any(axis=1))}

    def scaled(self, scale: Scale) -> Self:
        """Fewer epochs on the scale's data set; the learning rate chosen on a tenth of train."""
        size = scale.image_size
        return replace(
            self,
            dataset=scale.dataset,
            train_view=replace(self.train_view, size=size, scale=SMALL_SCALE_CROP),
            transform=replace(self.transform, resize=size, size=size),
            epochs=scale.linear_epochs,
            batch_size=scale.linear_batch_size,
            lr=SMALL_SCALE_LR,
            holdout=0.1,
            optimizer="sgd",
            schedule="cosine",
            milestones=(),
        )
