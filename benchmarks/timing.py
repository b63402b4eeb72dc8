"""Interleaved timing: A, B, A, B, … in one process, ratios per repetition, their median.

And peak memory, of one case per fresh process.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from tabulate import tabulate

Run = Callable[[], object]
# What benchmarks of losses import, and takes long.
_IMPORTED = ["torch", "harness.method", "lightly.loss"]


def _seconds(function: Callable[[], object]) -> float:
    # CPU time, so that a busy machine disturbs less.
    started = time.process_time()
    function()
    return time.process_time() - started


@dataclass(frozen=True, kw_only=True)
class Claim:
    """Ours over another at the same work, beside what was promised."""

    case: str
    quantity: str  # "time": CPU seconds of one thread; "memory": bytes; "error": relative
    ours: float  # medians
    peer: str
    theirs: float
    ratio: float  # median over repetitions of ours / theirs, or of theirs / ours if `speed`
    lowest: float
    highest: float
    speed: bool = False
    must: float | None = None
    stretch: float | None = None


def options(description: str | None) -> argparse.Namespace:
    """The command line of a benchmark: --quick and --json."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--quick", action="store_true", help="only see that it runs")
    parser.add_argument("--json", action="store_true")
    return parser.parse_args()


def interleaved(runs: dict[str, Run], *, repetitions: int) -> dict[str, list[float]]:
    """CPU seconds of each, by name, one after the other in each repetition, after a warm-up."""
    for run in runs.values():
        run()
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repetitions):
        for name, run in runs.items():
            times[name].append(_seconds(run))
    return times


def claim(case: str, times: dict[str, list[float]], peer: str, **promised: float) -> Claim:
    """How long "ours" of `times` takes in units of `peer`; or with speed=True the inverse."""
    ours, theirs = times["ours"], times[peer]
    if promised.get("speed"):
        ratios = [b / a for a, b in zip(ours, theirs, strict=True)]
    else:
        ratios = [a / b for a, b in zip(ours, theirs, strict=True)]
    return Claim(
        case=case,
        quantity="time",
        ours=statistics.median(ours),
        peer=peer,
        theirs=statistics.median(theirs),
        ratio=statistics.median(ratios),
        lowest=min(ratios),
        highest=max(ratios),
        **promised,  # pyright: ignore[reportArgumentType]
    )


def memory_claim(case: str, ours: float, peer: str, theirs: float, **promised: float) -> Claim:
    """How much memory ours takes in units of `peer`'s, both from `peak_memory`."""
    ratio = ours / max(theirs, 1)
    return Claim(
        case=case,
        quantity="memory",
        ours=ours,
        peer=peer,
        theirs=theirs,
        ratio=ratio,
        lowest=ratio,
        highest=ratio,
        **promised,  # pyright: ignore[reportArgumentType]
    )


def error_claim(case: str, peer: str, error: float, must: float) -> Claim:
    """The largest relative difference to `peer`, of values and gradients in double precision."""
    return Claim(
        case=case,
        quantity="error",
        ours=error,
        peer=peer,
        theirs=0.0,
        ratio=error,
        lowest=error,
        highest=error,
        must=must,
    )


def peak_memory(make: Callable[..., Run], tiny: Sequence[object], full: Sequence[object]) -> int:
    """Bytes that the run `make(*full)` takes beyond its inputs, in a process of its own.

    The process is the copy of one that has imported modules and done nothing else, as importing
    them takes seconds. `make` allocates inputs and returns the run. A run on `make(*tiny)` comes
    first, so that libraries have filled their pools. Then VmHWM - VmRSS, after clearing the
    former: resident pages, of glibc's allocator with its default settings, which maps what is
    larger than 32 MB anew each time.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_IMPORTED)
    with context.Pool(1) as pool:
        return pool.apply(_peak, (make, tiny, full))


def _peak(make: Callable[..., Run], tiny: Sequence[object], full: Sequence[object]) -> int:
    make(*tiny)()
    run = make(*full)
    Path("/proc/self/clear_refs").write_text("5")
    before = _status("VmRSS")
    run()
    return _status("VmHWM") - before


def _status(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return 1024 * int(line.split()[1])
    raise OSError(f"/proc/self/status has no {field}")


_FORMATS: dict[str, Callable[[float], str]] = {
    "time": lambda value: f"{value:,.3f} s",
    "memory": lambda value: f"{value / 1e6:,.0f} MB",
    "error": lambda value: f"{value:.0e}",
}


def show_claims(claims: list[Claim], *, as_json: bool) -> None:
    """Print a table, or one JSON line."""
    if as_json:
        print(json.dumps([asdict(c) for c in claims]))
        return
    headings = ["Case", "Quantity", "Ours", "Peer", "Theirs", "Ratio (min-max)", "Must", "Stretch"]
    print(tabulate([_row(c) for c in claims], headings, tablefmt="pipe", disable_numparse=True))


def _row(c: Claim) -> list[str]:
    amount = _FORMATS[c.quantity]
    sign = "≥" if c.speed else "≤"
    quantity = "speed" if c.speed else c.quantity
    promised = ["" if x is None else f"{sign} {x:g}" for x in (c.must, c.stretch)]
    if c.quantity == "error":
        return [c.case, quantity, amount(c.ours), c.peer, "", "", *promised]
    digits = 1 if c.speed else 2
    ratio = f"{c.ratio:.{digits}f}"
    if c.lowest < c.highest:
        ratio += f" ({c.lowest:.{digits}f}-{c.highest:.{digits}f})"
    return [c.case, quantity, amount(c.ours), c.peer, amount(c.theirs), ratio, *promised]
