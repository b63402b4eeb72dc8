"""Interleaved timing: A, B, A, B, … in one process, ratios per repetition, their median."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass

from tabulate import tabulate


@dataclass(frozen=True)
class Comparison:
    """How much faster ours is than a peer at the same work, in CPU time of one thread."""

    case: str
    peer: str
    items: int  # views or images per run
    ours_per_s: float  # medians
    peer_per_s: float
    ratio: float  # median over repetitions
    lowest: float
    highest: float


def compare(
    case: str,
    peer: str,
    run_ours: Callable[[], object],
    run_peer: Callable[[], object],
    *,
    items: int,
    repetitions: int,
) -> Comparison:
    """Time both in turn after a warm-up of each."""
    run_ours()
    run_peer()
    times = [(_seconds(run_ours), _seconds(run_peer)) for _ in range(repetitions)]
    ratios = [theirs / ours for ours, theirs in times]
    return Comparison(
        case=case,
        peer=peer,
        items=items,
        ours_per_s=items / statistics.median(ours for ours, _ in times),
        peer_per_s=items / statistics.median(theirs for _, theirs in times),
        ratio=statistics.median(ratios),
        lowest=min(ratios),
        highest=max(ratios),
    )


def _seconds(function: Callable[[], object]) -> float:
    # CPU time, so that a busy machine disturbs less.
    started = time.process_time()
    function()
    return time.process_time() - started


def show(comparisons: list[Comparison], *, as_json: bool) -> None:
    """Print a table, or one JSON line."""
    if as_json:
        print(json.dumps([asdict(c) for c in comparisons]))
        return
    rows = [
        [
            c.case,
            f"{c.ours_per_s:,.0f}",
            c.peer,
            f"{c.peer_per_s:,.0f}",
            f"{c.ratio:.1f} ({c.lowest:.1f}-{c.highest:.1f})",
        ]
        for c in comparisons
    ]
    headings = ["Case", "Ours, per s", "Peer", "Peer, per s", "Ratio (min-max)"]
    print(tabulate(rows, headings, tablefmt="pipe", disable_numparse=True))
