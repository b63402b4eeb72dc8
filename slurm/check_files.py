"""Whether the folders of a plan take what it writes, and what earlier runs left there is whole."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

from harness import featurecache
from harness.errors import UserError
from harness.files import cache_folder
from harness.record import Record
from harness.snapshots import END, trunk_file
from slurm import ledger
from slurm.checks import Check, Subject, passed, refused

GB = 1e9
# Of a pretraining: two training checkpoints, a third while it is being written, and the trunk.
# Weights, optimiser and memory bank are at most 1.4 GB in the papers' recipes (VICReg, Barlow
# Twins: projectors of three layers of 8,192), .22 at CIFAR-10's scale and .01 below.
_RUN_GB = {"paper": 4.3, "cifar10": 0.7}
_SMALL_RUN_GB = 0.04
# Of an evaluation: detectors and fine-tuned trunks keep checkpoints of their own.
_EVALUATION_GB = {"coco_maskrcnn": 1.0, "semisup": 0.6}
_SMALL_EVALUATION_GB = 0.05
_SHOWN = 3  # damaged files in a line


def check_folders(subject: Subject) -> Iterator[Check]:
    """Runs, records and the cache: writable, with room."""
    needed = needed_gb(subject)
    yield check_folder("runs", subject.runs, needed)
    yield check_folder("records", subject.records_folder, _SMALL_RUN_GB)
    yield _check_cache()


def needed_gb(subject: Subject) -> float:
    """Disk space that the missing jobs take, at most."""
    paper = subject.scale.is_paper
    run = _RUN_GB.get(subject.scale.name, _SMALL_RUN_GB)
    evaluations = (
        _EVALUATION_GB.get(e.variant.partition(":")[0], _SMALL_EVALUATION_GB) if paper else 0.01
        for e in subject.plan.evaluations.values()
    )
    return len(subject.plan.pretrainings) * run + sum(evaluations)


def check_folder(what: str, folder: Path, needed: float) -> Check:
    """A folder, or the one it would be made in: a file is written there and removed."""
    title = f"folder of {what}"
    place = next(p for p in (folder.absolute(), *folder.absolute().parents) if p.exists())
    option = f"another folder with --{what}"
    try:
        with tempfile.NamedTemporaryFile(dir=place):
            pass
    except OSError as error:
        found = f"{place} can't be written to ({error.strerror})"
        return Check(name=title, ok=False, found=found, mend=f"change that, or give {option}")
    free = shutil.disk_usage(place).free / GB
    if free < needed:
        found = f"{folder} has {free:,.1f} GB free and this plan takes up to {needed:,.1f}"
        return Check(name=title, ok=False, found=found, mend=f"free some, or give {option}")
    most = f", up to {needed:,.1f} needed" if needed >= 0.1 else ""
    return passed(title, f"{folder}, {free:,.0f} GB free{most}")


def _check_cache() -> Check:
    """Features that don't fit are not kept, which costs time and no numbers."""
    title = "cache of features and pixels"
    try:
        limit = featurecache.limit_bytes() / GB
    except UserError as error:
        return refused(title, error)
    folder = cache_folder()
    place = next(p for p in (folder, *folder.parents) if p.exists())
    free = shutil.disk_usage(place).free / GB
    if not os.access(place, os.W_OK):
        return Check(
            name=title,
            ok=False,
            found=f"{place} can't be written to",
            mend="set XDG_CACHE_HOME to a folder of your own",
        )
    short = "; beyond that features are made again" if free < limit else ""
    return passed(title, f"{folder}, {free:,.0f} GB free, at most {limit:,.0f} used{short}")


def read_records(folder: Path) -> tuple[dict[str, Record], list[Path]]:
    """The readable records by key, and the files that are none."""
    records, damaged = {}, []
    for path in sorted(folder.glob("*.json")):
        try:
            record = Record.load(path)
        except (ValueError, OSError):
            damaged.append(path)
        else:
            records[record.key] = record
    return records, damaged


def check_records(subject: Subject, damaged: list[Path]) -> Iterator[Check]:
    """Damaged files, cells that an older version of the code recorded, checkpoints that changed."""
    if damaged:
        names = ", ".join(str(path) for path in damaged[:_SHOWN])
        yield Check(
            name="records",
            ok=False,
            found=f"{len(damaged)} can't be read and would be measured again ({names})",
            mend="restore them, or delete them",
        )
    slots = {record.slot for record in subject.records.values()}
    stale = sum(e.slot in slots for e in subject.plan.evaluations.values())
    found = f"{subject.plan.recorded} of {subject.plan.recorded + len(subject.plan.evaluations)}"
    older = f"; {stale} are of an older version of the code and would be measured again"
    yield passed("recorded evaluations", found + (older if stale else ""))


def check_checkpoints(subject: Subject) -> Iterator[Check]:
    """Of this plan's pretrainings: finished trunks, and what unfinished ones go on from."""
    damaged = []
    ends = {key: e for key, e in subject.recorded.items() if e.after == END}
    measured = {e.pretraining: subject.records[key] for key, e in ends.items()}
    for key in sorted(subject.plan.trained):
        path = subject.runs / key / trunk_file()
        wanted = {trunk_file(e.after) for e in subject.plan.by_pretraining[key]}
        found = [subject.runs / key / name for name in sorted(wanted)]
        if broken := [trunk for trunk in found if not _is_whole(trunk)]:
            damaged += broken
        elif key in measured and path in found and not _is_of(path, measured[key]):
            yield Check(
                name=f"checkpoint {key}",
                ok=False,
                found=f"{path} is not the file that {measured[key].key}.json was measured on",
                mend="restore that file, or delete the records of this pretraining",
            )
    yield _judged("finished checkpoints", len(subject.plan.trained), damaged)
    begun, lost = 0, []
    for key in subject.plan.pretrainings:
        paths = sorted((subject.runs / key).glob("step-*.pt"), reverse=True)
        begun += bool(paths)
        if paths and not any(_has_named_checksum(path) for path in paths):
            lost += paths
    yield _judged("unfinished checkpoints", begun, lost)


def check_failures(subject: Subject) -> Iterator[Check]:
    """Jobs of this plan that failed the last time; they are tried again."""
    wanted = {job.key for job in subject.plan.all_jobs}
    failed = {key: why for key, why in ledger.failures(subject.runs).items() if key in wanted}
    if failed:
        key, reason = next(iter(failed.items()))
        found = f"{len(failed)} jobs of this plan and are tried again, among them {key}: {reason}"
        yield passed("earlier failures", found)


def _judged(title: str, count: int, damaged: list[Path]) -> Check:
    if not damaged:
        return passed(title, f"{count}, whole" if count else "none")
    names = ", ".join(str(path) for path in damaged[:_SHOWN])
    return Check(
        name=title,
        ok=False,
        found=f"{len(damaged)} damaged ({names})",
        mend="delete them: the same command trains on from what is left",
    )


def _is_whole(path: Path) -> bool:
    """Whether every checksum within a file of torch.save, which is a zip archive, is right."""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.testzip() is None
    except (zipfile.BadZipFile, OSError, EOFError):
        return False


def _is_of(path: Path, record: Record) -> bool:
    wanted = record.checkpoint.get("sha256")
    return wanted is None or _sha256(path) == wanted


def _has_named_checksum(path: Path) -> bool:
    """Whether a training checkpoint has the checksum that its name ends with."""
    return _sha256(path)[:16] == path.stem.rpartition("-")[2]


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
