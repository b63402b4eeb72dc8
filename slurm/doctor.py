"""`reproduce.py doctor`: all that tables need, checked before anything is spent."""

from __future__ import annotations

import dataclasses
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path

from harness.errors import UserError
from harness.record import Record
from harness.scale import Scale, default_scale, find_scale
from results.catalog import all_tables, find_tables
from results.resolve import Resolved, resolve
from results.table import Table
from slurm import clusters
from slurm.arguments import Doctor
from slurm.check_cluster import check_limits, check_requests, find_place
from slurm.check_data import check_data
from slurm.check_files import (
    check_checkpoints,
    check_failures,
    check_folders,
    check_records,
    read_records,
)
from slurm.check_gpus import check_gpus
from slurm.check_memory import check_memory
from slurm.check_packages import check_packages
from slurm.checks import Check, Subject
from slurm.plan import describe_jobs, make_plan
from slurm.sites import check_changes


def run(args: Doctor) -> int:
    """Print every check, as it is answered; returns 0, or 1 if something would fail."""
    scale = find_scale(args.scale or default_scale())
    tables = find_tables(args.tables) if args.tables else list(all_tables().values())
    checks = []
    for check in examine(args, tables, scale):
        checks.append(check)
        if not args.json:
            print(check.describe(), flush=True)
    failing = sum(not check.ok for check in checks)
    if args.json:
        found = [dataclasses.asdict(check) for check in checks]
        names = [table.name for table in tables]
        summary = {"ok": not failing, "tables": names, "scale": scale.name, "checks": found}
        print(json.dumps(summary))
    else:
        verdict = f"{failing} would fail" if failing else "all is well"
        print(f"{len(checks)} checks of {len(tables)} tables at scale {scale.name}: {verdict}.")
    return 1 if failing else 0


def examine(args: Doctor, tables: list[Table], scale: Scale) -> Iterator[Check]:
    """Every check of what these tables still need.

    Raises:
        UserError: A mistake in the request or in clusters.toml.
    """
    if args.seeds is not None and args.seeds < 1:
        raise UserError(f"--seeds {args.seeds} must be at least 1.")
    sections = clusters.read_sections(own=args.clusters, changes=args.set)
    records, damaged = read_records(args.records)
    subject = make_subject(args, scale, _resolved(args, tables, scale), records)
    site, nodes, answer = find_place(args.cluster, sections)
    check_changes(args.set, site.name)
    yield Check(name="plan", ok=True, found=describe_jobs(subject.plan).rstrip("."))
    yield from check_data(subject)
    yield from check_packages(subject)
    yield answer
    if answer.ok:
        yield from check_requests(subject, site, nodes)
        yield from check_limits(subject, site)
    yield from check_gpus(subject, site)
    yield from check_memory(subject, site)
    yield from check_folders(subject)
    yield from check_records(subject, damaged)
    yield from check_checkpoints(subject)
    yield from check_failures(subject)


def _resolved(args: Doctor, tables: list[Table], scale: Scale) -> list[Resolved]:
    """The tables' jobs; nothing is left behind where the folder of runs doesn't exist yet."""
    with tempfile.TemporaryDirectory() as scratch:
        kept = args.runs / ".plans"
        cache = kept if kept.is_dir() else Path(scratch)
        return [
            resolve(table, scale, seeds=args.seeds, fill=args.fill, cache=cache) for table in tables
        ]


def make_subject(
    args: Doctor, scale: Scale, tables: list[Resolved], records: dict[str, Record]
) -> Subject:
    """What is examined: the jobs that these tables still need."""
    plan = make_plan(tables, records.keys(), args.runs)
    recorded = {key: e for t in tables for key, e in t.evaluations.items() if key in records}
    return Subject(
        plan=plan,
        scale=scale,
        runs=args.runs,
        records_folder=args.records,
        records=records,
        recorded=recorded,
    )
