"""The command line of a protocol, made from its dataclass."""

import argparse
import inspect
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from harness import registry
from harness.errors import UserError
from harness.protocol import EvalProtocol
from harness.record import Record
from harness.scale import find_scale, scale_protocol


@dataclass(frozen=True, kw_only=True)
class Command:
    """What every protocol's command line takes beside the protocol's own settings."""

    ckpt: Path  # a backbone.pt, or a checkpoint released by others (PyTorch or safetensors)
    variant: str = ""  # named settings that the others below default to
    scale: str = "paper"  # shrink them: paper, cifar10, cifar10-mini or demo
    arch: str | None = None  # the backbone's name, where the file doesn't show it
    trust_checkpoint: bool = False  # load pickles that may run any code
    out: Path = Path("evaluations")  # gets <key>.json and <key>/predictions.npz
    json: bool = False  # print one JSON line instead of a table


def main(name: str, arguments: Sequence[str] | None = None) -> None:
    """Run the protocol of that name on the command line; exits with 2 on a user's mistake.

    The protocol is imported by its name even where its own file is the script: its class is then
    `protocols.knn.KNN` and not `__main__.KNN`, which would be another protocol in records.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        command, protocol = parse(name, arguments)
        record, path = _run(command, protocol)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    if record is not None:
        print(_as_json(record, path) if command.json else _as_table(record, path))


def parse(name: str, arguments: Sequence[str]) -> tuple[Command, EvalProtocol]:
    """The common options and the protocol's settings; its variant and the scale give defaults."""
    import tyro

    kind = registry.find("protocol", name)
    variants = registry.variants(name)
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--variant", default=next(iter(variants)))
    first.add_argument("--scale", default="paper")
    known, _ = first.parse_known_args(arguments)
    defaults = scale_protocol(registry.variant(f"{name}:{known.variant}"), find_scale(known.scale))

    def command_line(
        command: Annotated[Command, tyro.conf.arg(name="")],
        settings: Annotated[kind, tyro.conf.arg(name="")] = defaults,  # type: ignore[valid-type]
    ) -> tuple[Command, EvalProtocol]:
        return command, settings

    about = f"{inspect.getdoc(kind)}\n\nVariants: {', '.join(variants)} (the first is the default)."
    return tyro.cli(
        command_line,
        args=list(arguments),
        description=about,
        prog=f"{name}.py",
        config=(tyro.conf.FlagCreatePairsOff,),
    )


def _run(command: Command, protocol: EvalProtocol) -> tuple[Record | None, Path]:
    """The record and its file; no record on processes other than the main one."""
    from harness import dist
    from harness.evaluate import measure
    from harness.foreign import load_checkpoint
    from harness.progress import say
    from harness.recipe import fingerprint

    dist.init()
    try:
        started = time.monotonic()
        backbone, info = load_checkpoint(
            command.ckpt, arch=command.arch, trust=command.trust_checkpoint
        )
        say(info.report())
        identity = (info.sha256, protocol, int(info.training.get("seed", 0)))
        key = fingerprint(*identity)
        record = measure(
            backbone,
            info,
            identity,
            workdir=command.out / key,
            records=command.out,
            started=started,
        )
        return (record if dist.is_main() else None), command.out / f"{key}.json"
    finally:
        dist.shutdown()


def _as_json(record: Record, path: Path) -> str:
    return json.dumps(
        {
            "metrics": record.metrics,
            "protocol": record.protocol,
            "checkpoint": record.checkpoint,
            "seed": record.seed,
            "record": str(path),
        }
    )


def _as_table(record: Record, path: Path) -> str:
    from tabulate import tabulate

    rows = [(name, f"{value:.2f}") for name, value in record.metrics.items()]
    table = tabulate(
        rows, headers=("metric", "percent"), disable_numparse=True, colalign=("left", "right")
    )
    return f"{table}\n\nrecord: {path}"
