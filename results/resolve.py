"""From cells to jobs: the keys, and the recipes ready to be sent to a worker.

A key is a fingerprint of a recipe, and recipes live in modules that import torch. So that a table
can be drawn without that, what was resolved is kept in a cache file named by the content of every
source that it depends on: a changed source asks for another file, and a stale one is never read.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.files import write_atomically
from harness.scale import Scale, find_scale
from results import measures
from results.table import Cell, Changes, Column, Table, Work

if TYPE_CHECKING:
    from harness.protocol import EvalProtocol, Metric
    from harness.recipe import Recipe

ROOT = Path(__file__).resolve().parent.parent
SOURCES = ("harness", "methods", "baselines", "protocols", "results")


@dataclass(frozen=True, kw_only=True)
class Pretraining:
    """A pretraining job, described without its recipe's classes."""

    key: str
    seed: int
    name: str  # of the recipe
    dataset: str
    backbone: str
    epochs: int
    views: int
    recipe: str  # its name, …
    published_epochs: int | None  # … epochs in its place at the paper's scale, …
    scale: str  # … scale, …
    changes: dict[str, Any] = field(default_factory=dict)  # … and what is ablated: for `recipe_of`
    snapshots: tuple[int, ...] = ()  # percents of the steps after which its trunk is kept, too


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """An evaluation job, described without its protocol's class."""

    key: str
    slot: str  # the key without versions
    pretraining: str  # key of what it evaluates
    seed: int  # of the pretraining, …
    protocol: str  # class and fingerprint, for people
    variant: str  # its name …
    scale: str  # … and scale: what `protocol_of` builds it from
    repeated: bool = False  # … or, where several evaluate one pretraining, of the protocol
    after: int = 100  # percent of the pretraining's steps


@dataclass(frozen=True, kw_only=True)
class CellJobs:
    """The evaluations behind one cell, one per seed, and the metric that it shows."""

    cell: Cell
    metric: str
    evaluations: tuple[str, ...]
    unit: str = "%"
    higher_is_better: bool = True
    noise: float = 0.5  # see harness.protocol.Metric


@dataclass(frozen=True, kw_only=True)
class Resolved:
    """A table at a scale: its jobs, each once, and which of them each cell needs."""

    table: str
    scale: str
    cells: tuple[CellJobs, ...]
    pretrainings: dict[str, Pretraining]
    evaluations: dict[str, Evaluation]

    def jobs_of(self, cell: Cell) -> CellJobs | None:
        """What a cell needs; None for a cell that isn't run."""
        return next((jobs for jobs in self.cells if jobs.cell == cell), None)


def source_hash(root: Path = ROOT) -> str:
    """SHA-256 over names and contents of all sources that a key can depend on."""
    digest = hashlib.sha256()
    for folder in SOURCES:
        for path in sorted((root / folder).rglob("*.py")):
            digest.update(str(path.relative_to(root)).encode() + b"\0")
            digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def resolve(
    table: Table, scale: Scale, *, seeds: int | None, fill: bool, cache: Path, root: Path = ROOT
) -> Resolved:
    """The jobs of a table, from the cache if its sources are unchanged.

    Args:
        table: Its wanted cells are resolved.
        scale: Applied to every recipe and protocol.
        seeds: Runs per cell; None: the table's own number, or the scale's.
        fill: Also cells that the paper leaves empty.
        cache: Folder of the cache files; made if missing.
        root: Folder whose sources are hashed.
    """
    count = seeds or table.seeds or scale.seeds
    request = json.dumps([source_hash(root), table.name, scale.name, count, fill])
    path = cache / f"{hashlib.sha256(request.encode()).hexdigest()[:32]}.json"
    if path.exists():
        return _from_json(json.loads(path.read_text()))
    resolved = _resolve(table, scale, count, fill)
    write_atomically(path, json.dumps(dataclasses.asdict(resolved), indent=1))
    return resolved


