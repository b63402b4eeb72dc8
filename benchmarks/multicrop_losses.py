"""Claim: DINO's and SVIB's losses cost little more than their matrix products.

And a fraction of the memory of the loop over pairs of crops that the papers print, a larger one
with logits kept for the backward pass, a smaller one without. The plain formula is our reference:
without pairs, but with all logits, several times. From unit rows to the gradients of rows and
prototypes, one thread.
`python benchmarks/multicrop_losses.py [--quick] [--json]`
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from lightly.loss import DINOLoss
from torch import Tensor
from torch.nn import functional as F

from baselines.dino import dino_terms, teacher_targets
from benchmarks import timing
from harness.crop_entropy import CropEntropy, crop_entropy, logits_without_gradient
from methods.svib import kl_from_uniform, plain_terms

Who = Literal["kept", "streamed", "pair loop", "plain formula", "lightly"]
_STUDENT, _TEACHER = 0.1, 0.04  # temperatures
_SIGMAS = {"sigma_student": _STUDENT**0.5, "sigma_teacher": _TEACHER**0.5}
_BETA = 0.5


@dataclass(frozen=True)
class Size:
    """Of a step on one process."""

    images: int
    prototypes: int
    crops: int = 12
    width: int = 256


TINY, USUAL = Size(2, 16, 3, 8), Size(64, 65536)


def step(method: str, who: Who, size: Size) -> timing.Run:
    """The loss of `method` by `who`, with its gradients."""
    torch.set_num_threads(1)
    drawn = inputs(size)
    return lambda: gradients(method, who, drawn)


def inputs(size: Size, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """Student rows, teacher rows, student prototypes, teacher prototypes, centre."""
    torch.manual_seed(0)
    student = torch.randn(size.crops, size.images, size.width, dtype=dtype)
    teacher = torch.randn(2, size.images, size.width, dtype=dtype)
    weights = [torch.randn(size.prototypes, size.width, dtype=dtype) for _ in range(2)]
    rows = [F.normalize(x, dim=-1) for x in (student, teacher)]
    centre = torch.randn(size.prototypes, dtype=dtype) / 100
    return [rows[0].requires_grad_(), rows[1], weights[0].requires_grad_(), weights[1], centre]


def gradients(method: str, who: Who, drawn: list[Tensor]) -> list[Tensor]:
    """The loss and its gradients to student rows and prototypes."""
    value = (dino if method == "DINO" else svib)(who, *drawn)
    return [value.detach(), *torch.autograd.grad(value, (drawn[0], drawn[2]))]


def dino(
    who: Who, student: Tensor, teacher: Tensor, weight: Tensor, slow: Tensor, centre: Tensor
) -> Tensor:
    """DINO's cross-entropy, the teacher's prototypes being a slow copy."""
    if who in ("kept", "streamed"):
        with torch.no_grad():
            logits = logits_without_gradient(teacher, slow, None)
            targets = teacher_targets(logits, centre, temperature=_TEACHER)
            del logits
        how = CropEntropy(student_temperature=_STUDENT, keep=who == "kept")
        return crop_entropy(student, targets, weight, None, how)[0]
    with torch.no_grad():
        teacher_logits = F.linear(teacher, F.normalize(slow, dim=1))
    student_logits = F.linear(student, F.normalize(weight, dim=1))
    if who == "lightly":
        loss = DINOLoss(len(centre), student_temp=_STUDENT).to(centre.dtype)
        loss.center = centre[None, None]  # pyright: ignore[reportAttributeAccessIssue]
        views = [list(x) for x in (teacher_logits, student_logits)]
        return loss(*views, teacher_temp=_TEACHER)
    if who == "pair loop":
        targets = teacher_targets(teacher_logits, centre, temperature=_TEACHER)
        return pair_loop(student_logits / _STUDENT, targets)
    temperatures = {"student_temperature": _STUDENT, "teacher_temperature": _TEACHER}
    return dino_terms(student_logits, teacher_logits, centre, **temperatures)["CE"]


def svib(
    who: Who, student: Tensor, teacher: Tensor, means: Tensor, slow: Tensor, centre: Tensor
) -> Tensor:
    """SVIB's cross-entropy and KL; student and teacher share the means, there is no centre."""
    if who == "plain formula":
        terms = plain_terms(student, teacher, means, **_SIGMAS, beta=_BETA)
        return terms["CE"] + terms["KL"]
    if who == "pair loop":
        unit = F.normalize(means, dim=1)
        posterior = (F.linear(teacher, unit) / _TEACHER).softmax(dim=-1)
        entropy = pair_loop(F.linear(student, unit) / _STUDENT, posterior.detach())
        return entropy + _BETA * kl_from_uniform(posterior)
    how = CropEntropy(
        student_temperature=_STUDENT, teacher_temperature=_TEACHER, keep=who == "kept"
    )
    entropy, kl = crop_entropy(student, teacher, means, None, how)
    return entropy + _BETA * kl


