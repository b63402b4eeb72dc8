"""Mask R-CNN by detectron2: its models, data loader, trainer hooks and checkpoints.

Imported only where detectron2 is installed; needs none of its compiled operators.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.checkpoint import DetectionCheckpointer  # pyright: ignore[reportMissingImports]
from detectron2.config import get_cfg  # pyright: ignore[reportMissingImports]
from detectron2.data import (  # pyright: ignore[reportMissingImports]
    DatasetMapper,
    build_detection_test_loader,
    build_detection_train_loader,
)
from detectron2.data.samplers import TrainingSampler  # pyright: ignore[reportMissingImports]
from detectron2.engine import (  # pyright: ignore[reportMissingImports]
    AMPTrainer,
    HookBase,
    SimpleTrainer,
    hooks,
)
from detectron2.layers import get_norm  # pyright: ignore[reportMissingImports]
from detectron2.modeling import build_model  # pyright: ignore[reportMissingImports]
from detectron2.modeling.roi_heads import (  # pyright: ignore[reportMissingImports]
    ROI_HEADS_REGISTRY,
    Res5ROIHeads,
)
from detectron2.solver import (  # pyright: ignore[reportMissingImports]
    build_lr_scheduler,
    build_optimizer,
)
from detectron2.structures import BoxMode  # pyright: ignore[reportMissingImports]
from detectron2.utils.env import seed_all_rng  # pyright: ignore[reportMissingImports]
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from harness import dist, draws, resnets
from harness.backbone import Backbone
from harness.coco import CocoSplit
from harness.coco_eval import detections
from harness.detection import DetectorTraining
from harness.detection_keys import to_detectron2
from harness.errors import UserError
from harness.features import digest
from harness.loader import loader_workers
from harness.progress import say, track
from harness.recipe import fingerprint

SAVE_ITERATIONS = 1000  # between checkpoints
_KEPT = 2  # checkpoints
# detectron2 reports through logging; without a handler Python would print its warnings.
logging.getLogger("detectron2").addHandler(logging.NullHandler())

Detect = Callable[[CocoSplit], list[dict[str, Any]]]


@ROI_HEADS_REGISTRY.register()
class Res5ROIHeadsExtraNorm(Res5ROIHeads):
    """C4 heads with one more batch norm after res5 (MoCo)."""

    @classmethod
    def _build_res5_block(cls, cfg: Any) -> tuple[nn.Sequential, int]:
        blocks, channels = super()._build_res5_block(cfg)
        blocks.add_module("norm", get_norm(cfg.MODEL.RESNETS.NORM, channels))
        return blocks, channels


def fine_tune(
    backbone: Backbone, data: CocoSplit, settings: DetectorTraining, workdir: Path
) -> Detect:
    """What finds the objects in this process's share of a split, trained.

    Args:
        backbone: A ResNet; stays as it is.
        data: Train split.
        settings: Model, schedule and sizes.
        workdir: `workdir/detectron2-<identity>` gets detectron2's checkpoints, from which an
            interrupted run goes on.

    Raises:
        UserError: The trunk is one that detectron2 does not have; the losses stop being finite.
    """
    cfg = config(backbone, len(data.classes), settings)
    identity = fingerprint(settings, digest(backbone), backbone.pixels, data.checksum)
    folder = workdir / f"detectron2-{identity}"
    folder.mkdir(parents=True, exist_ok=True)
    with _seeded(settings.seed):
        model = build_model(cfg)
    load_trunk(model, backbone)
    _train(model, data, cfg, settings, folder)
    return lambda split: _detect(model.eval(), split, cfg)


def config(backbone: Backbone, classes: int, settings: DetectorTraining) -> Any:
    """detectron2's configuration: its defaults, MoCo's changes to them, and the settings.

    Raises:
        UserError: The trunk is one that detectron2 does not have.
    """
    plan = resnets.PLANS[backbone.spec.name]
    bottleneck, _ = resnets.DEPTHS[plan.depth]
    if plan.stem != "imagenet" or plan.same or (settings.model == "c4" and not bottleneck):
        raise UserError(
            f"detectron2 has no {settings.model} for {backbone.spec.name}: it takes ResNets with "
            "torchvision's stem and padding, C4 those with bottlenecks; use --engine torchvision"
        )
    single = dist.device().type == "cpu" and dist.world() > 1  # torch's SyncBatchNorm is for GPUs
    trunk = {
        "DEPTH": plan.depth,
        "NORM": "naiveSyncBN" if single else settings.norm,
        "STRIDE_IN_1X1": False,
        "STEM_OUT_CHANNELS": plan.channels,
        "WIDTH_PER_GROUP": plan.channels,
        "RES2_OUT_CHANNELS": plan.channels * (4 if bottleneck else 1),
    }
    values = {
        "MODEL.DEVICE": str(dist.device()),
        "MODEL.MASK_ON": True,
        "MODEL.BACKBONE.FREEZE_AT": 0,
        "MODEL.PIXEL_MEAN": [255 * x for x in backbone.pixels.mean],
        "MODEL.PIXEL_STD": [255 * x for x in backbone.pixels.std],
        "MODEL.RPN.PRE_NMS_TOPK_TRAIN": settings.train_proposals[0],
        "MODEL.RPN.POST_NMS_TOPK_TRAIN": settings.train_proposals[1],
        "MODEL.RPN.PRE_NMS_TOPK_TEST": settings.test_proposals[0],
        "MODEL.RPN.POST_NMS_TOPK_TEST": settings.test_proposals[1],
        "MODEL.RPN.BATCH_SIZE_PER_IMAGE": settings.anchors_per_image,
        "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE": settings.rois_per_image,
        "MODEL.ROI_HEADS.NUM_CLASSES": classes,
        "INPUT.FORMAT": "RGB",
        "INPUT.MIN_SIZE_TRAIN": settings.train_sides,
        "INPUT.MIN_SIZE_TEST": settings.test_side,
        "INPUT.MAX_SIZE_TRAIN": settings.max_side,
        "INPUT.MAX_SIZE_TEST": settings.max_side,
        "TEST.DETECTIONS_PER_IMAGE": settings.detections,
    }
    values |= {f"MODEL.RESNETS.{name}": value for name, value in trunk.items()}
    values |= _solver(settings) | (_C4 if settings.model == "c4" else _fpn(trunk["NORM"]))
    cfg = get_cfg()
    cfg.merge_from_list([part for pair in values.items() for part in pair])
    return cfg


_C4 = {"MODEL.ROI_HEADS.NAME": "Res5ROIHeadsExtraNorm"}


def _fpn(norm: str) -> dict[str, Any]:
    """detectron2 @02b5c4e, configs/Base-RCNN-FPN.yaml, with batch norm in the pyramid."""
    stages, levels = ["res2", "res3", "res4", "res5"], ["p2", "p3", "p4", "p5"]
    return {
        "MODEL.BACKBONE.NAME": "build_resnet_fpn_backbone",
        "MODEL.RESNETS.OUT_FEATURES": stages,
        "MODEL.FPN.IN_FEATURES": stages,
        "MODEL.FPN.NORM": norm,
        "MODEL.ANCHOR_GENERATOR.SIZES": [[32], [64], [128], [256], [512]],
        "MODEL.RPN.IN_FEATURES": [*levels, "p6"],
        "MODEL.ROI_HEADS.NAME": "StandardROIHeads",
        "MODEL.ROI_HEADS.IN_FEATURES": levels,
        "MODEL.ROI_BOX_HEAD.NAME": "FastRCNNConvFCHead",
        "MODEL.ROI_BOX_HEAD.NUM_FC": 2,
        "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION": 7,
        "MODEL.ROI_MASK_HEAD.NUM_CONV": 4,
        "MODEL.ROI_MASK_HEAD.POOLER_RESOLUTION": 14,
    }


def _solver(settings: DetectorTraining) -> dict[str, Any]:
    return {
        "SOLVER.IMS_PER_BATCH": settings.batch_size,
        "SOLVER.BASE_LR": settings.lr,
        "SOLVER.MAX_ITER": settings.iterations,
        "SOLVER.STEPS": settings.milestones,
        "SOLVER.GAMMA": settings.drop,
        "SOLVER.WARMUP_ITERS": settings.warmup,
        "SOLVER.WARMUP_FACTOR": settings.warmup_factor,
        "SOLVER.MOMENTUM": settings.momentum,
        "SOLVER.WEIGHT_DECAY": settings.weight_decay,
        "SOLVER.WEIGHT_DECAY_NORM": 0.0,
    }


def load_trunk(model: nn.Module, backbone: Backbone) -> None:
    """Copy every tensor of conv1 to layer4 into a detectron2 model; its heads stay as they are."""
    names = set(model.state_dict())
    pyramid = "backbone.bottom_up.stem.conv1.weight" in names
    body = "backbone.bottom_up." if pyramid else "backbone."
    found = {}
    for name, value in to_detectron2(backbone.trunk.state_dict()).items():
        head = "roi_heads." if name.startswith("res5.") and not pyramid else body
        found[head + name] = value
    mine = {name for name in names if name.startswith((body, "roi_heads.res5."))}
    new = {name for name in mine if name.startswith("roi_heads.res5.norm.")}
    assert mine - new == set(found), mine - new ^ set(found)
    # Not strict for the sake of the heads alone: the line above holds that the trunk is whole.
    model.load_state_dict(found, strict=False)


def _train(
    model: nn.Module, data: CocoSplit, cfg: Any, settings: DetectorTraining, folder: Path
) -> None:
    """detectron2's own loop, from its last checkpoint on."""
    wrapped = model
    if dist.world() > 1:
        devices = [dist.device()] if dist.device().type == "cuda" else None
        wrapped = DistributedDataParallel(model, device_ids=devices, broadcast_buffers=False)
    optimizer = build_optimizer(cfg, model)
    trainer = (AMPTrainer if settings.amp else SimpleTrainer)(wrapped, [], optimizer)
    checkpointer = DetectionCheckpointer(wrapped, str(folder), trainer=trainer)
    images = _train_images(data)
    steps: list[Any] = [hooks.LRScheduler(optimizer, build_lr_scheduler(cfg, optimizer))]
    if settings.precise_bn:
        loader = _loader(images, cfg, draws.torch_seed(settings.seed, -1), workers=0)
        steps.append(hooks.PreciseBN(0, wrapped, loader, settings.precise_bn))
    if dist.is_main():
        steps.append(hooks.PeriodicCheckpointer(checkpointer, SAVE_ITERATIONS, max_to_keep=_KEPT))
    trainer.register_hooks([*steps, _Bar()])
    checkpointer.resume_or_load("", resume=True)
    start = trainer.iter + 1 if checkpointer.has_checkpoint() else 0
    if start:
        say(f"going on from iteration {start} ({checkpointer.get_checkpoint_file()})")
    # The order starts anew with each attempt, so it must not be the same one again.
    trainer.data_loader = _loader(
        images, cfg, draws.torch_seed(settings.seed, start), workers=loader_workers()
    )
    try:
        with _seeded(draws.torch_seed(settings.seed, start, dist.rank())):
            trainer.train(start, settings.iterations)
    except FloatingPointError as error:
        raise UserError(
            f"the detector's loss became non-finite in iteration {trainer.iter + 1}; use a smaller "
            f"--lr than {settings.lr:g}, or check that the checkpoint's features are finite"
        ) from error


