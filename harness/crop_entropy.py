"""Cross-entropy of crops over many prototypes, with their logits kept once or not at all.

V student crops of n images meet K unit prototypes u (DINO's last layer, SVIB's means): logits
s = z.u / temperature (V n, K). `harness.multicrop.cross_crop_entropy` is the plain formula; it
holds these logits several times. Here K is walked in chunks. With the teacher's distributions p,
their mean prototype pu = sum_k p_k u_k, and zs the sum of an image's other student crops,

    sum over pairs of -sum_k p_k log softmax(s)_k = sum of log-sum-exp(s) - <zs, pu> / temperature,

so that a pass over the logits is their exponential and its sum. In the backward pass each row's
normaliser multiplies the small factor of a product instead of the logits. Unit rows and prototypes
bound the logits by 1 / temperature, so that exponentials are taken as they are; where a learnt gain
may grow, each chunk has its own maximum per row.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

# Exponentials of logits are kept for the backward pass up to this size, and recomputed beyond. A
# constant, as free memory would make the last bits of a run depend on the machine's other work.
KEPT_BYTES = 1 << 30
_COLUMNS = {"cpu": 512, "cuda": 8192}  # prototypes at a time: on a CPU what stays in its cache
_BOUND = 32.0  # of logits whose exponentials, and sums of millions of them, fit single precision


@dataclass(frozen=True, kw_only=True)
class CropEntropy:
    """Which terms, and how."""

    student_temperature: float
    # Of a teacher that shares the prototypes (SVIB); None: its distributions are given (DINO).
    teacher_temperature: float | None = None
    train_targets: bool = False  # whether the cross-entropy trains prototypes as targets, too
    keep: bool | None = None  # logits until the backward pass; None: see KEPT_BYTES


def crop_entropy(
    student: Tensor, teacher: Tensor, weight: Tensor, gain: Tensor | None, how: CropEntropy
) -> tuple[Tensor, Tensor]:
    """Cross-entropy with the teacher's distributions, and these' mean KL from uniform, in nats.

    In single precision or better whatever autocast says. With R = V n student and Q = T n
    teacher rows: 6 R K d flops, 2 R K d more without kept logits, and 4 to 10 Q K d. Memory
    beside inputs and gradients: R K kept exponentials if they fit KEPT_BYTES, and Q K of the
    teacher's distributions, always.

    Args:
        student: Rows no longer than 1 (V, n, d), the teacher's crops first.
        teacher: (T, n, K) distributions, rows sum to 1; or, with a teacher temperature,
            (T, n, d) rows that share the prototypes. Gets no gradient.
        weight: (K, d); normalised here, row by row.
        gain: (K, 1) lengths of the prototypes; None: 1.
        how: Temperatures and switches.

    Returns:
        Cross-entropy, averaged over the T (V - 1) pairs of different crops and the n images, and
        KL(p || uniform), averaged over teacher rows (0 where distributions are given).
    """
    with torch.autocast(student.device.type, enabled=False):
        student, teacher = (x.float() if x.itemsize < 4 else x for x in (student, teacher))
        inputs = [student, weight] + ([] if gain is None else [gain])
        gradients = torch.is_grad_enabled() and any(x.requires_grad for x in inputs)
        return _CropEntropy.apply(student, teacher.detach(), weight, gain, how, gradients)


@torch.no_grad()
def logits_without_gradient(z: Tensor, weight: Tensor, gain: Tensor | None) -> Tensor:
    """Logits (…, K) of z (…, d) with unit prototypes; the arguments are `crop_entropy`'s.

    Nothing but the logits takes memory.
    """
    bank = _Bank.of(weight, gain)
    logits = z.new_empty((*z.shape[:-1], len(weight)))
    rows = logits.view(-1, len(weight))
    for columns in _chunks(weight):
        torch.mm(z.reshape(-1, z.shape[-1]), bank.rows(columns).T, out=rows[:, columns])
    return logits


class _Bank(NamedTuple):
    """Prototypes u = gain * w / |w|, made chunk by chunk."""

    weight: Tensor  # (K, d)
    inverse: Tensor  # (K, 1) 1 / |w|
    scale: Tensor  # (K, 1) gain / |w|

    @classmethod
    def of(cls, weight: Tensor, gain: Tensor | None) -> _Bank:
        inverse = weight.norm(dim=1, keepdim=True).clamp_(min=1e-12).reciprocal_()
        return cls(weight, inverse, inverse if gain is None else inverse * gain)

    def rows(self, columns: slice) -> Tensor:
        return self.weight[columns] * self.scale[columns]

    def pull_back(
        self, columns: slice, by_rows: Tensor, by_weight: Tensor, by_gain: Tensor
    ) -> None:
        """Write the gradients to weight and gain of a chunk, of that to its rows (c, d)."""
        weight, inverse, scale = (x[columns] for x in self)
        along = (by_rows * weight).sum(dim=1, keepdim=True) * inverse
        by_gain[columns] = along
        torch.mul(by_rows, scale, out=by_weight[columns])
        by_weight[columns].addcmul_(weight, along * scale * inverse, value=-1)


class _Walked(NamedTuple):
    """What the walk over prototypes leaves for the backward pass."""

    tops: Tensor  # (chunks, R) largest logit of each row in each chunk; zeros if bounded
    log_sums: Tensor  # (R,) log-sum-exp of each row
    targets_rows: Tensor  # pu, (Q, d)
    kept: list[Tensor]  # exp(s - top) of each chunk, (R, c)


class _CropEntropy(torch.autograd.Function):
    @staticmethod
    def forward(  # noqa: PLR0913 (autograd knows no keywords)
        ctx: Any,
        student: Tensor,
        teacher: Tensor,
        weight: Tensor,
        gain: Tensor | None,
        how: CropEntropy,
        gradients: bool,
    ) -> tuple[Tensor, Tensor]:
        z, crops = student.flatten(0, 1), len(student)
        size = z.itemsize * len(z) * len(weight)
        keep = gradients and (size <= KEPT_BYTES if how.keep is None else how.keep)
        bank = _Bank.of(weight, gain)
        z2, targets, log_sums = teacher.flatten(0, 1), teacher.flatten(0, 1), None
        if how.teacher_temperature is not None:
            targets, log_sums = _posterior(z2, bank, how.teacher_temperature)
        bounded = gain is None and 1 / how.student_temperature <= _BOUND
        walked = _walk(z, targets, bank, how, keep=keep, bounded=bounded)
        others, counts = _other_crops(student, len(teacher))
        pairs = len(teacher) * (crops - 1) * student.shape[1]
        together = (others * walked.targets_rows).sum() / how.student_temperature
        entropy = ((counts * walked.log_sums).sum() - together) / pairs
        kl = torch.zeros_like(entropy)
        if how.teacher_temperature is not None and log_sums is not None:
            # sum p log p = <z2, pu> / temperature - log-sum-exp
            along = (z2 * walked.targets_rows).sum(dim=1) / how.teacher_temperature
            kl = math.log(len(weight)) + (along - log_sums).mean()
        if gradients:
            ctx.how, ctx.shape, ctx.kept = how, student.shape, walked.kept
            ctx.given_gain, ctx.pairs, ctx.bounded = gain is not None, pairs, bounded
            small = (*walked[:3], others, counts)
            ctx.save_for_backward(z, z2, targets, *bank, *small)
            ctx.set_materialize_grads(False)
        return entropy, kl

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, by_entropy: Tensor | None, by_kl: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        z, z2, targets, *rest = ctx.saved_tensors
        bank, (tops, log_sums, targets_rows, others, counts) = _Bank(*rest[:3]), rest[3:]
        how: CropEntropy = ctx.how
        # By one product <z, u>, wherever it stands in the sum over pairs.
        per_pair = ctx.pairs * how.student_temperature
        by_product = z.new_zeros(()) if by_entropy is None else by_entropy / per_pair
        weights = by_product * counts * (tops - log_sums).exp()
        towards = _towards(z2, others * by_product, by_kl, how)
        by_z, by_weight = torch.zeros_like(z), torch.empty_like(bank.weight)
        by_gain = torch.empty_like(bank.scale)
        with torch.autocast(z.device.type, enabled=False):
            space = _space(z, bank.weight)
            for i, columns in enumerate(_chunks(bank.weight)):
                rows = bank.rows(columns)
                if ctx.kept:
                    powers = ctx.kept[i]
                else:
                    powers = _logits(z, rows, how.student_temperature, space)
                    powers = powers.exp_() if ctx.bounded else powers.sub_(tops[i, :, None]).exp_()
                by_z.addcmul_(powers @ rows, weights[i, :, None])
                by_rows = powers.T @ (z * weights[i, :, None])
                by_rows.addmm_(targets[:, columns].T, others * -by_product)
                if towards is not None and how.teacher_temperature is not None:
                    # The softmax's derivative, for a function whose own is <towards, u>.
                    along = (towards * targets_rows).sum(dim=1, keepdim=True)
                    slope = (towards @ rows.T).sub_(along).mul_(targets[:, columns])
                    by_rows.addmm_(slope.T, z2, alpha=1 / how.teacher_temperature)
                bank.pull_back(columns, by_rows, by_weight, by_gain)
        by_student = by_z.view(ctx.shape)
        _pull_others(by_student, targets_rows.view(-1, *ctx.shape[1:]) * by_product)
        by_gain = by_gain if ctx.given_gain else None
        return None if by_entropy is None else by_student, None, by_weight, by_gain, None, None


def _towards(z2: Tensor, pulled: Tensor, by_kl: Tensor | None, how: CropEntropy) -> Tensor | None:
    """Rows y (Q, d): the terms' derivative by the teacher's p_k is y.u_k up to a constant.

    Args:
        z2: The teacher's rows.
        pulled: Gradient of the cross-entropy's -<zs, pu> to -pu.
        by_kl: Gradient to the KL, if it is needed.
        how: Settings.
    """
    if how.teacher_temperature is None or (by_kl is None and not how.train_targets):
        return None
    towards = -pulled if how.train_targets else torch.zeros_like(z2)
    if by_kl is not None:
        towards.addcmul_(z2, by_kl / (len(z2) * how.teacher_temperature))
    return towards


def _chunks(weight: Tensor) -> Iterator[slice]:
    """Slices of prototypes."""
    width = _COLUMNS.get(weight.device.type, _COLUMNS["cuda"])
    return (slice(start, start + width) for start in range(0, len(weight), width))


def _space(z: Tensor, weight: Tensor) -> Tensor:
    """Room for a chunk's logits, allocated once: large tensors are mapped anew each time."""
    width = min(len(weight), _COLUMNS.get(weight.device.type, _COLUMNS["cuda"]))
    return z.new_empty(len(z) * width)


