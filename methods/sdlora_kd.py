"""SD-LoRA-KD: SD-LoRA without directions that others span (Wu et al., ICLR 2025, arXiv 2501.13198, Eq. 7-8).

After each task, its direction is fitted by least squares on the kept directions, all scaled to unit Frobenius norm:

    c = argmin || U_t - sum_k c_k U_k ||_F,   U = B A / ||B A||_F

and dropped if the residual is at most tau. There is no released code, and the paper leaves open what follows; these
are the decisions taken here:

- *Residual.* tau = 9e-4 makes no sense as a Frobenius norm (unit directions of different tasks are nearly orthogonal,
  the residual is about 1), but does as a root mean square per element (`rms`), which is at most 1/d. It then depends on
  the width d: `relative` (to the norm of U_t) does not.
- *Scope.* Magnitudes are shared by all projections, so one vector c is fitted for all of them (`joint`); `projection`
  fits one each. The direction is kept or dropped as a whole, by the residual over all projections.
- *Absorption preserves the function.* What is dropped is a_t B_t A_t, not U_t; so a_t ||B_t A_t|| c_k is added to the
  coefficient of U_k (Eq. 8 as printed leaves both factors out). It is kept as an offset of its own, since magnitudes
  start anew with each task.
- *Kept directions* are those not dropped before.

The Gram matrix comes from r x r products, tr((B_k^T B_l)(A_l A_k^T)).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from pydantic import NonNegativeFloat
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from cl_bench.contract.method import Traces
from cl_bench.contract.task import Task
from cl_bench.data.samples import TaskSamples
from cl_bench.experiment import Scalar

from .sdlora import SDLoRA, SDLoRAModel

Residual = Literal["frobenius", "rms", "relative"]
_TRACED: tuple[Residual, ...] = ("frobenius", "relative")
_TINY = 1e-24
"""Square of the norm that a direction without any gradient (B = 0) is given."""


@dataclass(frozen=True)
class Fit:
    """Least squares of the last direction on the K others, all of unit norm: S fits, one per projection or 1 in all.

    Attributes:
        gram, rhs: normal equations, [S, K, K] and [S, K].
        coefficients: [S, K].
        residual: Frobenius norm, [S].
        entries: matrix entries that each residual covers.
        target: squared Frobenius norm of what was fitted, [S].
    """

    gram: Tensor
    rhs: Tensor
    coefficients: Tensor
    residual: Tensor
    entries: int
    target: Tensor

    def pooled(self, kind: Residual) -> float:
        """The residual over all fits: Frobenius norm, root mean square per entry, or relative to the target."""
        scale = {
            "frobenius": 1.0,
            "rms": (self.entries * len(self.residual)) ** 0.5,
            "relative": float(self.target.sum().clamp_min(_TINY).sqrt()),
        }
        return float(self.residual.square().sum().sqrt()) / scale[kind]


class SDLoRAKDModel(SDLoRAModel):
    """`offsets` [K, L, P]: coefficients, relative to B_k A_k, of what has been absorbed; `residuals` [task - 1]: the
    relative residual of each task's direction but the first."""

    offsets: Tensor
    residuals: Tensor

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.register_buffer("offsets", torch.zeros_like(self.normalisers))
        self.register_buffer("residuals", torch.zeros(0))

    def grow(self, rank: int, generator: torch.Generator) -> None:
        super().grow(rank, generator)
        self.offsets = nn.functional.pad(self.offsets, (0, 0, 0, 0, 0, 1))

    def coefficients(self) -> Tensor:
        return super().coefficients() + self.offsets

    @torch.no_grad()
    def fit(self, scope: Literal["joint", "projection"], raw: bool = False) -> Fit:
        """Fit the last direction on all others, in float64.

        Args:
            raw: leave the last one as it is, which starts at 0, instead of scaling it to unit norm.
        """
        inner = self.bank.gram(torch.float64).flatten(0, 1)
        norms = inner.diagonal(dim1=1, dim2=2).clamp_min(_TINY).sqrt()
        if raw:
            norms = torch.cat([norms[:, :-1], torch.ones_like(norms[:, -1:])], dim=1)
        unit = inner / norms[:, :, None] / norms[:, None]
        projections = len(unit)
        if scope == "joint":
            unit = unit.sum(dim=0, keepdim=True)
        gram, rhs, square = unit[:, :-1, :-1], unit[:, :-1, -1], unit[:, -1, -1]
        # The minimum-norm solution, should the kept directions be dependent themselves.
        coefficients = (torch.linalg.pinv(gram, hermitian=True) @ rhs[..., None])[..., 0]
        explained = (coefficients * (2 * rhs - (gram @ coefficients[..., None])[..., 0])).sum(dim=1)
        residual = (square - explained).clamp_min(0).sqrt()
        entries = self.bank.dim**2 * (projections if scope == "joint" else 1)
        return Fit(gram, rhs, coefficients, residual, entries, square)

    @torch.no_grad()
    def absorb(self, fit: Fit) -> None:
        """Drop the last direction and give its share of the weights to the others."""
        inner = self.bank.gram(torch.float64)
        norms = inner.diagonal(dim1=2, dim2=3).permute(2, 0, 1).clamp_min(_TINY).sqrt()
        shares = fit.coefficients.expand(norms[0].numel(), -1).T.unflatten(1, norms[0].shape)
        lost = super().coefficients()[-1] + self.offsets[-1]
        absorbed = (lost * norms[-1] * shares / norms[:-1]).to(self.offsets.dtype)
        self.offsets = self.offsets[:-1] + absorbed
        self.normalisers = self.normalisers[:-1]
        self.magnitudes = nn.ParameterList(list(self.magnitudes)[:-1])
        self.bank.drop()