class _Bar(HookBase):
    """Progress on stderr."""

    def before_train(self) -> None:
        start, stop = self.trainer.start_iter, self.trainer.max_iter
        self._steps = track(range(start, stop), label="detector", total=stop, done=start)

    def before_step(self) -> None:
        next(self._steps)

    def after_train(self) -> None:
        next(self._steps, None)


def _loader(images: list[dict[str, Any]], cfg: Any, seed: int, *, workers: int) -> Any:
    return build_detection_train_loader(
        images,
        mapper=DatasetMapper(cfg, True),
        sampler=TrainingSampler(len(images), seed=seed),
        total_batch_size=cfg.SOLVER.IMS_PER_BATCH,
        aspect_ratio_grouping=cfg.DATALOADER.ASPECT_RATIO_GROUPING,
        num_workers=workers,
    )


def _image(data: CocoSplit, position: int) -> dict[str, Any]:
    height, width = data.sizes[position].tolist()
    return {
        "file_name": str(data.path(position)),
        "image_id": int(data.image_ids[position]),
        "height": height,
        "width": width,
    }


def _train_images(data: CocoSplit) -> list[dict[str, Any]]:
    """The images with objects, as detectron2 describes them."""
    classes = {number: place for place, number in enumerate(data.categories.tolist())}
    found = []
    for position in np.flatnonzero(data.objects_per_image).tolist():
        objects = []
        for one in data.objects(position):
            if not isinstance(one["segmentation"], list):
                raise UserError(
                    f"{data.annotations} has a run-length coded object in image "
                    f"{data.image_ids[position]} and detectron2 trains on polygons; use --engine "
                    "torchvision"
                )
            # A line is no polygon: detectron2's own reader of COCO drops them too.
            polygons = [points for points in one["segmentation"] if len(points) >= 6]
            if polygons:
                category = classes[one["category_id"]]
                kept = {"segmentation": polygons, "bbox": one["bbox"], "category_id": category}
                objects.append(kept | {"bbox_mode": BoxMode.XYWH_ABS, "iscrowd": 0})
        found.append(_image(data, position) | {"annotations": objects})
    return found


def _detect(model: nn.Module, data: CocoSplit, cfg: Any) -> list[dict[str, Any]]:
    """Detections in this process's share of a split, as COCO's results files have them."""
    mine = range(dist.rank(), len(data), dist.world())
    loader = build_detection_test_loader(
        [_image(data, position) for position in mine],
        mapper=DatasetMapper(cfg, False),
        sampler=range(len(mine)),  # detectron2's would share them out once more
        num_workers=loader_workers(),
    )
    found: list[dict[str, Any]] = []
    with torch.no_grad(), _seeded(0):
        batches = track(loader, label=f"detections in {data.name} {data.split}", total=len(mine))
        for images in batches:
            instances = model(images)[0]["instances"].to("cpu")
            found += detections(
                images[0]["image_id"],
                instances.pred_boxes.tensor.numpy(),
                instances.scores.numpy(),
                data.categories[instances.pred_classes.numpy()],
                instances.pred_masks.numpy(),
            )
    return found


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Global generators, which detectron2 draws from, seeded for a block."""
    python, numpy = random.getstate(), np.random.get_state()
    devices = [dist.device()] if dist.device().type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        seed_all_rng(seed % 2**31)
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)
