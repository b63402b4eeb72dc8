"""A network's own classifier: what supervised and semi-supervised training end with."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Self

from harness.errors import UserError
from harness.protocol import Estimate, EvalProtocol, Metric
from harness.views import BILINEAR, CenterCrop

if TYPE_CHECKING:
    from harness.backbone import Backbone, OwnClassifier
    from harness.data import ImageSet
    from harness.scale import Scale


@dataclass(frozen=True, kw_only=True)
class NetworkClassifier(EvalProtocol):
    """Classify val by the layer of classes that the network was trained with; nothing is fitted."""

    transform: CenterCrop = BILINEAR  # of the val images

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """Top-1 and top-5 accuracy."""
        return (Metric(name="classifier_top1"), Metric(name="classifier_top5"))

    def run(self, backbone: Backbone, workdir: Path) -> dict[str, Estimate]:
        """`classifier_top1` and `classifier_top5` in percent; each val image counts once.

        With fewer than five classes `classifier_top5` counts them all. `predictions.npz` holds
        the five likeliest classes of each val image, best first.

        Raises:
            UserError: The checkpoint has no classifier, or one of another number of classes.
        """
        from harness.bootstrap import accuracy
        from harness.features import collect, extract, open_pair

        _, val = open_pair(self.dataset)
        classifier = self._checked(backbone, val)
        features = extract(backbone, val, self.transform)
        # In double precision, so that no product depends on how many rows a process has.
        weight, bias = (x.to(features.values.device).double() for x in classifier)
        scores = features.values.double() @ weight.T + bias
        top = scores.sort(dim=1, descending=True, stable=True).indices[:, :5].cpu()
        found = collect(features, {"top5": top}, workdir)
        hits = found["top5"] == found["labels"][:, None]
        return {
            "classifier_top1": accuracy(hits[:, 0]),
            "classifier_top5": accuracy(hits.any(axis=1)),
        }

    def _checked(self, backbone: Backbone, val: ImageSet) -> OwnClassifier:
        if backbone.classifier is None:
            raise UserError(
                "this checkpoint holds a trunk without a classifier: it was trained without labels"
                " or released without its head; use protocols/linear.py or protocols/knn.py, or"
                " pretrain a recipe that learns from labels, such as supervised:RESNET50"
            )
        known = len(backbone.classifier.bias)
        if known != len(val.classes):
            raise UserError(
                f"the checkpoint's classifier knows {known} classes and data set {self.dataset!r}"
                f" has {len(val.classes)}; use the data set that it was trained on"
            )
        return backbone.classifier

    def scaled(self, scale: Scale) -> Self:
        """The scale's data set, whole images at its size."""
        size = scale.image_size
        transform = replace(self.transform, resize=size, size=size)
        return replace(self, dataset=scale.dataset, transform=transform)


# torchvision's reference evaluation, and S4L's (@8f1cf05: the shorter side to 256 by areas, which
# antialiased bilinear resizing comes closest to, the centre 224, not turned).
CENTER_CROP = NetworkClassifier()
VARIANTS = {"center_crop": CENTER_CROP}


if __name__ == "__main__":
    from harness.command import main

    main("classifier")
