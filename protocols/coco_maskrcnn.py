"""Detection and instance segmentation on COCO: Mask R-CNN fine-tuned from a ResNet trunk."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

from harness.detection import METRICS, DetectorTraining, check_settings
from harness.errors import UserError
from harness.protocol import Estimate, EvalProtocol, Metric

if TYPE_CHECKING:
    from harness.backbone import Backbone
    from harness.scale import Scale


@dataclass(frozen=True, kw_only=True)
class CocoMaskRCNN(DetectorTraining, EvalProtocol):
    """Fine-tune Mask R-CNN on train, every layer of it, and take COCO's AP on val."""

    predictions: ClassVar[str] = "predictions.json.gz"

    dataset: str = "coco"  # below DATA_ROOT, or a folder laid out like COCO 2017

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """AP of boxes and of masks, as COCO defines them."""
        return METRICS

    def run(self, backbone: Backbone, workdir: Path) -> dict[str, Estimate]:
        """AP in percent by the names of `metrics`; each val image counts once.

        A metric of an area range of which val has no object is left out. An interrupted run goes
        on from `workdir/detector`. `predictions.json.gz` is a COCO results file.

        Raises:
            UserError: The trunk is no ResNet; the engine or the data set is missing; settings that
                don't fit; the training diverged.
        """
        from harness import dist
        from harness.backbone import ResNet
        from harness.coco import open_coco_pair
        from harness.coco_eval import collect, evaluate

        if not isinstance(backbone, ResNet):
            raise UserError(
                f"Mask R-CNN C4 and FPN stand on a ResNet and this checkpoint is a "
                f"{backbone.spec.name}; evaluate it by knn or linear"
            )
        train, val = open_coco_pair(self.dataset)
        check_settings(self, int((train.objects_per_image > 0).sum()), dist.world())
        if self.engine == "detectron2":
            from harness.detection_detectron2 import fine_tune
        else:
            from harness.detection_train import fine_tune
        detect = fine_tune(backbone, train, self, workdir)
        results = collect(detect(val), val, workdir / self.predictions)
        return dist.broadcast_object(evaluate(val, results) if dist.is_main() else None)

    def data(self) -> dict[str, dict[str, Any]]:
        """Checksum, images, classes and objects of each split."""
        from harness.coco import open_coco_pair

        return {split.split: split.describe() for split in open_coco_pair(self.dataset)}

    def scaled(self, scale: Scale) -> Self:
        """A few steps of torchvision's engine on scenes of digits: shows that it runs."""
        from harness import scenes

        side = 3 * scale.image_size
        return replace(
            self,
            dataset=scenes.NAME,
            engine="torchvision",
            iterations=120,
            milestones=(80, 108),
            warmup=10,
            batch_size=4,
            lr=self.lr / 2,
            train_sides=(side, side * 4 // 3),
            test_side=side * 4 // 3,
            max_side=side * 2,
            train_proposals=(200, 100),
            test_proposals=(200, 100),
            rois_per_image=32,
            detections=20,
            precise_bn=4,
        )


# moco 3402035, detection/configs: Base-RCNN-C4-BN and coco_R_50_C4_2x_moco; its paper's 1x halves
# the schedule. SyncBN is the paper's, the last version of the code says naiveSyncBN.
MOCO_C4 = CocoMaskRCNN()
MOCO_C4_2X = replace(MOCO_C4, iterations=180_000, milestones=(120_000, 160_000))
# Barlow Twins, Appendix: as MoCo at lr .03. IMSVD: the same at lr .1.
BARLOW_TWINS_C4 = replace(MOCO_C4, lr=0.03)
IMSVD_C4 = replace(MOCO_C4, lr=0.1)
# mmselfsup's copy of MoCo's settings for a pyramid, batch norm in backbone and pyramid: SVIB's.
# Proposals are detectron2's for FPN, the first number being per level.
MOCO_FPN = replace(MOCO_C4, model="fpn", train_proposals=(2000, 1000), test_proposals=(1000, 1000))
# VICReg: lr .04 and 50 iterations of warm-up.
VICREG_FPN = replace(MOCO_FPN, lr=0.04, warmup=50)
VARIANTS = {
    "moco_c4": MOCO_C4,
    "moco_c4_2x": MOCO_C4_2X,
    "barlow_twins_c4": BARLOW_TWINS_C4,
    "imsvd_c4": IMSVD_C4,
    "vicreg_fpn": VICREG_FPN,
    "moco_fpn": MOCO_FPN,
}


if __name__ == "__main__":
    from harness.command import main

    main("coco_maskrcnn")
