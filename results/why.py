"""Where a number comes from: cell → record → recipe, command, checkpoint, data."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from harness.record import Record
from results.cells import CellResult
from results.table import Table


def trace(table: Table, result: CellResult, records: Path) -> str:
    """The chain behind a cell, for people; each record of it in full."""
    lines = [f"{table.name}: {table.cell_name(result.cell)}", f"source: {table.source}"]
    lines.append(f"the paper's number: {result.published.text or 'none'}")
    lines.append(f"status: {result.status}" + (f" ({result.reason})" if result.reason else ""))
    if result.mean is not None:
        lines.append(
            f"ours: mean {result.mean:.2f} over {len(result.values)} of {result.wanted} seeds"
        )
    for key, value in zip(result.records, result.values, strict=True):
        path = records / f"{key}.json"
        lines += ["", f"record {path}: {value:.2f}", *_record_lines(Record.load(path))]
    return "\n".join(lines)


def _record_lines(record: Record) -> Sequence[str]:
    environment = dict(record.environment)
    chain = {
        "seed": record.seed,
        "metrics": record.metrics,
        "commit": environment.pop("commit", "unknown"),
        "dirty": environment.pop("dirty", "unknown"),
        "command": environment.pop("command", "unknown"),
        "log": environment.pop("log", None) or "none: stderr went to no file",
        "checkpoint": record.checkpoint,
        "data": record.data,
        "predictions": record.predictions,
        "seconds": record.seconds,
        "pretrain_seconds": record.pretrain_seconds,
        "environment": environment,
        "protocol": record.protocol,
        "recipe": record.recipe,
    }
    return [f"  {name}: {_text(value)}" for name, value in chain.items()]


def _text(value: Any) -> str:
    if isinstance(value, str):
        return value
    text = json.dumps(value, indent=2, ensure_ascii=False)
    return text if len(text) < 80 and "\n" not in text else text.replace("\n", "\n  ")
