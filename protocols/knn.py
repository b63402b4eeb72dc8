"""Weighted k-nearest-neighbour classification on frozen features (Wu et al. 2018; DINO)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Self

from harness.protocol import Estimate, EvalProtocol, Metric
from harness.views import BICUBIC, CenterCrop

if TYPE_CHECKING:
    from harness.backbone import Backbone
    from harness.scale import Scale


@dataclass(frozen=True, kw_only=True)
class KNN(EvalProtocol):
    """Classify val by the k most similar train images, each voting with exp(cosine / T)."""

    transform: CenterCrop = BICUBIC  # of train and of val images alike
    k: tuple[int, ...] = (10, 20, 100, 200)  # numbers of neighbours, all in one pass
    temperature: float = 0.07  # T of the votes

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """Top-1 accuracy for each k."""
        return tuple(Metric(name=f"knn_{k}") for k in self.k)

    def run(self, backbone: Backbone, workdir: Path) -> dict[str, Estimate]:
        """Top-1 accuracy in percent by name, `knn_<k>`; each val image counts once.

        Every process holds the features of its share of train and of val, 4 bytes x images x dim,
        and searches its share of train for all of val.

        Raises:
            UserError: k is more than the train images; the data set is missing.
        """
        import torch
        from torch.nn.functional import normalize

        from harness import dist
        from harness.bootstrap import accuracy
        from harness.features import collect, extract, open_pair
        from harness.neighbours import Bank, Vote, knn_predict

        train, val = open_pair(self.dataset)
        bank = extract(backbone, train, self.transform)
        queries = extract(backbone, val, self.transform)
        predicted = knn_predict(
            Bank(
                normalize(bank.values, out=bank.values),
                torch.from_numpy(train.labels),
                bank.indices if dist.world() > 1 else None,
            ),
            normalize(queries.values, out=queries.values),
            Vote(k=self.k, temperature=self.temperature, classes=len(train.classes)),
        )
        found = collect(queries, {f"knn_{k}": predicted[k] for k in self.k}, workdir)
        return {
            metric.name: accuracy(found[metric.name] == found["labels"]) for metric in self.metrics
        }

    def scaled(self, scale: Scale) -> Self:
        """The same votes on the scale's data set, whole images at its size."""
        size = scale.image_size
        transform = replace(self.transform, resize=size, size=size)
        return replace(self, dataset=scale.dataset, transform=transform)


# dino 7c446df, eval_knn.py: train images under the val transform, teacher weights.
DINO = KNN()
# IMSVD d387689, eval_knn.py: bilinear, k 20; the paper's Table II also reports 200.
IMSVD = replace(DINO, transform=CenterCrop(interpolation="bilinear"))
VARIANTS = {"dino": DINO, "imsvd": IMSVD}


if __name__ == "__main__":
    from harness.command import main

    main("knn")
