"""From tables to missing jobs: {pretraining: [evaluations]}, each once, and what they cost."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from harness.record import Record
from harness.snapshots import END, trunk_file
from results.resolve import Evaluation, Pretraining, Resolved
from results.table import Cell, Table
from slurm.cost import (
    SPLIT_SIZES,
    Estimate,
    Resources,
    duration,
    evaluate_estimate,
    images_processed,
    pretrain_estimate,
    wall_seconds,
)
from slurm.sites import Site


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is missing."""

    pretrainings: dict[str, Pretraining]  # to be trained (further)
    trained: frozenset[str]  # keys of finished pretrainings that missing evaluations need
    evaluations: dict[str, Evaluation]  # without a record
    described: dict[str, Pretraining]  # every pretraining that an evaluation belongs to
    recorded: int  # evaluations that have a record

    @property
    def by_pretraining(self) -> dict[str, list[Evaluation]]:
        """The missing evaluations of each pretraining, longest pretraining first."""
        order = sorted(self.described.values(), key=lambda p: (-images_processed(p), p.key))
        grouped: dict[str, list[Evaluation]] = {p.key: [] for p in order}
        for evaluation in self.evaluations.values():
            grouped[evaluation.pretraining].append(evaluation)
        return {key: found for key, found in grouped.items() if found}

    @property
    def all_jobs(self) -> list[Pretraining | Evaluation]:
        """The missing pretrainings and evaluations."""
        return [*self.pretrainings.values(), *self.evaluations.values()]

    @property
    def jobs(self) -> int:
        """How many jobs there are to run."""
        return len(self.pretrainings) + len(self.evaluations)


def make_plan(tables: Iterable[Resolved], records: Collection[str], runs: Path) -> Plan:
    """The jobs that are missing for these tables.

    Args:
        tables: Resolved tables; a job that several need is planned once.
        records: Keys of the existing records.
        runs: Folder of the pretraining runs: one whose trunks are there is not planned again.
    """
    described: dict[str, Pretraining] = {}
    evaluations: dict[str, Evaluation] = {}
    for table in tables:
        described |= table.pretrainings
        evaluations |= table.evaluations
    missing = {key: e for key, e in evaluations.items() if key not in records}
    needed = {e.pretraining for e in missing.values()}
    lacking = {
        e.pretraining
        for e in missing.values()
        if not (runs / e.pretraining / trunk_file(e.after)).exists()
    }
    trained = needed - lacking
    return Plan(
        pretrainings={key: described[key] for key in described if key in needed - trained},
        trained=frozenset(trained),
        evaluations=missing,
        described={key: described[key] for key in described if key in needed},
        recorded=len(evaluations) - len(missing),
    )


@dataclass(frozen=True, kw_only=True)
class Costs:
    """What each job of a plan will take, None where nothing is known, by key."""

    plan: Plan
    site: Site
    estimates: Mapping[str, Estimate | None]

    @property
    def known(self) -> list[Estimate]:
        """The estimates that there are."""
        return [estimate for estimate in self.estimates.values() if estimate is not None]

    def groups(self) -> list[tuple[float, list[float]]]:
        """Seconds of each pretraining and of its evaluations; 0 where nothing is known."""
        return [
            (self._seconds(key), [self._seconds(e.key) for e in evaluations])
            for key, evaluations in self.plan.by_pretraining.items()
        ]

    def _seconds(self, key: str) -> float:
        estimate = self.estimates.get(key)  # a finished pretraining has none
        return estimate.seconds if estimate else 0.0


def estimate_costs(plan: Plan, site: Site, records: Mapping[str, Record]) -> Costs:
    """Estimate every job of a plan from earlier records, or from the papers' hours."""
    found = [record for record in records.values() if not record.diverged]  # those ended early
    estimates: dict[str, Estimate | None] = {
        key: pretrain_estimate(p, site.resources(p), found) for key, p in plan.pretrainings.items()
    }
    for key, e in plan.evaluations.items():
        parent = plan.described[e.pretraining]
        estimates[key] = evaluate_estimate(e, parent, site.resources(e), found)
    return Costs(plan=plan, site=site, estimates=estimates)


def describe_plan(costs: Costs) -> list[str]:
    """The plan in lines for people: every job, what is cached, the estimated cost."""
    plan = costs.plan
    lines = [describe_jobs(plan)]
    for key, evaluations in plan.by_pretraining.items():
        lines.append(_describe_pretraining(plan.described[key], key in plan.trained, costs))
        for e in evaluations:
            moment = "" if e.after == END else f" after {e.after} % of the steps"
            about = f"{moment}{_about(costs.estimates[e.key])}"
            lines.append(f"  evaluate {e.key}  {e.protocol}{about}")
    if plan.pretrainings:
        total = sum(images_processed(p) for p in plan.pretrainings.values())
        lines.append(f"{total:,} crops to pretrain on in all.")
    return lines + describe_costs(costs)


def describe_jobs(plan: Plan) -> str:
    """How many jobs there are, and how much is there already."""
    return (
        f"{plan.jobs} jobs to run: {len(plan.pretrainings)} pretrainings, "
        f"{len(plan.evaluations)} evaluations; {plan.recorded} evaluations are recorded, "
        f"{len(plan.trained)} of the pretrainings needed are finished."
    )