def _resolve(table: Table, scale: Scale, seeds: int, fill: bool) -> Resolved:
    from harness import registry
    from harness.recipe import fingerprint
    from harness.scale import scale_protocol
    from harness.snapshots import evaluated_after

    pretrainings: dict[str, Pretraining] = {}
    evaluations: dict[str, Evaluation] = {}
    cells = []
    for cell in table.wanted(fill=fill):
        work = table.work(cell)
        recipe = _recipe(work.recipe, work.epochs, work.changes, scale)
        protocol = scale_protocol(registry.variant(work.protocol), scale)
        metric = _metric(protocol, work.metric)
        after = table.columns[cell.column].after
        assert after in (*recipe.snapshots, 100), (table.name, cell)
        moment = evaluated_after(after)
        keys = []
        for trained, repeat in _seeds(protocol, table.columns[cell.column], seeds):
            pretraining = _pretraining(recipe, trained, work, scale)
            pretrainings[pretraining.key] = pretraining
            repeated = _reseeded(protocol, repeat)
            evaluation = Evaluation(
                key=fingerprint(recipe, repeated, trained, *moment),
                slot=fingerprint(recipe, repeated, trained, *moment, versions=False),
                pretraining=pretraining.key,
                seed=trained if repeat is None else repeat,
                protocol=f"{type(protocol).__module__}@{fingerprint(protocol)[:6]}",
                variant=work.protocol,
                scale=scale.name,
                repeated=repeat is not None,
                after=after,
            )
            evaluations[evaluation.key] = evaluation
            keys.append(evaluation.key)
        cells.append(
            CellJobs(
                cell=cell,
                metric=metric.name,
                evaluations=tuple(keys),
                unit=metric.unit,
                higher_is_better=metric.higher_is_better,
                noise=metric.noise,
            )
        )
    return Resolved(
        table=table.name,
        scale=scale.name,
        cells=tuple(cells),
        pretrainings=pretrainings,
        evaluations=evaluations,
    )


def _metric(protocol: EvalProtocol, name: str) -> Metric:
    known = {metric.name: metric for metric in (*protocol.metrics, *measures.METRICS)}
    assert name in known, (name, protocol)
    return known[name]


def _seeds(protocol: EvalProtocol, column: Column, seeds: int) -> Iterator[tuple[int, int | None]]:
    """For each run of a cell the pretraining's seed, and the protocol's if that is what varies."""
    if column.repeats == "pretraining":
        yield from ((seed, None) for seed in range(seeds))
    elif hasattr(protocol, "seed"):
        yield from ((0, seed) for seed in range(seeds))
    else:
        yield 0, None


def _reseeded(protocol: EvalProtocol, seed: int | None) -> EvalProtocol:
    return protocol if seed is None else dataclasses.replace(protocol, **{"seed": seed})


def _pretraining(recipe: Recipe, seed: int, work: Work, scale: Scale) -> Pretraining:
    from harness.recipe import pretrain_key

    return Pretraining(
        key=pretrain_key(recipe, seed),
        seed=seed,
        name=recipe.name,
        dataset=recipe.dataset,
        backbone=recipe.backbone.name,
        epochs=recipe.epochs,
        views=len(recipe.views),
        recipe=work.recipe,
        published_epochs=work.epochs,
        scale=scale.name,
        changes=dict(work.changes),
        snapshots=recipe.snapshots,
    )


def _recipe(name: str, epochs: int | None, changes: Changes, scale: Scale) -> Recipe:
    from harness import registry
    from harness.recipe import with_changes
    from harness.scale import scale_recipe

    own = registry.recipe(name)
    recipe = with_changes(own, changes)
    if epochs is not None:
        recipe = dataclasses.replace(recipe, epochs=epochs)
    found = scale_recipe(recipe, scale)
    if scale.is_paper or recipe.batch_size == own.batch_size:
        return found
    # scales have one batch size for all: an ablated one keeps its ratio to the recipe's own
    size = found.batch_size * recipe.batch_size // own.batch_size
    return dataclasses.replace(found, batch_size=size)


def recipe_of(pretraining: Pretraining) -> Recipe:
    """The recipe of a pretraining (imports its method, thus torch)."""
    scale = find_scale(pretraining.scale)
    return _recipe(pretraining.recipe, pretraining.published_epochs, pretraining.changes, scale)


def protocol_of(evaluation: Evaluation) -> EvalProtocol:
    """The protocol of an evaluation."""
    from harness import registry
    from harness.scale import scale_protocol

    protocol = scale_protocol(registry.variant(evaluation.variant), find_scale(evaluation.scale))
    return _reseeded(protocol, evaluation.seed if evaluation.repeated else None)


def _from_json(values: dict[str, Any]) -> Resolved:
    return Resolved(
        table=values["table"],
        scale=values["scale"],
        cells=tuple(_cells(values["cells"])),
        pretrainings={k: _pretraining_from(v) for k, v in values["pretrainings"].items()},
        evaluations={k: Evaluation(**v) for k, v in values["evaluations"].items()},
    )


def _pretraining_from(values: dict[str, Any]) -> Pretraining:
    found = Pretraining(**values)
    changes = {k: tuple(v) if isinstance(v, list) else v for k, v in found.changes.items()}
    return dataclasses.replace(found, changes=changes, snapshots=tuple(found.snapshots))


def _cells(values: list[dict[str, Any]]) -> Iterator[CellJobs]:
    for value in values:
        found = CellJobs(**value)
        cell, evaluations = Cell(**value["cell"]), tuple(found.evaluations)
        yield dataclasses.replace(found, cell=cell, evaluations=evaluations)
