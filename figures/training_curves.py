"""Training curves: the loss and its terms over the epochs, from the runs' log.jsonl."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tabulate import tabulate

from figures.drawing import COLOURS, OUT, ROOT, Drawn, NotRunError, canvas, counted, main, scale_of
from harness.errors import UserError
from harness.scale import default_scale, find_scale

# What a line tells besides the loss and its terms.
_BESIDES = {"step", "steps", "epoch", "learning_rate", "images_per_s", "seconds_left"}
LOSS = "loss"
MOST_NAMED = 8  # runs of a method that a legend still tells apart


@dataclass(frozen=True, kw_only=True)
class TrainingCurves:
    """Loss and its terms over the epochs of the runs in a folder, a row of panels per method."""

    runs: Path = ROOT / "runs"  # folder of the runs, whose log.jsonl are read
    only: tuple[str, ...] = ()  # methods, or folders of single runs; by default all
    scale: str | None = None
    """Of the runs; by default paper where there is an ImageNet under DATA_ROOT, else demo."""
    out: Path = OUT  # gets training_curves.<scale>.png and .svg


@dataclass(frozen=True, kw_only=True)
class Curves:
    """What one run logged."""

    run: str  # name of its folder
    label: str  # what sets it apart from other runs of its method
    scale: str  # by its data set; "" where that isn't known
    epochs: tuple[float, ...]  # where it was logged
    values: dict[str, tuple[float, ...]]  # the loss, then its terms; as long as `epochs`

    @property
    def method(self) -> str:
        """The file that the method is from."""
        return self.run.rpartition("-")[0]


def make(args: TrainingCurves) -> Drawn:
    """Read the logs and draw.

    Raises:
        UserError: There is no log, or none of those asked for.
    """
    scale = find_scale(args.scale or default_scale())
    found = [read_run(path.parent) for path in sorted(args.runs.glob("*/log.jsonl"))]
    logged = [run for run in found if run.epochs and run.scale == scale.name]
    shown = [run for run in logged if not args.only or {run.method, run.run} & {*args.only}]
    if not shown:
        methods = ", ".join(sorted({run.method for run in logged})) or "nothing"
        raise NotRunError(
            f"{args.runs} has logs of {methods} at the {scale.name} scale"
            + (
                f" and none of {', '.join(args.only)}"
                if args.only
                else f"; run python reproduce.py all --scale {scale.name} first"
            )
        )
    return Drawn(
        draw(shown),
        "training_curves",
        title=f"losses of {counted(len(shown), 'pretraining')} over the epochs",
        description=_in_words(shown),
        scale=scale.name,
        text=describe(shown),
    )


def read_run(folder: Path) -> Curves:
    """A run's curves. A half-written last line, of a run that goes on, is left out.

    Raises:
        UserError: Another line is damaged.
    """
    lines = []
    path = folder / "log.jsonl"
    for number, text in enumerate(path.read_text().splitlines(keepends=True), 1):
        if not text.endswith("\n"):
            break
        try:
            lines.append(json.loads(text))
        except json.JSONDecodeError as error:
            raise UserError(f"{path}, line {number} is damaged ({error}); remove it") from error
    names = dict.fromkeys(name for line in lines for name in line if name not in _BESIDES)
    nothing = float("nan")  # a term that began later
    label, scale = _about(folder)
    return Curves(
        run=folder.name,
        label=label,
        scale=scale,
        epochs=tuple(line["epoch"] for line in lines),
        values={name: tuple(line.get(name, nothing) for line in lines) for name in names},
    )


def _about(folder: Path) -> tuple[str, str]:
    """What to call a run, and its scale."""
    try:
        saved = json.loads((folder / "recipe.json").read_text())
    except (FileNotFoundError, json.JSONDecodeError):
        return folder.name, ""
    recipe = saved["recipe"]
    what = f"{recipe['backbone']['name']}, {recipe['dataset']}, {recipe['epochs']} epochs"
    name = f"{what}, seed {saved['seed']} ({folder.name.rpartition('-')[2][:6]})"
    return name, scale_of((recipe,))


def _in_words(runs: Sequence[Curves]) -> str:
    methods = dict.fromkeys(run.method for run in runs)
    ends = (
        f"{method} from {_mean_loss(runs, method, 0):.3g} to {_mean_loss(runs, method, -1):.3g}"
        for method in methods
    )
    return (
        "A row of panels per method, the loss and each of its terms over the epochs, a line per "
        f"run. First and last loss, mean over runs: {', '.join(ends)}."
    )


def _mean_loss(runs: Sequence[Curves], method: str, place: int) -> float:
    return statistics.fmean(run.values[LOSS][place] for run in runs if run.method == method)


def describe(runs: Sequence[Curves]) -> str:
    """The last loss of each run, as a table."""
    rows = [
        (run.run, f"{run.epochs[-1]:.1f}", *(f"{run.values[LOSS][i]:.4g}" for i in (0, -1)))
        for run in runs
    ]
    return tabulate(rows, ("run", "epochs", "first loss", "last loss"), disable_numparse=True)


def draw(runs: Sequence[Curves]) -> Any:
    """The figure: a row per method, the loss, then each of its terms, then which run is which."""
    methods = list(dict.fromkeys(run.method for run in runs))
    terms: dict[str, list[str]] = {method: [] for method in methods}
    for run in runs:
        terms[run.method] += [name for name in run.values if name not in terms[run.method]]
    columns = max(map(len, terms.values()))
    figure = canvas(2.3 * columns + 3.2, 2.0 * len(methods) + 0.4)
    widths = {"width_ratios": (*[2.3] * columns, 3.2)}
    grid = figure.subplots(len(methods), columns + 1, squeeze=False, gridspec_kw=widths)
    for line, method in zip(grid, methods, strict=True):
        own = [run for run in runs if run.method == method]
        # Methods of fewer terms than others leave panels over, which are switched off below.
        for axes, name in zip(line, terms[method], strict=False):
            _panel(axes, own, name)
        for axes in line[len(terms[method]) :]:
            axes.set_axis_off()
        line[0].set_ylabel(method)
        if len(own) <= MOST_NAMED:
            line[-1].legend(*line[0].get_legend_handles_labels(), loc="center left", fontsize=7)
    return figure


def _panel(axes: Any, runs: Sequence[Curves], name: str) -> None:
    for number, run in enumerate(runs):
        values = run.values.get(name, ())
        colour = COLOURS[number % len(COLOURS)]
        axes.plot(run.epochs[: len(values)], values, color=colour, linewidth=1, label=run.label)
    axes.set_title(name)
    axes.set_xlabel("epoch")


if __name__ == "__main__":
    main(TrainingCurves, make)