@dataclass(frozen=True, kw_only=True, eq=False)
class SDLoRAKD(SDLoRA):
    """Hyper-parameters of SD-LoRA, and the rule that drops directions.

    Attributes:
        tau: largest residual of a direction that is dropped.
        residual: unit of tau: `rms` per matrix entry, `frobenius`, or `relative` to the direction.
        scope: one least-squares fit for all projections (`joint`) or one per `projection`.
    """

    revision: ClassVar[int] = 1
    paper: ClassVar[str] = "SD-LoRA-KD (ICLR 2025, arXiv 2501.13198)"
    model_class: ClassVar[type[SDLoRAModel]] = SDLoRAKDModel

    tau: NonNegativeFloat = 9e-4
    residual: Residual = "rms"
    scope: Literal["joint", "projection"] = "joint"

    def storage(self, backbone: VisionTransformer, num_classes: int, classes: Sequence[int]) -> dict[str, int]:
        declared = super().storage(backbone, num_classes, classes)
        return declared | {"offsets": declared["norms"], "residuals": len(classes) - 1}

    def after_task(self, task: Task, images: TaskSamples) -> None:
        model = task.model
        if len(model.bank) < 2:
            return
        fit = model.fit(self.scope)
        model.residuals = torch.cat([model.residuals, model.residuals.new_tensor([fit.pooled("relative")])])
        if fit.pooled(self.residual) <= self.tau:
            model.absorb(fit)

    def traces(self, task: Task) -> Traces:
        """Besides the magnitudes: how many directions are kept, and the relative residual of this task's."""
        model = task.model
        residual = float(model.residuals[-1]) if len(model.residuals) else None
        row: dict[str, Scalar] = {"stage": task.index, "kept": len(model.bank), "relative_residual": residual}
        return super().traces(task) | {"directions": [row]}

    def step_traces(self, task: Task, step: int) -> Traces:
        """How much of the direction that is being learned the kept ones do not span (Figure 3a of the paper): the
        residual of the raw B A, which starts at 0, as a Frobenius norm over all projections, and relative to it."""
        if len(task.model.bank) < 2:
            return {}
        fit = task.model.fit(self.scope, raw=True)
        residuals: dict[str, Scalar] = {kind: fit.pooled(kind) for kind in _TRACED}
        return {"residuals": [{"stage": task.index, "step": step, **residuals}]}
