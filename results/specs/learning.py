"""The learning check: does every method beat the random initialisation of its backbone?

No paper has this table. All rows share backbone, data and epochs, so that they can be compared
with the row of the untrained backbone at any scale, above all at those that fit a small machine.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from results.table import Column, Row, Table

if TYPE_CHECKING:
    from harness.protocol import EvalProtocol
    from harness.recipe import Recipe

EPOCHS = 100  # at paper scale; the others shorten it


def _knn(recipe: Recipe) -> EvalProtocol:
    from protocols import knn

    return knn.DINO


def _random() -> Recipe:
    from methods import imsvd

    return replace(imsvd.RESNET50, epochs=0)


def _svib() -> Recipe:
    from methods import svib

    return replace(svib.RESNET50, epochs=EPOCHS)


def _imsvd() -> Recipe:
    from methods import imsvd

    return replace(imsvd.RESNET50, epochs=EPOCHS)


def _dino() -> Recipe:
    from baselines import dino

    return replace(dino.RESNET50, epochs=EPOCHS)


def _vicreg() -> Recipe:
    from baselines import vicreg

    return replace(vicreg.RESNET50, epochs=EPOCHS)


def _barlow_twins() -> Recipe:
    from baselines import barlow_twins

    return replace(barlow_twins.RESNET50, epochs=EPOCHS)


TABLE = Table(
    name="learning",
    title="Learning check: 20-NN of each method against the untrained backbone, top-1 in percent",
    source="this harness",
    columns=(Column(label="KNN-20", protocol=_knn, metric="knn_20"),),
    rows=(
        Row(label="Random initialisation", published=("",), recipe=_random),
        Row(label="SVIB", published=("",), recipe=_svib),
        Row(label="IMSVD", published=("",), recipe=_imsvd),
        Row(label="DINO", published=("",), recipe=_dino),
        Row(label="VICReg", published=("",), recipe=_vicreg),
        Row(label="Barlow Twins", published=("",), recipe=_barlow_twins),
    ),
    seeds=3,
)
