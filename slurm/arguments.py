"""The arguments of reproduce.py, apart from all that they need to be carried out."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

ROOT = Path(__file__).resolve().parent.parent
FIGURES = ROOT / "results" / "figures"


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Run what is missing of the papers' tables, then print them beside the papers' numbers.

    Other actions have their own --help: `doctor` checks beforehand all that tables need, `explain
    A.json B.json` says why two records differ, `figures` draws every figure, `report` writes
    tables, figures and records as one HTML page, `clean` removes the features that evaluations keep
    on disk.
    """

    tables: tyro.conf.Positional[tuple[str, ...]]
    """all (of both papers), table1 to table9, onehot, beta, svib/table1, imsvd/table2, …, learning,
    quick."""
    scale: str | None = None
    """paper, cifar10, cifar10-mini or demo; by default paper where there is an ImageNet under
    DATA_ROOT, else demo."""
    cluster: str | None = None
    """debug (in this process), local, or a section of slurm/clusters.toml; by default slurm where
    a controller answers, else local."""
    clusters: Path | None = None
    """Your own file of the shape of slurm/clusters.toml, merged over it; by default the one that
    SSL_CLUSTERS names."""
    set: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """A setting of clusters.toml for this run, as in --set slurm.partition=debug; give it again
    for more."""
    seeds: int | None = None
    """Runs per cell; by default the table's or the scale's own number."""
    jobs: int | None = None
    """At most so many jobs at once on this machine; by default one per core, or per GPU."""
    fill: bool = False
    """Also run the cells that the paper leaves empty."""
    plan: bool = False
    """Only print the jobs that are missing and what they cost."""
    status: bool = False
    """Only print what each cell is doing."""
    watch: bool = False
    """Print what each cell is doing until no job is queued or running; Ctrl-C leaves the jobs."""
    cancel: bool = False
    """Cancel what these tables have on SLURM; records and checkpoints stay."""
    render: bool = False
    """Only draw the tables from the records that exist."""
    cost: bool = False
    """Only print and write what the rows cost: GPU-hours, images/s, memory; with --render also the
    tables."""
    why: Annotated[tuple[str, str] | None, tyro.conf.arg(metavar="ROW COLUMN")] = None
    """Only print where the number of a cell comes from; parts of the names are enough."""
    runs: Path = ROOT / "runs"
    """Folder of checkpoints and logs."""
    records: Path = ROOT / "results" / "records"
    """Folder of the records."""
    out: Path = ROOT / "results" / "tables"
    """Folder of the finished tables."""


@dataclass(frozen=True, kw_only=True)
class Clean:
    """Remove the features that evaluations keep on disk; records and checkpoints stay."""


@dataclass(frozen=True, kw_only=True)
class Report:
    """Write tables, figures, costs and all records behind them as one HTML page.

    Nothing is run, and the page loads nothing from elsewhere: it can be opened from disk or sent.
    """

    tables: tyro.conf.Positional[tuple[str, ...]] = ()
    """svib/table1, imsvd/table2, …; by default every table."""
    scale: str | None = None
    """paper, cifar10, cifar10-mini or demo; by default paper where there is an ImageNet under
    DATA_ROOT, else demo."""
    seeds: int | None = None
    """Runs per cell; by default the table's or the scale's own number."""
    fill: bool = False
    """Also the cells that the paper leaves empty."""
    runs: Path = ROOT / "runs"
    """Folder of checkpoints and logs."""
    records: Path = ROOT / "results" / "records"
    """Folder of the records."""
    figures: Path | None = None
    """Folder of PNGs to embed, without those named for another scale (svib_fig4.demo.png); by
    default results/figures, where figures are drawn."""
    out: Path | None = None
    """The page; by default results/tables/report.<scale>.html."""


@dataclass(frozen=True, kw_only=True)
class Doctor:
    """Check all that tables need (data, packages, GPUs, disk, earlier runs, SLURM) beforehand.

    A line per check; the exit status is 0 when all is well and 1 when something would fail.
    """

    tables: tyro.conf.Positional[tuple[str, ...]] = ()
    """svib/table1, imsvd/table2, …; by default every table."""
    scale: str | None = None
    """paper, cifar10, cifar10-mini or demo; by default paper where there is an ImageNet under
    DATA_ROOT, else demo."""
    cluster: str | None = None
    """debug, local, or a section of slurm/clusters.toml; by default slurm where there is an sbatch,
    else local."""
    clusters: Path | None = None
    """Your own file of the shape of slurm/clusters.toml, merged over it; by default the one that
    SSL_CLUSTERS names."""
    set: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """A setting of clusters.toml, as in --set slurm.partition=debug; give it again for more."""
    seeds: int | None = None
    """Runs per cell; by default the table's or the scale's own number."""
    fill: bool = False
    """Also the cells that the paper leaves empty."""
    runs: Path = ROOT / "runs"
    """Folder of checkpoints and logs."""
    records: Path = ROOT / "results" / "records"
    """Folder of the records."""
    json: bool = False
    """Print one JSON object."""