def _logits(z: Tensor, rows: Tensor, temperature: float, space: Tensor) -> Tensor:
    """z.u / temperature (R, c) in `space`."""
    out = space[: len(z) * len(rows)].view(len(z), len(rows))
    return torch.addmm(out, z, rows.T, beta=0, alpha=1 / temperature, out=out)


def _posterior(z: Tensor, bank: _Bank, temperature: float) -> tuple[Tensor, Tensor]:
    """softmax(z.u / temperature) (Q, K), and the log-sum-exp of each row (Q,)."""
    logits = z.new_empty((len(z), len(bank.weight)))
    for columns in _chunks(bank.weight):
        out = logits[:, columns]
        torch.addmm(out, z, bank.rows(columns).T, beta=0, alpha=1 / temperature, out=out)
    top = logits.amax(dim=1, keepdim=True)
    sums = logits.sub_(top).exp_().sum(dim=1, keepdim=True)
    return logits.div_(sums), (top + sums.log()).squeeze(1)


def _walk(
    z: Tensor, targets: Tensor, bank: _Bank, how: CropEntropy, *, keep: bool, bounded: bool
) -> _Walked:
    """All of the forward pass that needs the prototypes."""
    targets_rows = targets.new_zeros((len(targets), z.shape[1]))
    tops, sums, kept = [], [], []
    space = z.new_empty(0) if keep else _space(z, bank.weight)
    for columns in _chunks(bank.weight):
        rows = bank.rows(columns)
        targets_rows.addmm_(targets[:, columns], rows)
        room = z.new_empty(len(z) * len(rows)) if keep else space
        powers = _logits(z, rows, how.student_temperature, room)
        if bounded:
            tops.append(powers.new_zeros(len(z)))
        else:
            tops.append(powers.amax(dim=1))
            powers.sub_(tops[-1][:, None])
        sums.append(powers.exp_().sum(dim=1))
        if keep:
            kept.append(powers)
    top = torch.stack(tops)
    log_sums = (top + torch.stack(sums).log()).logsumexp(dim=0)
    return _Walked(top, log_sums, targets_rows, kept)


def _other_crops(student: Tensor, teachers: int) -> tuple[Tensor, Tensor]:
    """Sum of the student crops that each teacher crop meets (T n, d), and how many a row meets.

    Args:
        student: (V, n, d).
        teachers: T.
    """
    others = student.sum(dim=0) - student[:teachers]
    counts = student.new_full(student.shape[:2], teachers)
    counts[:teachers] -= 1
    return others.flatten(0, 1), counts.flatten()


def _pull_others(by_student: Tensor, by_others: Tensor) -> None:
    """Subtract from the gradient (V, n, d) what each crop owes to the sums it is part of."""
    by_student -= by_others.sum(dim=0)
    by_student[: len(by_others)] += by_others
