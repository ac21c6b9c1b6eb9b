"""O-LoRA: orthogonal subspace learning (Wang et al., Findings of EMNLP 2023, arXiv 2310.14152).

Checked against cmnfriend/O-LoRA @ 07117e1, which trains language models; this is its loss on a ViT. Every task adds a
direction to the frozen sum of the earlier ones, all with coefficient 1, and the loss

    cross-entropy + lambda_1 sum_{k<t} sum |A_k A_t^T| + lambda_2 (sum ||A_t||_F + sum ||B_t||_F)

with the sums over entries, blocks and projections, and A and B without the scale. The original scales every direction
by alpha / r = 32 / 8 (`alpha=32`; here 1), clips the gradient's norm at 1 (`clip_norm=1`), and lets all answers compete
(`loss=all`). Its dropout of 0.1 in front of A is left out. lambda_1 is a sum over 144 matrices there and over two per
block here, so its values do not carry over.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor

from cl_bench.contract.search import Choice, LogUniform, Range
from cl_bench.contract.task import Task
from cl_bench.models.lora import LoRABank

from .inclora import IncLoRA


def overlap(bank: LoRABank) -> Tensor:
    """sum |A_k A_t^T| of the last direction t with all others."""
    if len(bank) < 2:
        return bank.A[-1].new_zeros(())
    return (torch.cat(list(bank.A)[:-1], dim=2) @ bank.A[-1].transpose(2, 3)).abs().sum()


def size(bank: LoRABank) -> Tensor:
    """sum ||A_t||_F + sum ||B_t||_F of the last direction."""
    return torch.stack([factor.flatten(2).norm(dim=2).sum() for factor in bank.direction(-1)]).sum()


@dataclass(frozen=True, kw_only=True, eq=False)
class OLoRA(IncLoRA):
    """Hyper-parameters; rank, learning rate and weights are those released for T5.

    Attributes:
        orthogonality: lambda_1 (0.5, 5 or once 0 in the released scripts).
        shrinkage: lambda_2 (0 to 0.3 in the released scripts).
    """

    paper: ClassVar[str] = "O-LoRA (EMNLP Findings 2023, arXiv 2310.14152)"
    citations: ClassVar[tuple[str, ...]] = ("wang2023olora",)
    space: ClassVar[Mapping[str, Range]] = {
        "lr": LogUniform(1e-4, 0.1),
        "schedule": Choice("constant", "cosine"),
        "orthogonality": LogUniform(1e-3, 5.0),
    }

    rank: PositiveInt = 8
    orthogonality: NonNegativeFloat = 0.5
    shrinkage: NonNegativeFloat = 0.0
    optimizer: Literal["sgd", "adam", "adamw"] = "adamw"
    lr: PositiveFloat = 1e-3
    boundary: Literal["stack"] = "stack"

    def penalty(self, task: Task) -> Tensor:
        bank = task.model.bank
        penalty = self.orthogonality * overlap(bank)
        return penalty + self.shrinkage * size(bank) if self.shrinkage else penalty
