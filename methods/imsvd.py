"""IMSVD: information-maximized soft variable discretization.

Paper: "Information-Maximized Soft Variable Discretization for Self-Supervised Image
Representation Learning"; equation numbers are its. Written from the paper; where the released
code (@d387689) differs, a comment says so.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Literal, Self

import torch
from torch import Tensor, nn

from harness import dist, views
from harness.backbone import Backbone, OwnProjector
from harness.errors import UserError
from harness.heads import mlp
from harness.joint import JointTerms, joint_terms
from harness.method import Method, TwinMethod
from harness.recipe import BackboneSpec, MethodConfig, Optim, Recipe, TrainingSize
from harness.scale import Scale

Term = Literal["TI", "TIC", "DE", "OE"]  # as Table VIII abbreviates them
ALL: tuple[Term, ...] = ("TI", "DE", "OE")
FLOOR = 1e-8  # smallest soft assignment; the code clamps there without renormalising


@dataclass(frozen=True, kw_only=True)
class IMSVDConfig(MethodConfig):
    """Hyper-parameters of IMSVD (paper, section IV) and the switches of its Tables VI-IX."""

    projector: tuple[int, ...] = (8192, 8160)  # widths after the trunk's
    units: int = 80  # B, discrete values of each variable
    temperature: float = 1.0  # t of Eq. 1
    terms: tuple[Term, ...] = ALL

    def build(self, backbone: Backbone, training: TrainingSize) -> Method:
        """IMSVD around `backbone`.

        Raises:
            UserError: The projection does not divide into variables of `units` values.
        """
        if self.projector[-1] % self.units:
            raise UserError(
                f"projector width {self.projector[-1]} is not a multiple of units={self.units}; "
                f"use {self.projector[-1] - self.projector[-1] % self.units}"
            )
        return IMSVD(self, backbone)

    def scaled(self, scale: Scale) -> Self:
        """Narrower layers, and 32 units as in the authors' CIFAR-10 recipe; 16 below that.

        Ablated widths and units keep their ratios to the default; two variables are the fewest.
        """
        default = type(self)()
        units = round((32 if scale.width >= 1024 else 16) * self.units / default.units)
        whole = default.projector[-1]
        last = min(whole, scale.width) * self.projector[-1] // whole
        hidden = (min(width, scale.width) for width in self.projector[:-1])
        return replace(self, projector=(*hidden, max(last - last % units, 2 * units)), units=units)


class IMSVD(TwinMethod):
    """Two branches; the projector is kept with the trunk, as its variables are what is studied."""

    def __init__(self, config: IMSVDConfig, backbone: Backbone) -> None:
        terms = partial(
            imsvd_terms, units=config.units, temperature=config.temperature, names=config.terms
        )
        super().__init__(backbone, mlp((backbone.dim, *config.projector)), terms)
        self._config = config

    @property
    def own_projector(self) -> OwnProjector:
        """The projector, with what makes variables of its output."""
        assert isinstance(self.projector, nn.Sequential)
        return OwnProjector(
            layers=self.projector,
            widths=(self.backbone.dim, *self._config.projector),
            units=self._config.units,
            temperature=self._config.temperature,
        )


def imsvd_terms(
    z1: Tensor,
    z2: Tensor,
    *,
    units: int,
    temperature: float,
    names: tuple[Term, ...] = ALL,
) -> dict[str, Tensor]:
    """The three terms of IMSVD's loss (Eq. 11), all with coefficient 1, in nats.

    Args:
        z1: Projections (n, variables * units) of this process's images under the first view.
        z2: The same images' projections under the second view.
        units: Discrete values of each variable.
        temperature: Of the softmax that discretises (Eq. 1).
        names: Terms to compute. TIC takes TI's place in one ablation.

    Returns:
        Scalars by name. DE and OE are of the global batch and equal on all processes. Time and
        memory: see `harness.joint`; D and N the same, memory is linear in D.
    """
    with torch.autocast(z1.device.type, enabled=False):
        # In half precision FLOOR rounds to 0 and 0 * log 0 = NaN, which a gradient scaler skips
        # in silence; the joint distribution is therefore never computed below fp32.
        per_image = {name: term for name, term in _PER_IMAGE.items() if name in names}
        *values, diagonal, off_diagonal = joint_terms(
            z1,
            z2,
            JointTerms(
                assign=partial(discretise, units=units, temperature=temperature),
                per_image=tuple(per_image.values()),
                diagonal="DE" in names,
                off_diagonal="OE" in names,
            ),
        )
        terms: dict[str, Tensor] = dict(zip(per_image, values, strict=True))
        variables = z1.shape[1] // units
        if "DE" in names:
            terms["DE"] = diagonal / variables
        if "OE" in names:
            terms["OE"] = off_diagonal / (variables * (variables - 1))
        return terms


def plain_terms(
    z1: Tensor,
    z2: Tensor,
    *,
    units: int,
    temperature: float,
    names: tuple[Term, ...] = ALL,
) -> dict[str, Tensor]:
    """What `imsvd_terms` computes, by the formulas as the paper prints them.

    With the whole joint distribution (D, D) in memory, several times, on every process: 1.3 GB at
    D = 8160. The reference that the fast path is compared with.
    """
    with torch.autocast(z1.device.type, enabled=False):
        p, q = (discretise(z, units=units, temperature=temperature) for z in (z1, z2))
        terms: dict[str, Tensor] = {n: t(p, q) for n, t in _PER_IMAGE.items() if n in names}
        if "DE" in names or "OE" in names:
            joint = joint_distribution(dist.gather(p), dist.gather(q))
            if "DE" in names:
                terms["DE"] = diagonal_negentropy(joint)
            if "OE" in names:
                terms["OE"] = off_diagonal_negentropy(joint)
        return terms


def discretise(z: Tensor, *, units: int, temperature: float) -> Tensor:
    """Soft assignments of each variable to its units (Eq. 1).

    Args:
        z: Projections (n, variables * units).
        units: Discrete values of each variable.
        temperature: Of the softmax.

    Returns:
        (n, variables, units) in fp32 or better; rows sum to 1 within the clamp at FLOOR.
    """
    z = z if z.dtype == torch.float64 else z.float()
    return (z.unflatten(1, (-1, units)) / temperature).softmax(dim=2).clamp(min=FLOOR)


def joint_distribution(p: Tensor, q: Tensor) -> Tensor:
    """Cross-joint distribution of every pair of variables (Eq. 10).

    Args:
        p: Assignments (n, M, B) of the global batch under the first view.
        q: Under the second view.

    Returns:
        (M, B, M, B): entry (m, i, l, j) is P(v_m = i, v_l = j), averaged over the batch.
    """
    joint = p.flatten(1).T @ q.flatten(1) / len(p)
    return joint.unflatten(0, p.shape[1:]).unflatten(2, q.shape[1:])


def transform_invariance(p: Tensor, q: Tensor) -> Tensor:
    """Average -log <p, q> over images and variables (Eq. 11, first term), in nats.

    Args:
        p: Soft assignments (n, variables, units) of the first view; rows sum to 1.
        q: The same images' assignments under the second view.

    Returns:
        Scalar, >= 0; 0 when both views pick the same unit with certainty.
    """
    return -(p * q).sum(dim=2).log().mean()


def cross_entropy_invariance(p: Tensor, q: Tensor) -> Tensor:
    """Average cross-entropy of the views' assignments: TIC of Table VIII, in nats.

    The paper's formula is illegible in our copy; the mean of both directions keeps the loss as
    symmetric in the views as its other terms are.
    """
    return -0.5 * (p * q.log() + q * p.log()).sum(dim=2).mean()


def diagonal_negentropy(joint: Tensor) -> Tensor:
    """(1/M) sum of P log P over the diagonals of the diagonal blocks: DE of Eq. 11, in nats.

    Smallest, -log B, when every variable spreads evenly over its B units in both views alike.
    """
    same = joint.flatten(2).flatten(0, 1).diagonal()
    return -torch.special.entr(same).sum() / len(joint)


def off_diagonal_negentropy(joint: Tensor) -> Tensor:
    """1/(M(M-1)) sum of P log P over the off-diagonal blocks: OE of Eq. 11, in nats.

    Smallest, -2 log B, when any two variables are independent and uniform.
    """
    variables = len(joint)
    entropy = torch.special.entr(joint)
    within = entropy.diagonal(dim1=0, dim2=2).sum()
    return (within - entropy.sum()) / (variables * (variables - 1))


_PER_IMAGE = {"TI": transform_invariance, "TIC": cross_entropy_invariance}

RESNET50 = Recipe(
    name="IMSVD ResNet-50",
    source="IMSVD, section IV and Tables I-II",
    method=IMSVDConfig(),
    views=views.IMSVD,
    backbone=BackboneSpec(name="resnet50", zero_init_residual=True),
    epochs=1000,
    batch_size=2048,
    optim=Optim(
        name="lars",
        lr=0.6,
        final_lr=0.002,  # section IV; the code ends at .001 of the peak, .0048
        weight_decay=1e-6,  # blank in our copy of the paper; the code's value
        warmup_epochs=10,
    ),
)
