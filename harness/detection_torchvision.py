"""Mask R-CNN of torchvision's parts around a ResNet trunk: with res5 heads (C4) or a pyramid (FPN).

Differs from detectron2's where torchvision does: smooth L1 losses (beta 1/9), RoIAlign without the
half-pixel shift, rounded anchors, masks pasted into whole-pixel boxes.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection import _utils as sampling
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.generalized_rcnn import GeneralizedRCNN
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.roi_heads import (
    RoIHeads,
    fastrcnn_loss,
    maskrcnn_inference,
    maskrcnn_loss,
    paste_masks_in_image,
)
from torchvision.models.detection.rpn import RegionProposalNetwork, RPNHead
from torchvision.models.detection.transform import GeneralizedRCNNTransform, resize_boxes
from torchvision.ops import MultiScaleRoIAlign

from harness import dist, draws
from harness.backbone import Backbone
from harness.coco import CocoSplit
from harness.coco_eval import detections
from harness.detection import DetectorTraining
from harness.detection_data import TrainImage, test_images
from harness.progress import track
from harness.views import Pixels

_SIZES = (32, 64, 128, 256, 512)  # of anchors, pixels
_RATIOS = (0.5, 1.0, 2.0)
_WIDTH = 256  # of the pyramid and of the mask head
_STAGES = ("layer1", "layer2", "layer3", "layer4")


class Sampler(sampling.BalancedPositiveNegativeSampler):
    """torchvision's choice of positives and negatives, as a function of (seed, epoch, image)."""

    images: Sequence[tuple[int, int]] = ()  # epoch and position of the batch's images

    def __init__(self, count: int, positive: float, seed: int) -> None:
        super().__init__(count, positive)
        self.seed = seed

    def __call__(self, matched_idxs: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Masks of the positives and of the negatives that count, image by image."""
        chosen = []
        for labels, key in zip(matched_idxs, self.images, strict=True):
            generator = torch.Generator().manual_seed(draws.torch_seed(self.seed, *key))
            room = self.batch_size_per_image
            for candidates, most in (
                (labels >= 1, int(room * self.positive_fraction)),
                (labels == 0, room),
            ):
                found = candidates.nonzero().flatten()
                order = torch.randperm(len(found), generator=generator)[: min(most, room)]
                mask = torch.zeros_like(labels, dtype=torch.uint8)
                mask[found[order.to(found.device)]] = 1
                chosen.append(mask)
                room -= len(order)
        return chosen[::2], chosen[1::2]


class _Transform(GeneralizedRCNNTransform):
    """Normalises and pads; the loader resizes, and detections stay at the network's size."""

    def __init__(self, pixels: Pixels) -> None:
        super().__init__(0, 0, list(pixels.mean), list(pixels.std))

    def resize(
        self, image: Tensor, target: dict[str, Tensor] | None = None
    ) -> tuple[Tensor, dict[str, Tensor] | None]:
        return image, target

    def postprocess(
        self, result: list[dict[str, Tensor]], image_shapes: Any, original_image_sizes: Any
    ) -> list[dict[str, Tensor]]:
        return result


class _SharedHeads(RoIHeads):
    """Box and mask branches on one res5 map of each region, as detectron2's Res5ROIHeads.

    torchvision's own would send the masks' regions through res5 once more, and through its batch
    norms, whose statistics would then count foreground twice.
    """

    mask_predictor: Any

    def forward(
        self,
        features: dict[str, Tensor],
        proposals: list[Tensor],
        image_shapes: list[tuple[int, int]],
        targets: list[dict[str, Tensor]] | None = None,
    ) -> tuple[list[dict[str, Tensor]], dict[str, Tensor]]:
        if targets is not None and self.training:
            return [], self._losses(features, proposals, image_shapes, targets)
        regions = self.box_head(self.box_roi_pool(features, proposals, image_shapes))
        logits, boxes = self.box_predictor(regions.mean(dim=(2, 3)))
        found = self.postprocess_detections(logits, boxes, proposals, image_shapes)
        regions = self.box_head(self.box_roi_pool(features, found[0], image_shapes))
        masks = maskrcnn_inference(self.mask_predictor(regions), found[2])
        names = ("boxes", "scores", "labels", "masks")
        of_image = zip(*found, masks, strict=True)
        return [dict(zip(names, one, strict=True)) for one in of_image], {}

    def _losses(
        self,
        features: dict[str, Tensor],
        proposals: list[Tensor],
        image_shapes: list[tuple[int, int]],
        targets: list[dict[str, Tensor]],
    ) -> dict[str, Tensor]:
        sampled = self.select_training_samples(proposals, targets)
        proposals, matched, labels, regression = sampled
        regions = self.box_head(self.box_roi_pool(features, proposals, image_shapes))
        logits, boxes = self.box_predictor(regions.mean(dim=(2, 3)))
        classifier, box = fastrcnn_loss(logits, boxes, labels, regression)
        shown = [of_image > 0 for of_image in labels]
        mask = maskrcnn_loss(
            self.mask_predictor(regions[torch.cat(shown)]),
            [of_image[keep] for of_image, keep in zip(proposals, shown, strict=True)],
            [target["masks"] for target in targets],
            [target["labels"] for target in targets],
            [of_image[keep] for of_image, keep in zip(matched, shown, strict=True)],
        )
        return {"loss_classifier": classifier, "loss_box_reg": box, "loss_mask": mask}


class _C4(nn.Sequential):
    """conv1 to layer3."""

    def __init__(self, trunk: Any) -> None:
        super().__init__(
            *(getattr(trunk, name) for name in ("conv1", "bn1", "relu", "maxpool")),
            *(getattr(trunk, name) for name in _STAGES[:3]),
        )
        self.out_channels = _width(trunk.layer3)


def build_detector(backbone: Backbone, classes: int, settings: DetectorTraining) -> GeneralizedRCNN:
    """Mask R-CNN on a copy of the trunk; new layers follow from the seed.

    Args:
        backbone: A ResNet.
        classes: Without the background.
        settings: Model, numbers of proposals and regions, seed.
    """
    trunk = copy.deepcopy(backbone.trunk).requires_grad_()
    devices = [dist.device()] if dist.device().type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(draws.torch_seed(settings.seed))
        build = _c4_parts if settings.model == "c4" else _fpn_parts
        body, anchors, heads = build(trunk, classes)
        rpn = RegionProposalNetwork(
            anchors,
            RPNHead(body.out_channels, anchors.num_anchors_per_location()[0]),
            fg_iou_thresh=0.7,
            bg_iou_thresh=0.3,
            batch_size_per_image=settings.anchors_per_image,
            positive_fraction=0.5,
            pre_nms_top_n=_by_mode(settings, 0),
            post_nms_top_n=_by_mode(settings, 1),
            nms_thresh=0.7,
        )
        kind = _SharedHeads if settings.model == "c4" else RoIHeads
        rois = kind(
            **heads,
            fg_iou_thresh=0.5,
            bg_iou_thresh=0.5,
            batch_size_per_image=settings.rois_per_image,
            positive_fraction=0.25,
            bbox_reg_weights=None,
            score_thresh=0.05,
            nms_thresh=0.5,
            detections_per_img=settings.detections,
        )
    for number, part in enumerate((rpn, rois)):
        old = part.fg_bg_sampler
        seed = draws.torch_seed(settings.seed, number)
        part.fg_bg_sampler = Sampler(old.batch_size_per_image, old.positive_fraction, seed)
    return GeneralizedRCNN(body, rpn, rois, _Transform(backbone.pixels)).to(dist.device())


def _by_mode(settings: DetectorTraining, which: int) -> dict[str, int]:
    return {
        "training": settings.train_proposals[which],
        "testing": settings.test_proposals[which],
    }


def _width(stage: nn.Module) -> int:
    """Channels that a stage of a ResNet puts out."""
    return [m for m in stage.modules() if isinstance(m, nn.BatchNorm2d)][-1].num_features


def _c4_parts(trunk: Any, classes: int) -> tuple[Any, AnchorGenerator, dict[str, Any]]:
    """Trunk, anchors and heads of R50-C4, with MoCo's batch norm after res5."""
    width = _width(trunk.layer4)
    pool = MultiScaleRoIAlign(["0"], 14, 0)
    heads = {
        "box_roi_pool": pool,
        "box_head": nn.Sequential(trunk.layer4, nn.BatchNorm2d(width)),
        "box_predictor": _predictor(width, classes),
        "mask_roi_pool": pool,
        "mask_head": nn.Identity(),
        "mask_predictor": MaskRCNNPredictor(width, _WIDTH, classes + 1),
    }
    return _C4(trunk), AnchorGenerator((_SIZES,), (_RATIOS,)), heads


def _fpn_parts(trunk: Any, classes: int) -> tuple[Any, AnchorGenerator, dict[str, Any]]:
    """Trunk with pyramid, anchors and heads of R50-FPN, with batch norm in the pyramid."""
    body = BackboneWithFPN(
        trunk,
        {stage: str(number) for number, stage in enumerate(_STAGES)},
        [_width(getattr(trunk, stage)) for stage in _STAGES],
        _WIDTH,
        norm_layer=nn.BatchNorm2d,
    )
    levels = ["0", "1", "2", "3"]
    heads = {
        "box_roi_pool": MultiScaleRoIAlign(levels, 7, 2),
        "box_head": TwoMLPHead(_WIDTH * 7**2, 1024),
        "box_predictor": _predictor(1024, classes),
        "mask_roi_pool": MultiScaleRoIAlign(levels, 14, 2),
        "mask_head": MaskRCNNHeads(_WIDTH, (_WIDTH,) * 4, 1),
        "mask_predictor": MaskRCNNPredictor(_WIDTH, _WIDTH, classes + 1),
    }
    anchors = AnchorGenerator(tuple((size,) for size in _SIZES), (_RATIOS,) * len(_SIZES))
    return body, anchors, heads


def _predictor(width: int, classes: int) -> FastRCNNPredictor:
    """Scores and boxes of a region, started as detectron2 starts them."""
    predictor = FastRCNNPredictor(width, classes + 1)
    for layer, std in ((predictor.cls_score, 0.01), (predictor.bbox_pred, 0.001)):
        nn.init.normal_(layer.weight, std=std)
        nn.init.zeros_(layer.bias)
    return predictor


def losses(model: GeneralizedRCNN, images: Sequence[TrainImage]) -> Tensor:
    """Sum of the five losses, each a mean over this process's images."""
    device = dist.device()
    part: Any
    for part in (model.rpn, model.roi_heads):
        part.fg_bg_sampler.images = [(image.epoch, image.position) for image in images]
    pixels = [image.pixels.to(device).float().div_(255) for image in images]
    targets = [
        {name: getattr(image, name).to(device) for name in ("boxes", "labels", "masks")}
        for image in images
    ]
    return torch.stack(list(model(pixels, targets).values())).sum()


def detect(
    model: GeneralizedRCNN, data: CocoSplit, settings: DetectorTraining
) -> list[dict[str, Any]]:
    """Detections in this process's share of a split, as COCO's results files have them."""
    model.eval()
    share = len(range(dist.rank(), len(data), dist.world()))
    found: list[dict[str, Any]] = []
    with torch.no_grad():
        images: Iterator[Any] = test_images(data, settings)
        for image in track(images, label=f"detections in {data.name} {data.split}", total=share):
            pixels = image.pixels.to(dist.device()).float().div_(255)
            found += _detections(model([pixels])[0], data, image.position, pixels.shape[1:])
    return found


def _detections(
    found: dict[str, Tensor], data: CocoSplit, position: int, size: torch.Size
) -> list[dict[str, Any]]:
    height, width = data.sizes[position].tolist()
    boxes = resize_boxes(found["boxes"].float(), list(size), [height, width])
    masks = paste_masks_in_image(found["masks"].float(), boxes, (height, width))[:, 0] > 0.5
    return detections(
        int(data.image_ids[position]),
        boxes.cpu().numpy(),
        found["scores"].cpu().numpy(),
        data.categories[found["labels"].cpu().numpy() - 1],
        masks.cpu().numpy(),
    )
