"""Low-rank updates whose ranks are weighted by learned gates."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from cl_bench.models.lora import LoRABank, Target


class GatedBank(LoRABank):
    """Directions B_k diag(c_k) A_k, with a weight c per rank that is made from a gate.

    `gate[k]` is [L, P, r]. A variant overrides `start_gates`, by default 1, and `weights_of_ranks`, by default the
    gates themselves. Frozen directions keep their gates.
    """

    parts = ("A", "B", "gate")
    gate: nn.ParameterList

    @staticmethod
    def numbers(backbone: VisionTransformer, targets: Sequence[Target], rank: int) -> int:
        """Number of parameters of one direction: those of LoRA, and r gates per block and projection."""
        return LoRABank.numbers(backbone, targets, rank) + len(backbone.blocks) * len(targets) * rank

    def groups(self, others: Iterable[nn.Parameter], gate_lr: float) -> list[dict[str, Any]]:
        """Optimiser groups of the last direction: its factors with other parameters, then its gates.

        Gates have a learning rate of their own and no weight decay, which would close them.
        """
        *factors, gate = self.direction(-1)
        return [{"params": [*factors, *others]}, {"params": [gate], "lr": gate_lr, "weight_decay": 0.0}]

    def start(self, A: Tensor, B: Tensor, generator: torch.Generator) -> Sequence[Tensor]:
        return A, B, self.start_gates(A.shape[:3], generator)

    def start_gates(self, shape: torch.Size, generator: torch.Generator) -> Tensor:
        """Gates of a new direction.

        Args:
            shape: [L, P, r].
            generator: CPU generator from which A and B were drawn.
        """
        return torch.ones(shape)

    def weights_of_ranks(self, k: int) -> Tensor:
        """Weights c of the ranks of direction k, [L, P, r]."""
        return self.gate[k]

    def factors(self, k: int) -> tuple[Tensor, Tensor]:
        A, B = super().factors(k)
        return A, B * self.weights_of_ranks(k)[:, :, None]
