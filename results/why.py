"""Where a number comes from: cell → record → recipe, command, checkpoint, data."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from harness.record import Cost, Record
from harness.snapshots import END
from results import measures
from results.cells import CellResult
from results.table import Table


def trace(table: Table, result: CellResult, records: Path) -> str:
    """The chain behind a cell, for people; each record of it in full."""
    lines = [f"{table.name}: {table.cell_name(result.cell)}", f"source: {table.source}"]
    lines.append(f"the paper's number: {result.published.text or 'none'}")
    lines.append(f"status: {result.status}" + (f" ({result.reason})" if result.reason else ""))
    if result.mean is not None:
        sd = "" if result.sd is None else f" ± {result.sd:.2f}"
        seeds = f"{len(result.values)} of {result.wanted} seeds"
        lines.append(f"ours: mean {result.mean:.2f}{sd} over {seeds}")
    if result.is_divergence:
        lines.append(f"ours: divergence in {result.diverged} of {result.wanted} seeds")
    for key in result.records:
        path = records / f"{key}.json"
        record = Record.load(path)
        value = measures.value_of(record, table.work(result.cell).metric)
        found = record.diverged or ("no such number" if value is None else f"{value:.2f}")
        lines += ["", f"record {path}: {found}", *_record_lines(record)]
    return "\n".join(lines)


def _record_lines(record: Record) -> Sequence[str]:
    return [f"  {name}: {_text(value)}" for name, value in chain(record).items()]


def chain(record: Record) -> dict[str, Any]:
    """What a record's numbers come from, by name, from the seed to the recipe."""
    environment = dict(record.environment)
    return {
        "seed": record.seed,
        "metrics": record.metrics,
        "commit": environment.pop("commit", "unknown"),
        "dirty": environment.pop("dirty", "unknown"),
        "command": environment.pop("command", "unknown"),
        "log": environment.pop("log", None) or "none: stderr went to no file",
        **({} if record.after == END else {"after": f"{record.after} % of the steps"}),
        "checkpoint": record.checkpoint,
        "data": record.data,
        "predictions": record.predictions,
        "pretraining took": _cost(record.pretrain_cost, record.pretrain_seconds),
        "evaluation took": _cost(record.cost, record.seconds),
        "environment": environment,
        "protocol": record.protocol,
        "recipe": record.recipe,
    }


def _cost(cost: Cost | None, seconds: float) -> str:
    """A cost in one line; only the seconds in records from before there was one."""
    if cost is None:
        return f"{seconds:.0f} s"
    parts = [f"{cost.seconds:.0f} s", cost.where]
    if cost.gpus:
        parts.append(f"{cost.gpu_hours:.2f} GPU-hours")
    if cost.images_per_s is not None:
        parts.append(f"{cost.images_per_s:.0f} images/s")
    if cost.peak_memory_bytes:
        parts.append(f"peak {cost.peak_memory_bytes / 1e9:.2f} GB")
    if cost.jobs:
        parts.append(f"SLURM jobs {', '.join(cost.jobs)}")
    return ", ".join(parts)


def _text(value: Any) -> str:
    if isinstance(value, str):
        return value
    text = json.dumps(value, indent=2, ensure_ascii=False)
    return text if len(text) < 80 and "\n" not in text else text.replace("\n", "\n  ")