def describe_published(
    tables: Iterable[tuple[Table, Resolved]], records: Collection[str]
) -> list[str]:
    """Every number that the papers print, row by row, as planned, cached or quoted; and a count."""
    lines: list[str] = []
    counts: Counter[str] = Counter()
    for table, resolved in tables:
        cells: dict[int, dict[str, list[str]]] = {}
        for cell in table.cells():
            if table.published(cell).states_something:
                state = _cell_state(table, cell, resolved, records)
                number = f"{table.columns[cell.column].label} = {table.published(cell).text}"
                cells.setdefault(cell.row, {}).setdefault(state, []).append(number)
                counts[state.partition(" ")[0]] += 1
        lines += [
            f"  {table.name}, {table.row_name(row)}: "
            + " | ".join(f"{state}: {'; '.join(numbers)}" for state, numbers in states.items())
            for row, states in cells.items()
        ]
    total = ", ".join(f"{count} {state}" for state, count in counts.items())
    return [f"{counts.total()} published numbers: {total or 'none'}.", *lines]


def _cell_state(table: Table, cell: Cell, resolved: Resolved, records: Collection[str]) -> str:
    jobs = resolved.jobs_of(cell)
    if jobs is None:
        return f"quoted ({table.rows[cell.row].reason})"
    return "cached" if all(key in records for key in jobs.evaluations) else "planned"


def _describe_pretraining(p: Pretraining, trained: bool, costs: Costs) -> str:
    work = f"{p.epochs} epochs × {SPLIT_SIZES.get(p.dataset, 0):,} images × {p.views} views"
    cost = f"{work} = {images_processed(p):,} crops{_about(costs.estimates.get(p.key))}"
    state = "finished" if trained else cost
    return f"pretrain {p.key}  {p.name}, {p.backbone}, {p.dataset}, seed {p.seed}: {state}"


def _about(estimate: Estimate | None) -> str:
    if estimate is None or not estimate.seconds:
        return ""
    gpus = estimate.resources.gpus
    where = f" on {gpus} GPU{'s' if gpus > 1 else ''}" if gpus else ""
    return f", about {duration(estimate.seconds)}{where} (from {estimate.source})"


def describe_costs(costs: Costs) -> list[str]:
    """GPU-hours, critical path and wall time, and what they rest on; nothing for an empty plan."""
    plan, site = costs.plan, costs.site
    if not plan.jobs:
        return []
    place = f"cluster {site.name}" if site.cluster else "this machine"
    lines = [f"On {place}: {_shares(costs)}."]
    unknown = plan.jobs - len(costs.known)
    if unknown and not any(estimate.seconds for estimate in costs.known):
        return [*lines, _cost_elsewhere(plan)]
    least = "at least " if unknown else "about "
    on_gpus = any(estimate.resources.gpus for estimate in costs.known)
    lines.append(
        f"Cost: {least}{_cost(costs.known, 'GPU' if on_gpus else 'CPU')}"
        + (f"; unknown for {unknown} of {plan.jobs} jobs." if unknown else ".")
    )
    groups = costs.groups()
    longest = max(seconds + max(then, default=0.0) for seconds, then in groups)
    wall = wall_seconds(groups, site.slots, shared=site.cluster is None)
    free = ", if the nodes are free" if site.cluster else ""
    lines.append(
        f"Time: {least}{duration(wall)} with {site.slots} at once{free}; critical path "
        f"{duration(longest)}."
    )
    return lines


def _shares(costs: Costs) -> str:
    """GPUs per job of each kind: "pretraining on 8 or 16 GPUs, evaluation on 1"."""
    parts = []
    for kind, jobs in (
        ("pretraining", costs.plan.pretrainings.values()),
        ("evaluation", costs.plan.evaluations.values()),
    ):
        sizes: Sequence[int] = sorted({costs.site.resources(job).gpus for job in jobs})
        if sizes:
            many = "s" if sizes[-1] > 1 else ""
            share = f"{' or '.join(map(str, sizes))} GPU{many}" if sizes[-1] else "CPU"
            parts.append(f"{kind} on {share}")
    return ", ".join(parts)


def _cost_elsewhere(plan: Plan) -> str:
    """What a plan that nothing is known of here costs on GPUs, by what papers state."""
    found = [pretrain_estimate(p, Resources(gpus=1), ()) for p in plan.pretrainings.values()]
    known = [estimate for estimate in found if estimate is not None]
    if not any(estimate.seconds for estimate in known):
        return "Cost: unknown (no record of a similar run, nothing published)."
    return (
        f"Cost: unknown here; on GPUs at least {_cost(known, 'GPU')}; unknown for "
        f"{plan.jobs - len(known)} of {plan.jobs} jobs."
    )


def _cost(known: Sequence[Estimate], kind: str) -> str:
    """Hours of estimates, and what they rest on."""
    hours = sum(estimate.gpu_hours for estimate in known)
    counts = Counter(estimate.source for estimate in known if estimate.seconds)
    found = [f"{n} job{'s' if n > 1 else ''} from {source}" for source, n in counts.items()]
    return f"{_hours(hours)} {kind}-hours; estimated: {'; '.join(found)}"


def _hours(hours: float) -> str:
    return f"{hours:,.0f}" if hours >= 10 else f"{hours:.2g}"
