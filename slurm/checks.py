"""What `reproduce.py doctor` finds: one Check per question, and what it is asked about."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from harness.errors import UserError
from harness.protocol import EvalProtocol
from harness.recipe import Recipe
from harness.record import Record
from harness.scale import Scale
from results.resolve import Evaluation, Pretraining, protocol_of, recipe_of
from slurm.plan import Plan


@dataclass(frozen=True, kw_only=True)
class Check:
    """One answer."""

    name: str
    ok: bool
    found: str
    mend: str = ""  # what to do about it

    def describe(self) -> str:
        """A line for people."""
        mend = f"; {self.mend}" if self.mend else ""
        return f"{'ok' if self.ok else 'would fail':<10}  {self.name}: {self.found}{mend}"


def passed(name: str, found: str) -> Check:
    """Nothing to mend."""
    return Check(name=name, ok=True, found=found)


def refused(name: str, error: UserError) -> Check:
    """What a job would stop with: its sentence ends in the way out, behind a semicolon."""
    found, _, mend = str(error).rstrip(".").rpartition("; ")
    return Check(name=name, ok=False, found=found or mend, mend=mend if found else "")


@dataclass(frozen=True, kw_only=True)
class Subject:
    """The plan that is examined, and the folders that it works in."""

    plan: Plan
    scale: Scale
    runs: Path
    records_folder: Path
    records: Mapping[str, Record]  # the readable ones, by key
    recorded: Mapping[str, Evaluation] = field(default_factory=dict)  # of these tables

    @cached_property
    def protocols(self) -> dict[str, EvalProtocol]:
        """The protocols of the missing evaluations, by their names."""
        missing = {e.variant: e for e in self.plan.evaluations.values()}
        return {name: protocol_of(evaluation) for name, evaluation in missing.items()}

    @cached_property
    def recipes(self) -> dict[str, tuple[Pretraining, Recipe]]:
        """The recipes of the missing pretrainings, by their names; asking for them loads torch."""
        missing = {p.recipe: p for p in self.plan.pretrainings.values()}
        return {name: (p, recipe_of(p)) for name, p in missing.items()}

    @property
    def datasets(self) -> dict[str, str]:
        """Every data set that the plan reads, and by how many of which jobs."""
        used: dict[str, list[int]] = {}
        for p in self.plan.pretrainings.values():
            used.setdefault(p.dataset, [0, 0])[0] += 1
        for e in self.plan.evaluations.values():
            used.setdefault(self.protocols[e.variant].dataset, [0, 0])[1] += 1
        return {
            name: " and ".join(
                f"{count} {kind}{'s' if count > 1 else ''}"
                for count, kind in zip(counts, ("pretraining", "evaluation"), strict=True)
                if count
            )
            for name, counts in used.items()
        }
