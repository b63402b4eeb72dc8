"""What all figures share: a canvas without a display, a PNG and an SVG, a command line."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar

from harness.errors import UserError
from harness.files import written_atomically

ROOT = Path(__file__).resolve().parent.parent
OUT = ROOT / "results" / "figures"  # where figures are left unless --out says otherwise
DPI = 150  # of the PNG
# Colours that people with any kind of colour vision tell apart (Okabe and Ito).
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_STYLE: dict[Any, Any] = {
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": False,
    "legend.frameon": False,
    "svg.fonttype": "none",  # text stays text: searchable, read aloud, scaled
    "svg.hashsalt": "figures",  # the same figure is the same file
}


class Drawn(NamedTuple):
    """A finished figure, and what it shows in words."""

    figure: Any  # matplotlib's Figure, whose import takes half a second
    name: str  # of its files, without suffix
    text: str = ""  # numbers to print beside it


class _Arguments(Protocol):
    @property
    def out(self) -> Path: ...


Arguments = TypeVar("Arguments", bound=_Arguments)


def canvas(width: float, height: float) -> Any:
    """An empty Figure of this size in inches.

    Not made by pyplot: there is no state, no window and no display behind it; files are drawn by
    Agg and the SVG writer.
    """
    from matplotlib import rcParams
    from matplotlib.figure import Figure

    rcParams.update(_STYLE)
    return Figure(figsize=(width, height), layout="constrained")


def show_image(axes: Any, pixels: Any, **options: Any) -> Any:
    """An image or a map without ticks and frame; returns matplotlib's artist."""
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_visible(False)
    return axes.imshow(pixels, **options)


def save(drawn: Drawn, folder: Path) -> tuple[Path, Path]:
    """Write `folder/<name>.png` and `.svg`, each in one step; returns their paths."""
    paths = folder / f"{drawn.name}.png", folder / f"{drawn.name}.svg"
    for path, metadata in zip(paths, ({"Software": None}, {"Date": None}), strict=True):
        with written_atomically(path) as file:
            drawn.figure.savefig(file, format=path.suffix[1:], dpi=DPI, metadata=metadata)
    return paths


def main(
    kind: type[Arguments],
    make: Callable[[Arguments], Drawn],
    arguments: Sequence[str] | None = None,
    *,
    prog: str | None = None,
    more: str = "",
) -> None:
    """A figure's command line, made from the dataclass of its arguments.

    Its numbers and the paths of its files go to stdout; exits with 2 on a user's mistake.

    Args:
        kind: The dataclass; its docstring and field comments are the help.
        make: Draws.
        arguments: Default: the process's.
        prog: Its name in the help, where it isn't the script's.
        more: What the help says besides.
    """
    import tyro

    args = tyro.cli(
        kind,
        args=None if arguments is None else list(arguments),
        prog=prog,
        description="\n\n".join(filter(None, (inspect.getdoc(kind), more))),
        config=(tyro.conf.FlagCreatePairsOff,),
    )
    try:
        drawn = make(args)
        paths = save(drawn, args.out)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    print("\n".join(filter(None, (drawn.text, *map(str, paths)))))
