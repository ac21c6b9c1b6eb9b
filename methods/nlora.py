"""N-LoRA: non-colliding parameters by sparsity (Yang et al., COLING 2025, arXiv 2410.10179).

Checked against PKU-YuanGroup/N-LoRA @ 7301afe, which trains language models; this is its loss on a ViT. Like O-LoRA,
but the new direction is kept sparse instead of orthogonal: cross-entropy + lambda ||Delta W_t||_1. The paper's Delta W
is B A [d, d]; the released code takes the norm of A B [r, r], which is another matrix. `product` chooses between them.
For independent entries, the first norm is (d / r)^1.5 times the second, 118 times on a ViT-Ti at rank 8: lambda = 0.4
is for A B.

The original scales, clips, lets all answers compete and drops out as O-LoRA does (see there).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor

from cl_bench.contract.search import Choice, Depending, LogUniform, Range
from cl_bench.contract.task import Task
from cl_bench.models.lora import LoRABank

from .inclora import IncLoRA


def absolute_sum(bank: LoRABank, product: Literal["AB", "BA"]) -> Tensor:
    """||A B||_1 or ||B A||_1 of the last direction, summed over blocks and projections."""
    A, B = bank.direction(-1)
    return (A @ B if product == "AB" else B @ A).abs().sum()


@dataclass(frozen=True, kw_only=True, eq=False)
class NLoRA(IncLoRA):
    """Hyper-parameters; rank, learning rate and weight are those released for T5.

    Attributes:
        sparsity: lambda (0.38 to 1.8 in the released scripts, depending on the task and the order of tasks).
        product: matrix whose absolute sum is penalised: `AB` (code) or `BA` (paper).
    """

    paper: ClassVar[str] = "N-LoRA (COLING 2025, arXiv 2410.10179)"
    citations: ClassVar[tuple[str, ...]] = ("yang2025nlora",)
    space: ClassVar[Mapping[str, Range]] = {
        "lr": LogUniform(1e-4, 0.1),
        "schedule": Choice("constant", "cosine"),
        "sparsity": Depending("product", AB=LogUniform(1e-4, 1.0), BA=LogUniform(1e-6, 1e-2)),
    }

    rank: PositiveInt = 8
    sparsity: NonNegativeFloat = 0.4
    product: Literal["AB", "BA"] = "AB"
    optimizer: Literal["sgd", "adam", "adamw"] = "adamw"
    lr: PositiveFloat = 1e-3

    def penalty(self, task: Task) -> Tensor:
        return self.sparsity * absolute_sum(task.model.bank, self.product)
