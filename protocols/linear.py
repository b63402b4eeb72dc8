"""Linear classification of ImageNet on frozen features, as each paper states it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from harness.linear_probe import LinearProbe
from harness.views import BILINEAR, CROP_AND_FLIP


@dataclass(frozen=True, kw_only=True)
class Linear(LinearProbe):
    """Train linear heads on a frozen backbone; val is read once, after the last epoch.

    Where several learning rates are given, the best is chosen on images held out of train.
    """

    version: ClassVar[int] = 2  # 2: DINO's train crops are bilinear
    prefix: ClassVar[str] = "linear"


# dino 7c446df, eval_linear.py: cosine per epoch to 0, val bicubic, train crops bilinear, four CLS
# tokens of a ViT-S. The R50's rate is that of its official log (dino issue 131).
DINO_RESNET = Linear(lr=(0.3,), batch_size=1024)
DINO_VIT = replace(DINO_RESNET, lr=(0.004,), last_blocks=4)
# SVIB, linear evaluation: SGD, lr .3 (R50) or 1e-3 (ViT) at batch size 1024. Whether that is
# before or after the rule lr * batch / 256 is not said: .3 effective is what DINO's own R50 log
# has, and for ViT both readings compete, .004 being DINO's default.
SVIB_RESNET = DINO_RESNET
SVIB_VIT = replace(DINO_VIT, lr=(0.001, 0.004))
# barlowtwins 8e8d284, evaluate.py. (Its top-1 is the best epoch's; ours is the last one's.)
BARLOW_TWINS = Linear(lr=(0.3,), weight_decay=1e-6, batch_size=256, transform=BILINEAR)
# VICReg, Appendix C.1: lr .02, crop .2-1; code @4e12602 defaults to lr .3 and crops .08-1.
VICREG = replace(BARLOW_TWINS, lr=(0.02,), train_view=replace(CROP_AND_FLIP, scale=(0.2, 1.0)))
# IMSVD, Sec. IV-A: lr .02, crop .2-1; linear_eval.py @d387689 crops .08-1. Weight decay is the
# code's, the paper leaves it blank.
IMSVD = VICREG
# swav 06b1b7c, eval_linear.py. Its std of .228 comes with the checkpoint.
SWAV = BARLOW_TWINS
# moco 7397dfe, main_lincls.py.
MOCO = replace(BARLOW_TWINS, lr=(30.0,), weight_decay=0.0, schedule="steps", milestones=(60, 80))
# PCL 964da1f, eval_cls_imagenet.py: MoCo's with another rate.
PCL = replace(MOCO, lr=(5.0,))
# simsiam a7bc177, main_lincls.py --lars: lr .1 at 256 by the linear rule, LARC on the head.
SIMSIAM = replace(
    BARLOW_TWINS, lr=(1.6,), weight_decay=0.0, batch_size=4096, epochs=90, optimizer="larc"
)
# BYOL, Appendix C.1: the best of five rates on 10,009 images held out of train.
BYOL = Linear(
    lr=(0.4, 0.3, 0.2, 0.1, 0.05),
    nesterov=True,
    batch_size=1024,
    epochs=80,
    holdout=10_009 / 1_281_167,
    train_view=replace(CROP_AND_FLIP, interpolation="bicubic"),
)
VARIANTS = {
    "svib_resnet": SVIB_RESNET,
    "svib_vit": SVIB_VIT,
    "imsvd": IMSVD,
    "dino_resnet": DINO_RESNET,
    "dino_vit": DINO_VIT,
    "barlow_twins": BARLOW_TWINS,
    "vicreg": VICREG,
    "swav": SWAV,
    "moco": MOCO,
    "pcl": PCL,
    "simsiam": SIMSIAM,
    "byol": BYOL,
}


if __name__ == "__main__":
    from harness.command import main

    main("linear")
