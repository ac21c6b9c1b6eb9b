"""CLoRA: LoRA controlled by random subspaces that its update should avoid (ACL 2025, arXiv 2410.16801).

Per projection, two matrices P_in and P_out [d, k] with orthonormal columns are drawn once and fixed. The loss is

    cross-entropy + lambda sum (1/2 ||A P_in||_F^2 + 1/2 ||B^T P_out||_F^2)

with the sum over blocks and projections, and A and B without the scale. Inputs in the span of P_in then change nothing,
and outputs in that of P_out are not changed, so that the update is small on most inputs and loses little capacity.

Checked against sutakori/CLoRA @ 802cda8, which trains language models on one task: it draws both matrices in the
constructor of the adapter (hence anew in each task; `redraw=once`: one draw for all tasks), has lambda = 1, and takes k
as an argument (512 of 4096 in its example). Where k exceeds d it makes the rows orthonormal instead; here that is
refused. P_in and P_out know nothing of earlier tasks: what happens between tasks, k = d / 4 and the learning rate are
our choice. At the start the penalty is lambda L P r k / (6 d), far more than the cross-entropy: lambda is to be tuned.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from cl_bench.contract.method import Traces
from cl_bench.contract.search import Choice, LogUniform, Range
from cl_bench.contract.task import Task
from cl_bench.data.samples import TaskSamples
from cl_bench.errors import UserError
from cl_bench.models.base import FeatureModel

from .seqlora import SeqLoRA


def orthonormal(generator: torch.Generator, *shape: int) -> Tensor:
    """Random matrices [..., d, k] with orthonormal columns, uniformly distributed: Q of a Gaussian, diag(R) > 0."""
    Q, R = torch.linalg.qr(torch.randn(*shape, generator=generator))
    return Q * R.diagonal(dim1=-2, dim2=-1).sign()[..., None, :]


@dataclass(frozen=True, kw_only=True, eq=False)
class CLoRA(SeqLoRA):
    """Hyper-parameters.

    Attributes:
        subspace: dimension k of both subspaces; none: a quarter of the backbone's width.
        control: lambda (1 in the released code).
        sides: whether the update's inputs, outputs or both avoid a subspace.
        redraw: whether every task has subspaces of its own (`task`) or all tasks have the same (`once`).
    """

    paper: ClassVar[str] = "CLoRA (ACL 2025, arXiv 2410.16801)"
    citations: ClassVar[tuple[str, ...]] = ("lu2025clora",)
    space: ClassVar[Mapping[str, Range]] = {
        "lr": LogUniform(1e-4, 0.1),
        "schedule": Choice("constant", "cosine"),
        "control": LogUniform(1e-3, 1.0),
    }

    rank: PositiveInt = 8
    subspace: PositiveInt | None = None
    control: NonNegativeFloat = 1.0
    sides: Literal["both", "input", "output"] = "both"
    redraw: Literal["task", "once"] = "task"
    optimizer: Literal["sgd", "adam", "adamw"] = "adamw"
    lr: PositiveFloat = 1e-3

    def build(self, backbone: VisionTransformer, num_classes: int) -> FeatureModel:
        if (self.subspace or 0) > backbone.embed_dim:
            raise UserError(
                f"CLoRA's subspace of dimension {self.subspace} does not fit into the backbone's width "
                f"{backbone.embed_dim}: choose subspace of at most {backbone.embed_dim}"
            )
        return super().build(backbone, num_classes)

    def before_task(self, task: Task, images: TaskSamples) -> None:
        super().before_task(task, images)
        self.subspaces(task)

    def subspaces(self, task: Task) -> list[Tensor]:
        """P_in and P_out [L, P, d, k] of a task, drawn once from its key."""
        names, bank = ("P_in", "P_out"), task.model.bank
        if names[0] not in task.scratch:
            generator = task.generator("subspace", every_task=self.redraw == "once")
            k = self.subspace or max(round(bank.dim / 4), 1)
            for name in names:
                drawn = orthonormal(generator, bank.blocks, len(bank.targets), bank.dim, k)
                task.scratch[name] = drawn.to(task.model.device)
        return [task.scratch[name] for name in names]

    def inside(self, task: Task) -> dict[str, Tensor]:
        """What the direction has inside the avoided subspaces: A P_in and B^T P_out, each [L, P, r, k]."""
        (A, B), (P_in, P_out) = task.model.bank.direction(-1), self.subspaces(task)
        return {"input": A @ P_in, "output": B.transpose(2, 3) @ P_out}

    def regulariser(self, task: Task) -> dict[str, Tensor]:
        """1/2 ||A P_in||_F^2 and 1/2 ||B^T P_out||_F^2, each [L, P], of the chosen sides."""
        found = {side: 0.5 * product.square().sum(dim=(2, 3)) for side, product in self.inside(task).items()}
        return {side: value for side, value in found.items() if self.sides in ("both", side)}

    def penalty(self, task: Task) -> Tensor:
        return self.control * torch.stack([value.sum() for value in self.regulariser(task).values()]).sum()

    @torch.no_grad()
    def traces(self, task: Task) -> Traces:
        """Table `control`: the direction's shares in the subspaces, and the penalty.

        A row per block and target has `input`, ||A P_in||_F / ||A||_F, and `output`, ||B^T P_out||_F / ||B||_F (for a
        random factor about sqrt(k / d)), and `penalty`, what the projection adds to the loss.
        """
        bank, inside, terms = task.model.bank, self.inside(task), list(self.regulariser(task).values())
        factors = dict(zip(inside, bank.direction(-1), strict=True))
        shares = {
            side: product.flatten(2).norm(dim=2) / factors[side].flatten(2).norm(dim=2)
            for side, product in inside.items()
        }
        columns = shares | {"penalty": self.control * torch.stack(terms).sum(0)}
        rows = []
        for block in range(bank.blocks):
            for number, target in enumerate(bank.targets):
                values = {name: float(column[block, number]) for name, column in columns.items()}
                defined = {name: value for name, value in values.items() if value == value}
                rows.append({"stage": task.index, "block": block, "target": target, **defined})
        return {"control": rows}

    @torch.no_grad()
    def step_traces(self, task: Task, step: int) -> Traces:
        """Table `penalty`: what the `penalty` adds to the cross-entropy after a step."""
        return {"penalty": [{"stage": task.index, "step": step, "penalty": float(self.penalty(task))}]}
