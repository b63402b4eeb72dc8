"""A small table with made-up jobs, for tests of what is drawn and planned."""

from harness.record import Record
from results.resolve import CellJobs, Evaluation, Pretraining, Resolved
from results.table import Cell, Column, Row, Table

TABLE = Table(
    name="paper/table9",
    title="Paper, Table 9",
    source="A paper, Table 9",
    fields=("Epochs",),
    columns=(
        Column(label="Linear", protocol="linear:none", metric="linear_top1"),
        Column(label="KNN", protocol="knn:none", metric="knn_20"),
    ),
    rows=(
        Row(label="Quoted", fields=("800",), published=("71.1†", "-"), reason="no file yet"),
        Row(label="First", fields=("100",), published=("70.0", "60.0"), recipe="none:NONE"),
        Row(
            label="Second",
            fields=("300",),
            published=("74.8", "69.4*"),
            recipe="none:NONE",
            differs={"KNN": "k = 200"},
        ),
    ),
    footnotes=("† taken from elsewhere",),
)


def pretraining(key: str, epochs: int) -> Pretraining:
    return Pretraining(
        key=key,
        seed=0,
        name=key,
        dataset="mnist5k",
        backbone="resnet_tiny",
        epochs=epochs,
        views=2,
        recipe="none:NONE",
        published_epochs=epochs,
        scale="paper",
    )


def evaluation(key: str, parent: str, seed: int = 0) -> Evaluation:
    return Evaluation(
        key=key,
        slot=f"slot-{key}",
        pretraining=parent,
        seed=seed,
        protocol="protocols.knn@1",
        variant="knn:none",
        scale="paper",
    )


def resolved() -> Resolved:
    evaluations = [
        evaluation("lin1", "m-1"),
        evaluation("lin1b", "m-1b", 1),
        evaluation("knn1", "m-1"),
        evaluation("lin2", "m-2"),
        evaluation("knn2", "m-2"),
    ]
    cells = [((1, 0), ("lin1", "lin1b")), ((1, 1), ("knn1",)), ((2, 0), ("lin2",))]
    cells += [((2, 1), ("knn2",))]
    return Resolved(
        table=TABLE.name,
        scale="paper",
        cells=tuple(
            CellJobs(
                cell=Cell(row=row, column=column),
                metric=TABLE.columns[column].metric,
                evaluations=keys,
            )
            for (row, column), keys in cells
        ),
        pretrainings={k: pretraining(k, n) for k, n in (("m-1", 1), ("m-1b", 1), ("m-2", 3))},
        evaluations={e.key: e for e in evaluations},
    )


def record(key: str, value: float, slot: str | None = None) -> Record:
    return Record(
        key=key,
        slot=slot or f"slot-{key}",
        recipe={
            "method": {"class": "methods.m.M"},
            "backbone": {"name": "resnet_tiny"},
            "dataset": "mnist5k",
            "epochs": 1,
            "views": [{}, {}],
        },
        protocol={"class": "protocols.knn.KNN"},
        seed=0,
        metrics={"linear_top1": value, "knn_20": value},
        intervals={"knn_20": [value - 0.2, value + 0.3]},
        checkpoint={"sha256": "abc"},
        seconds=5.0,
        pretrain_seconds=20.0,
    )


def records() -> list[Record]:
    """A cell on two seeds, one that is stale, and one on one seed."""
    return [
        record("lin1", 70.14),
        record("lin1b", 70.55),
        record("older", 58.0, slot="slot-knn1"),
        record("knn2", 69.36),
    ]
