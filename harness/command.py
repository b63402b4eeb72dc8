"""The command line of a protocol, made from its dataclass."""

import argparse
import inspect
import json
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
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
    family: str | None = None  # who released it, where the file doesn't show it: swav, simclr, byol
    allow_partial: bool = False  # load what fits of a trunk that is not whole
    trust_checkpoint: bool = False  # load pickles that may run any code
    out: Path = Path("evaluations")  # gets <key>.json and <key>/predictions.npz
    seeds: tuple[int, ...] = ()  # several: one record each, mean and sd printed; else the setting
    again: bool = False  # measure again what is already recorded
    json: bool = False  # print one JSON line instead of a table


def main(name: str, arguments: Sequence[str] | None = None) -> None:
    """Run the protocol of that name on the command line; exits with 2 on a user's mistake.

    The protocol is imported by its name even where its own file is the script: its class is then
    `protocols.knn.KNN` and not `__main__.KNN`, which would be another protocol in records.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        command, protocol = parse(name, arguments)
        records = _run(command, seeded(protocol, command.seeds))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    if records:
        print(_as_json(records) if command.json else _as_table(records))


def seeded(protocol: EvalProtocol, seeds: tuple[int, ...]) -> list[EvalProtocol]:
    """The protocol once for each seed; as it is without any.

    Raises:
        UserError: It draws nothing at random, or a seed comes twice.
    """
    if not seeds:
        return [protocol]
    if not hasattr(protocol, "seed"):
        raise UserError(
            f"--seeds {' '.join(map(str, seeds))} would give {len(seeds)} times the same number: "
            "this protocol draws nothing at random; leave it out"
        )
    if len(set(seeds)) < len(seeds):
        raise UserError(f"--seeds {' '.join(map(str, seeds))} has a seed twice; give each once")
    return [replace(protocol, **{"seed": seed}) for seed in seeds]


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


def _run(command: Command, protocols: Sequence[EvalProtocol]) -> list[tuple[Record, Path]]:
    """The records and their files; none on processes other than the main one."""
    from harness import dist
    from harness.evaluate import measure
    from harness.foreign import load_checkpoint
    from harness.progress import say
    from harness.recipe import fingerprint

    dist.init()
    try:
        started = time.monotonic()
        backbone, info = load_checkpoint(
            command.ckpt,
            arch=command.arch,
            trust=command.trust_checkpoint,
            allow_partial=command.allow_partial,
            family=command.family,
        )
        say(info.report())
        if info.training.get("diverged"):
            raise UserError(
                f"{command.ckpt} is what was left when training diverged ("
                f"{info.training['diverged']}); give another checkpoint"
            )
        done = []
        for protocol in protocols:
            identity = (info.identity, protocol, int(info.training.get("seed", 0)))
            path = command.out / f"{fingerprint(*identity)}.json"
            record = None if command.again else dist.broadcast_object(_recorded(path, protocol))
            if record is None:
                record = measure(
                    backbone,
                    info,
                    identity,
                    workdir=path.with_suffix(""),
                    records=command.out,
                    started=started,
                )
            done.append((record, path))
            started = time.monotonic()
        return done if dist.is_main() else []
    finally:
        dist.shutdown()


def _recorded(path: Path, protocol: EvalProtocol) -> Record | None:
    """The record of an earlier run of the same weights and settings on the same images."""
    from harness import dist
    from harness.progress import say

    if not dist.is_main() or not path.exists():
        return None
    try:
        record = Record.load(path)
    except ValueError as error:
        say(f"warning: {error}")
        return None
    if record.data != protocol.data():
        say(f"{path} was measured on other images; measuring again")
        return None
    say(f"already recorded: {path} (--again measures it again)")
    return record


def _as_json(records: Sequence[tuple[Record, Path]]) -> str:
    first = records[0][0]
    return json.dumps(
        {
            "metrics": {name: _mean(records, name) for name in first.metrics},
            "sd": {name: _sd(records, name) for name in first.metrics},
            "intervals": [record.intervals for record, _ in records],
            "protocol": first.protocol,
            "checkpoint": first.checkpoint,
            "seed": first.seed,
            "records": [str(path) for _, path in records],
        }
    )


def _as_table(records: Sequence[tuple[Record, Path]]) -> str:
    from tabulate import tabulate

    first = records[0][0]
    if len(records) == 1:
        header = ("metric", "percent", "95 % interval")
        rows = [
            (name, f"{value:.2f}", " - ".join(f"{x:.2f}" for x in first.intervals.get(name, ())))
            for name, value in first.metrics.items()
        ]
    else:
        header = ("metric", "percent", f"sd of {len(records)} seeds")
        rows = [
            (name, f"{_mean(records, name):.2f}", f"{_sd(records, name):.2f}")
            for name in first.metrics
        ]
    table = tabulate(rows, header, disable_numparse=True, colalign=("left", "right", "right"))
    return "\n".join([table, "", *(f"record: {path}" for _, path in records)])


def _mean(records: Sequence[tuple[Record, Path]], name: str) -> float:
    return statistics.fmean(record.metrics[name] for record, _ in records)


def _sd(records: Sequence[tuple[Record, Path]], name: str) -> float | None:
    """Sample standard deviation over seeds; None of a single one."""
    values = [record.metrics[name] for record, _ in records]
    return statistics.stdev(values) if len(values) > 1 else None
