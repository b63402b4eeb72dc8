"""Linear classification on frozen features, as each paper states it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Self

from harness.errors import UserError
from harness.protocol import Estimate, EvalProtocol, HeadTraining, Metric
from harness.recipe import Reading
from harness.views import CenterCrop, View

if TYPE_CHECKING:
    from harness.backbone import Backbone
    from harness.scale import Scale

CROP_AND_FLIP = View(size=224, jitter_p=0.0, gray_p=0.0)  # scale .08-1, bicubic
BICUBIC = CenterCrop()  # 256/224
# Learning rates for small features and few steps, where the papers' values say nothing.
SMALL_SCALE_LR = (0.03, 0.1, 0.3, 1.0, 3.0)
# imsvd d387689, CIFAR-10 linear evaluation: a crop of 8 % of a 32 px image shows next to nothing.
SMALL_SCALE_CROP = (0.8, 1.0)


@dataclass(frozen=True, kw_only=True)
class Linear(HeadTraining, EvalProtocol):
    """Train linear heads on a frozen backbone; val is read once, after the last epoch.

    Where several learning rates are given, the best is chosen on images held out of train.
    """

    train_view: View = CROP_AND_FLIP  # random crop and flip of the train images
    transform: CenterCrop = BICUBIC  # of the held-out and the val images
    holdout: float = 0.01  # share of train that chooses among several learning rates

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """Top-1 and top-5 accuracy of the last epoch."""
        return (Metric(name="linear_top1"), Metric(name="linear_top5"))

    def run(self, backbone: Backbone, workdir: Path) -> dict[str, Estimate]:
        """`linear_top1` and `linear_top5` in percent; each val image counts once.

        With fewer than five classes `linear_top5` counts them all. An interrupted run goes on
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
        return {
            "linear_top1": accuracy(hits[:, 0]),
            "linear_top5": accuracy(hits.any(axis=1)),
        }

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
        )


# SVIB, linear evaluation: SGD, lr .3 (R50) or 1e-3 (ViT) at batch size 1024. Whether that is
# before or after the rule lr * batch / 256 is not said: .3 effective is what DINO's own R50 log
# has (dino issue 131), and for ViT both readings compete, .004 being DINO's default.
SVIB_RESNET = Linear(lr=(0.3,), batch_size=1024)
SVIB_VIT = replace(SVIB_RESNET, lr=(0.001, 0.004), last_blocks=4)
# dino 7c446df, eval_linear.py: cosine per epoch to 0, val bicubic, four CLS tokens of a ViT-S.
DINO_RESNET = SVIB_RESNET
DINO_VIT = replace(SVIB_VIT, lr=(0.004,))
_BILINEAR = Linear(
    lr=(0.3,),
    weight_decay=1e-6,
    batch_size=256,
    train_view=replace(CROP_AND_FLIP, interpolation="bilinear"),
    transform=CenterCrop(interpolation="bilinear"),
)
# barlowtwins 8e8d284, evaluate.py. (Its top-1 is the best epoch's; ours is the last one's.)
BARLOW_TWINS = _BILINEAR
# VICReg, Appendix C.1: lr .02, crop .2-1; code @4e12602 defaults to lr .3 and crops .08-1.
VICREG = replace(_BILINEAR, lr=(0.02,), train_view=replace(_BILINEAR.train_view, scale=(0.2, 1.0)))
# IMSVD, Sec. IV-A: lr .02, crop .2-1; linear_eval.py @d387689 crops .08-1. Weight decay is the
# code's, the paper leaves it blank.
IMSVD = VICREG
VARIANTS = {
    "svib_resnet": SVIB_RESNET,
    "svib_vit": SVIB_VIT,
    "imsvd": IMSVD,
    "dino_resnet": DINO_RESNET,
    "dino_vit": DINO_VIT,
    "barlow_twins": BARLOW_TWINS,
    "vicreg": VICREG,
}


if __name__ == "__main__":
    from harness.command import main

    main("linear")
