"""`reproduce.py report`: tables and the records behind them as one HTML page."""

from __future__ import annotations

from pathlib import Path

from harness.errors import UserError
from results.catalog import all_tables
from results.provenance import find_figures
from results.report import Report, save_report
from slurm import arguments
from slurm.command import make_request


def run(args: arguments.Report) -> int:
    """Write the page and print its path; returns the exit status.

    Raises:
        UserError: An unknown table or scale, or a place where no page can be.
    """
    page = (args.out or arguments.Arguments.out / "report.html").resolve()
    request = make_request(
        arguments.Arguments(
            tables=args.tables or tuple(all_tables()),
            scale=args.scale,
            seeds=args.seeds,
            fill=args.fill,
            runs=args.runs,
            records=args.records,
            out=page.parent,
        )
    )
    if args.out is None:
        page = page.with_name(f"report.{request.scale.name}.html")
    if page.is_dir():
        raise UserError(f"--out {args.out} is a folder; name a file, such as {page.name}.html")
    findings = request.findings()
    report = Report(
        scale=request.scale,
        drawings=list(request.drawings(findings)),
        findings=findings,
        figures=find_figures(_figures(args.figures), request.scale),
    )
    print(save_report(report, page))
    return 0


def _figures(folder: Path | None) -> Path:
    """Where figures are looked for.

    Raises:
        UserError: A folder was named and isn't there.
    """
    if folder is not None and not folder.is_dir():
        raise UserError(f"--figures {folder} is no folder; name one that holds PNGs")
    return folder or arguments.FIGURES
