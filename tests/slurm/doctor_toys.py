"""What the doctor's tests are about: toy subjects, tables of real recipes, files, a cluster."""

import zipfile
from dataclasses import replace
from pathlib import Path

from harness import registry
from harness.scale import find_scale
from slurm.check_cluster import find_place
from slurm.checks import Subject
from slurm.clusters import read_sections
from slurm.plan import make_plan
from slurm.sites import Site
from tests.results import sample

HERE = Site(name="local", slots=4, gpus=1)


def subject(tmp_path, table=None, *, records=None, scale="paper", trained=()) -> Subject:
    """The sample table's jobs, with what was recorded and trained."""
    records = records or {}
    for key in trained:
        whole(tmp_path / key / "backbone.pt")
    table = table or sample.resolved()
    return Subject(
        plan=make_plan([table], records.keys(), tmp_path),
        scale=find_scale(scale),
        runs=tmp_path,
        records_folder=tmp_path / "records",
        records=records,
        recorded={key: e for key, e in table.evaluations.items() if key in records},
    )


def real(recipe: str, variant: str, scale="paper"):
    """A table of one cell, of a recipe and a protocol that exist."""
    table = sample.resolved()
    p = replace(table.pretrainings["m-1"], recipe=recipe, dataset="imagenet", scale=scale)
    p = replace(p, published_epochs=None, backbone=registry.recipe(recipe).backbone.name)
    e = replace(table.evaluations["knn1"], variant=variant, scale=scale)
    return replace(table, pretrainings={"m-1": p}, evaluations={"knn1": e}, cells=())


def whole(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("data.pkl", b"weights" * 100)


def on_cluster(tmp_path, text, table):
    own = tmp_path / "own.toml"
    own.write_text(text)
    site, nodes, answer = find_place("slurm", read_sections(own=own))
    return site, nodes, answer, subject(tmp_path, table)