def pair_loop(student_logits: Tensor, targets: Tensor) -> Tensor:
    """Mean cross-entropy of pairs of different crops, one by one (DINO, Algorithm 1)."""
    pairs = [
        -(q * F.log_softmax(s, dim=-1)).sum(dim=-1).mean()
        for t, q in enumerate(targets)
        for v, s in enumerate(student_logits)
        if v != t
    ]
    return torch.stack(pairs).mean()


def products(method: str, size: Size) -> timing.Run:
    """The least products: the students' three, the teacher's one, and SVIB's gradient of it."""
    student, teacher, weight, *_ = (x.detach() for x in inputs(size))
    z, z2 = student.flatten(0, 1), teacher.flatten(0, 1)
    logits, teacher_logits = z.new_empty(len(z), len(weight)), z.new_empty(len(z2), len(weight))
    by_weight, by_z = torch.empty_like(weight), torch.empty_like(z)

    def run() -> None:
        torch.mm(z, weight.T, out=logits)
        torch.mm(logits, weight, out=by_z)
        torch.mm(logits.T, z, out=by_weight)
        torch.mm(z2, weight.T, out=teacher_logits)
        if method == "SVIB":
            torch.mm(teacher_logits.T, z2, out=by_weight)

    return run


def error(method: str, who: Who, peer: Who) -> float:
    """Largest relative difference in value and gradients, in double precision, with two chunks."""
    size = Size(3, 3000, 4, 16)
    ours, theirs = (gradients(method, w, inputs(size, torch.float64)) for w in (who, peer))
    return max(
        ((a - b).abs().max() / b.abs().max()).item() for a, b in zip(ours, theirs, strict=True)
    )


def measure(method: str, peers: tuple[Who, ...], size: Size, *, quick: bool) -> list[timing.Claim]:
    """All claims of one loss."""
    case = f"{method}, {size.crops} crops, B {size.images}, K {size.prototypes}"
    ways: tuple[Who, ...] = ("kept", "streamed")
    runs = {who: step(method, who, size) for who in (*ways, *peers)}
    runs["products"] = products(method, size)
    times = timing.interleaved(runs, repetitions=1 if quick else 7)
    peaks = {
        who: timing.peak_memory(step, (method, who, TINY), (method, who, size))
        for who in (*ways, *peers)
    }
    time = {"kept": (1.35, 1.15), "streamed": (None, None)}
    memory = {"kept": (0.35, 0.25), "streamed": (0.15, 0.10)}
    claims = []
    for who in ways:
        name, ours = f"{case}, {who}", times | {"ours": times[who]}
        claim = timing.claim(name, ours, "products")
        claims.append(replace(claim, must=time[who][0], stretch=time[who][1]))
        for peer in peers:
            claim = timing.claim(name, ours, peer)
            claims.append(replace(claim, must=1.1 if who == "streamed" else None))
            claim = timing.memory_claim(name, peaks[who], peer, peaks[peer])
            promised = memory[who] if peer == "pair loop" else (None, None)
            claims.append(replace(claim, must=promised[0], stretch=promised[1]))
        # lightly rounds its temperature to single precision.
        for peer in ("pair loop", "plain formula"):
            claims.append(timing.error_claim(name, peer, error(method, who, peer), 1e-12))
    return claims


def main() -> None:
    """Measure and print."""
    options = timing.options(__doc__)
    torch.set_num_threads(1)
    size = TINY if options.quick else USUAL
    peers: dict[str, tuple[Who, ...]] = {
        "DINO": ("pair loop", "plain formula", "lightly"),
        "SVIB": ("pair loop", "plain formula"),
    }
    claims = [
        claim
        for method in peers
        for claim in measure(method, peers[method], size, quick=options.quick)
    ]
    timing.show_claims(claims, as_json=options.json)


if __name__ == "__main__":
    main()
