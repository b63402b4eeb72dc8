"""Why two records differ: every difference by name, and which of them moves a number."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from tabulate import tabulate
from tyro.conf import Positional

from harness.errors import UserError
from harness.record import Record

# The first pattern that a difference's name matches says what it does to the number.
_EFFECTS = (
    (r"protocol\.(class|version)", "another protocol or version of it: not comparable"),
    (r"protocol\.dataset", "other images: not comparable"),
    (
        r"protocol\.(transform|train_view)\.interpolation",
        "moves the number: bilinear and bicubic differ at every pixel",
    ),
    (r"protocol\.train_view\.scale", "moves the number: the papers' crops start at 8 or 20 %"),
    (r"protocol\.(k|temperature)\b", "moves the number: other neighbours or weights vote"),
    (r"protocol\.engine", "another detection engine: not comparable"),
    (r"protocol\.(epochs|schedule|milestones|drop)", "moves the number: another schedule"),
    (r"protocol\.(lr|batch_size|weight_decay|optimizer|momentum|nesterov)", "moves the number"),
    (r"protocol\.holdout", "moves the number: another choice of hyper-parameters"),
    (r"protocol\.last_blocks", "moves the number: other features"),
    (r"(protocol\.)?seed$", "moves the number within the seeds' spread"),
    (r"protocol\.", "another protocol: not comparable"),
    (r"data\..*\.(checksum|images|classes)", "other images: not comparable"),
    (r"data\.", "other data: not comparable"),
    (r"checkpoint\.sha256", "other weights, or the same ones saved again"),
    (r"checkpoint\.(arch|family)", "another network"),
    (r"checkpoint\.(partial|missing)", "moves the number: layers with random weights"),
    (r"checkpoint\.pixels", "moves the number: the trunk sees other pixels"),
    (r"checkpoint\.path", "nothing: where the file lies"),
    (r"recipe\b", "another pretraining"),
    (r"after", "another moment of the pretraining"),
    (r"environment\.(commit|dirty)", "may move it: other code; the protocol's version tells"),
    (
        r"environment\.(versions|hardware|threads|cores|processes)",
        "last digits: sums are rounded in another order",
    ),
    (r"(environment|predictions)\b", "nothing"),
)


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Name every difference of two records, and what each does to the number."""

    first: Positional[Path]
    """A record: the JSON file that an evaluation wrote."""
    second: Positional[Path]
    """Another one."""


class Difference(NamedTuple):
    """A value that two records don't share."""

    name: str  # dotted path
    first: str
    second: str
    effect: str


def explain(first: Path, second: Path) -> str:
    """What two records have in common, their numbers and all their differences, for people.

    Raises:
        UserError: A file is no record.
    """
    a, b = _load(first), _load(second)
    found = differences(a, b)
    lines = [f"A: {first}", f"B: {second}", ""]
    lines.append(
        tabulate(
            list(_numbers(a, b)),
            ("metric", "A", "B", "B - A", "per image"),
            disable_numparse=True,
        )
    )
    if not found:
        return "\n".join([*lines, "", "the records say nothing that would explain a difference"])
    table = tabulate(found, ("difference", "A", "B", "effect"), disable_numparse=True)
    return "\n".join([*lines, "", table])


def differences(a: Record, b: Record) -> list[Difference]:
    """Every value that differs, those that move a number most first."""
    one, two = (dict(_flat(_compared(record))) for record in (a, b))
    found = []
    for name in dict.fromkeys([*one, *two]):
        if one.get(name) != two.get(name):
            rank, effect = _effect(name)
            first, second = (_short(side.get(name, "absent")) for side in (one, two))
            found.append((rank, Difference(name, first, second, effect)))
    return [difference for _, difference in sorted(found, key=lambda pair: pair[0])]


def _compared(record: Record) -> dict[str, Any]:
    return {
        "protocol": record.protocol,
        "data": record.data,
        "checkpoint": record.checkpoint,
        "seed": record.seed,
        "recipe": record.recipe,
        "after": record.after,
        "environment": record.environment,
        "predictions": record.predictions,
    }


def _flat(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _flat(inner, f"{name}.{key}" if name else key)
    else:
        yield name, value


def _effect(name: str) -> tuple[int, str]:
    for rank, (pattern, effect) in enumerate(_EFFECTS):
        if re.match(pattern, name):
            return rank, effect
    return len(_EFFECTS), "unknown"


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 40 else f"{text[:28]}…{text[-11:]}"


def _numbers(a: Record, b: Record) -> Iterator[tuple[str, str, str, str, str]]:
    """A line per metric that either has."""
    for name in dict.fromkeys([*a.metrics, *b.metrics]):
        both = name in a.metrics and name in b.metrics
        gap = f"{b.metrics[name] - a.metrics[name]:+.2f}" if both else ""
        pairs = _paired(a, b, name) if both else ""
        yield name, _shown(a, name), _shown(b, name), gap, pairs


def _shown(record: Record, name: str) -> str:
    if name not in record.metrics:
        return ""
    interval = " - ".join(f"{x:.2f}" for x in record.intervals.get(name, ()))
    return f"{record.metrics[name]:.2f}" + (f" ({interval})" if interval else "")


def _paired(a: Record, b: Record, name: str) -> str:
    """How often each alone is right on the same images, and how likely that is by chance.

    The exact test of McNemar (1947): among images on which they disagree, each is right as often.
    """
    hits = [_hits(record, name) for record in (a, b)]
    if a.data.get("val") != b.data.get("val") or hits[0] is None or hits[1] is None:
        return ""
    from scipy.stats import binomtest

    only_a, only_b = (int((x & ~y).sum()) for x, y in (hits, hits[::-1]))
    if not only_a + only_b:
        return "right on the same images"
    p = binomtest(only_a, only_a + only_b).pvalue
    return f"only A right: {only_a}, only B: {only_b} (p = {p:.2g})"


def _hits(record: Record, name: str) -> Any:
    """Whether each image counted as right, bool (n,); None where the predictions are gone."""
    import numpy as np

    if record.predictions is None or not Path(record.predictions).is_file():
        return None
    with np.load(record.predictions) as found:
        labels = found["labels"]
        if labels.ndim != 1:
            return None
        if name in found:
            return found[name] == labels
        if "top5" in found and name.endswith(("_top1", "_top5")):
            places = found["top5"][:, : int(name[-1])]
            return (places == labels[:, None]).any(axis=1)
    return None


def _load(path: Path) -> Record:
    try:
        return Record.load(path)
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); give two records") from error
    except ValueError as error:
        raise UserError(
            f"{path} is not a record of this harness; give two JSON files out of results/records/ "
            "or evaluations/"
        ) from error
