"""What all figures share: a canvas, a PNG and an SVG that tell their scale, a command line."""

from __future__ import annotations

import inspect
import sys
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar

from harness.errors import UserError
from harness.files import written_atomically
from harness.scale import SCALES

ROOT = Path(__file__).resolve().parent.parent
OUT = ROOT / "results" / "figures"  # where figures are left unless --out says otherwise
DPI = 150  # of the PNG
CHARACTERS_PER_INCH = 12  # of a title
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
    name: str  # of its files, without scale and suffix
    title: str  # what it shows, and of what, in a line
    description: str  # the same for those who don't see it
    scale: str = ""  # its name; "" where the weights don't tell
    text: str = ""  # numbers to print beside it

    @property
    def stem(self) -> str:
        """Of its files' names, as tables have it: "svib_fig4.demo"."""
        return f"{self.name}.{self.scale}" if self.scale else self.name

    @property
    def warning(self) -> str:
        """What keeps a figure of another scale from passing for the papers'; "" at theirs."""
        if self.scale in ("", "paper"):
            return ""
        scale = SCALES[self.scale]
        ours = f"{scale.dataset}, {scale.image_size} px"
        return f"Scale: {scale.name.upper()} ({ours}), not the papers' experiments."


class NotRunError(UserError):
    """What a figure shows has not been run yet."""


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


def counted(count: int, noun: str) -> str:
    """A number of things: "1 epoch", "1,000 images"."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def scale_of(recipes: Iterable[Mapping[str, Any] | None]) -> str:
    """The scale of some runs by their data set, of several one that isn't the papers'; "": unknown.

    Args:
        recipes: Resolved; None for weights from elsewhere.
    """
    names = {scale.dataset: scale.name for scale in SCALES.values()}
    found = {names.get(recipe.get("dataset", ""), "") for recipe in recipes if recipe}
    return min(found - {""}, key=lambda name: (name == "paper", name), default="")


def save(drawn: Drawn, folder: Path) -> tuple[Path, Path]:
    """Write `folder/<name>.<scale>.png` and `.svg`, each in one step; returns their paths.

    Title and description, which name another scale than the papers', are metadata of both, and the
    title stands over the figure.
    """
    width = round(CHARACTERS_PER_INCH * drawn.figure.get_figwidth())
    lines = (drawn.title, drawn.warning)
    drawn.figure.suptitle("\n".join(textwrap.fill(line, width) for line in lines if line))
    about = {
        "Title": " ".join(filter(None, (drawn.title.rstrip(".") + ".", drawn.warning))),
        "Description": " ".join(filter(None, (drawn.description, drawn.warning))),
    }
    paths = folder / f"{drawn.stem}.png", folder / f"{drawn.stem}.svg"
    # no versions and dates: the same figure is the same file
    for path, without in zip(paths, ("Software", "Date"), strict=True):
        with written_atomically(path) as file:
            metadata = {**about, without: None}
            drawn.figure.savefig(file, format=path.suffix[1:], dpi=DPI, metadata=metadata)
    return paths


def main(
    kind: type[Arguments],
    make: Callable[[Arguments], Drawn],
    arguments: Sequence[str] | None = None,
) -> None:
    """A figure's file as a script; exits with 2 on a user's mistake.

    Args:
        kind: See `draw_files`.
        make: See `draw_files`.
        arguments: See `draw_files`.
    """
    try:
        show(*draw_files(kind, make, arguments))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


def show(drawn: Drawn, paths: Sequence[Path]) -> None:
    """Print a figure's numbers and the paths of its files."""
    print("\n".join(filter(None, (drawn.text, *map(str, paths)))))


def draw_files(
    kind: type[Arguments],
    make: Callable[[Arguments], Drawn],
    arguments: Sequence[str] | None = None,
    *,
    prog: str | None = None,
    more: str = "",
) -> tuple[Drawn, tuple[Path, Path]]:
    """Draw by a command line made from the dataclass of a figure's arguments.

    Args:
        kind: The dataclass; its docstring and field comments are the help.
        make: Draws.
        arguments: Default: the process's.
        prog: Its name in the help, where it isn't the script's.
        more: What the help says besides.

    Returns:
        The figure and the paths of its files.

    Raises:
        UserError: It can't be drawn.
    """
    import tyro

    args = tyro.cli(
        kind,
        args=None if arguments is None else list(arguments),
        prog=prog,
        description="\n\n".join(filter(None, (inspect.getdoc(kind), more))),
        config=(tyro.conf.FlagCreatePairsOff,),
    )
    drawn = make(args)
    return drawn, save(drawn, args.out)
