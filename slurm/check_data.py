"""Whether the data sets that a plan reads are there, whole, and in the published order."""

from __future__ import annotations

from collections.abc import Iterator

from harness import data, inventory, subsets
from harness.errors import UserError
from slurm.checks import Check, Subject, passed, refused

_SHOWN = 3  # problems of one data set


def check_data(subject: Subject) -> Iterator[Check]:
    """Each data set, then SimCLR's lists of labelled images."""
    for name, jobs in subject.datasets.items():
        yield check_dataset(name, jobs)
    yield from _check_lists(subject)


def check_dataset(name: str, jobs: str) -> Check:
    """One data set: counts, classes and their order, a sample of its files.

    Args:
        name: By which recipes and protocols call it.
        jobs: Which ones need it, for the message.
    """
    title = f"data set {name}"
    try:
        parts = inventory.take(name)
        found = inventory.problems(name, parts)
    except UserError as error:
        return refused(title, error)
    if not found:
        return passed(title, f"{inventory.describe(parts)}, for {jobs}")
    more = f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
    return Check(
        name=title,
        ok=False,
        found=f"{', '.join(found[:_SHOWN])}{more}",
        mend=f"unpack {name} again, since {jobs} would read it",
    )


def _check_lists(subject: Subject) -> Iterator[Check]:
    """The lists of 1 % and 10 % of ImageNet that evaluations and recipes take labels from."""
    wanted = {
        getattr(protocol, "percent", 0.0)
        for protocol in subject.protocols.values()
        if protocol.dataset == "imagenet" and getattr(protocol, "subset", "") in ("auto", "simclr")
    }
    try:
        folder = data.locate("imagenet") if "imagenet" in subject.datasets else None
    except UserError:
        folder = None  # which the check of the data set says
    if folder is not None:
        recipes = (recipe for _, recipe in subject.recipes.values())
        wanted |= {r.labelled for r in recipes if r.dataset == "imagenet"}
    for percent in sorted(wanted & subsets.SIMCLR_LISTS.keys()):
        title = f"labels of {percent:g} % of ImageNet"
        try:
            names = subsets.read_list(percent, data.list_folders("imagenet", folder))
        except UserError as error:
            yield refused(title, error)
        else:
            yield passed(title, f"{len(names):,} images on {subsets.SIMCLR_LISTS[percent].name}")
