"""SoRA: a gate per rank, driven to exactly 0 by a threshold (Ding et al., EMNLP 2023, arXiv 2311.11696).

A direction is B diag(g) A, with a gate g [r] per projection that starts from N(0, 1). The loss is

    cross-entropy + lambda mean |g|        over the gates of all projections

and after every step of the optimiser, each gate is thresholded at xi. A gate of 0 closes its rank; it may open again,
as A, B and its gradient are still there. The penalty acts twice: through the optimiser, and in the threshold.

Checked against TsinghuaC3I/SoRA @ c275ac2, which trains language models. Its threshold first moves a gate towards 0 by
xi, and then closes it if less than xi is left (`threshold_rule=released`): gates between xi and 2 xi close, one of
exactly xi stays. A soft threshold, sign(g) max(|g| - xi, 0), only closes gates up to xi (`soft`). It has a second
optimiser that thresholds at xi times the learning rate (`threshold_unit=lr`), and does not use it. Its schedule of
growing thresholds trains on with each of a list (`sparsify`; see `spaced`), without a fresh optimiser.

The recipe of its script for GLUE is rank 8, alpha = 16 (here, all directions have the scale 1 unless `alpha` is set),
lambda = 10, xi = 3e-4, AdamW at 8e-4 with warm-up and a weight decay of 0.1 that spares the gates, and a gradient
clipped at 0.1. The penalty's gradient has norm lambda / sqrt(number of gates), so with SGD, clipping leaves little of
the cross-entropy's. What happens between tasks, the fresh optimisers, and the learning rate are our choice.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from cl_bench.contract.method import Traces
from cl_bench.contract.phase import Phase, ReachableOptimizer
from cl_bench.contract.search import Choice, LogUniform, Range
from cl_bench.contract.task import Task
from cl_bench.errors import UserError
from cl_bench.models.gated import GatedBank

from .seqlora import SeqLoRA

Rule = Literal["released", "soft"]
Spacing = Literal["linear", "log_linear", "exp_linear"]


def thresholded(gates: Tensor, xi: float, rule: Rule) -> Tensor:
    """Gates moved towards 0 by xi, of which those within xi of 0 are closed before (`soft`) or afterwards (`released`).

    A gate of exactly xi closes under `soft`, and stays as it is under `released`.
    """
    moved = torch.where(gates.abs() > xi, gates - xi * gates.sign(), gates if rule == "released" else 0.0)
    return torch.where(moved.abs() < xi, 0.0, moved) if rule == "released" else moved


def spaced(first: float, last: float, count: int, spacing: Spacing) -> tuple[float, ...]:
    """Thresholds for `sparsify` from the first to the last: equal steps of xi, of e^xi, or of ln xi."""
    scales: dict[Spacing, Callable[[float], float]] = {"linear": float, "log_linear": math.exp, "exp_linear": math.log}
    back: dict[Spacing, Callable[[float], float]] = {"linear": float, "log_linear": math.log, "exp_linear": math.exp}
    start, end = scales[spacing](first), scales[spacing](last)
    return tuple(map(back[spacing], torch.linspace(start, end, count, dtype=torch.float64).tolist()))


class SoRABank(GatedBank):
    """Directions whose gates weight the ranks as they are.

    Args:
        shape: see `LoRABank`.
        normal: whether gates start from N(0, 1); otherwise at 1.
    """

    def __init__(self, *shape: Any, normal: bool) -> None:
        super().__init__(*shape)
        self.normal = normal

    def start_gates(self, shape: torch.Size, generator: torch.Generator) -> Tensor:
        return torch.randn(shape, generator=generator) if self.normal else super().start_gates(shape, generator)


@dataclass(frozen=True, kw_only=True, eq=False)
class SoRA(SeqLoRA):
    """Hyper-parameters; rank, penalty and threshold are those released for GLUE.

    Attributes:
        gate_penalty: lambda.
        penalty_mean: whether lambda weights the mean of |g| over all gates of the direction; otherwise their sum.
        threshold: xi.
        threshold_rule: `released` or `soft`, see above.
        threshold_unit: the threshold is xi (`step`), or xi times the current learning rate of the gates (`lr`).
        gate_start: gates start from N(0, 1) (`normal`) or at 1 (`ones`).
        gate_lr: learning rate of the gates; none: `lr`.
        sparsify: thresholds of further phases of a task, after the one with `threshold`; none: no further phase.
        sparsify_epochs: epochs of each of them.
    """

    paper: ClassVar[str] = "SoRA (EMNLP 2023, arXiv 2311.11696)"
    citations: ClassVar[tuple[str, ...]] = ("ding2023sora",)
    space: ClassVar[Mapping[str, Range]] = {
        "lr": LogUniform(1e-4, 0.1),
        "schedule": Choice("constant", "cosine"),
        "gate_penalty": LogUniform(1e-3, 10.0),
        "threshold": LogUniform(1e-5, 1e-2),
    }

    rank: PositiveInt = 8
    gate_penalty: NonNegativeFloat = 10.0
    penalty_mean: bool = True
    threshold: NonNegativeFloat = 3e-4
    threshold_rule: Rule = "released"
    threshold_unit: Literal["step", "lr"] = "step"
    gate_start: Literal["normal", "ones"] = "normal"
    gate_lr: NonNegativeFloat | None = None
    sparsify: tuple[NonNegativeFloat, ...] | None = None
    sparsify_epochs: PositiveInt = 15
    optimizer: Literal["sgd", "adam", "adamw"] = "adamw"
    lr: PositiveFloat = 1e-3

    def bank(self, *shape: Any) -> SoRABank:
        return SoRABank(*shape, normal=self.gate_start == "normal")

    def direction_numbers(self, backbone: VisionTransformer) -> int:
        return GatedBank.numbers(backbone, self.targets, self.rank)

    def penalty(self, task: Task) -> Tensor | None:
        sizes = task.model.bank.gate[-1].abs()
        return self.gate_penalty * (sizes.mean() if self.penalty_mean else sizes.sum()) if self.gate_penalty else None

    def phases(self, task: Task) -> list[Phase]:
        new = task.index == 0 or self.boundary != "continue"
        first = self.thresholding(task, self.threshold, self.epochs, new)
        return [first, *(self.thresholding(task, xi, self.sparsify_epochs) for xi in self.sparsify or ())]

    def thresholding(self, task: Task, xi: float, epochs: int, new: bool = False) -> Phase:
        """A phase whose steps end with a threshold at xi; the gates are `new` if nothing has trained them yet.

        Raises (in the first step):
            UserError: the threshold closes every new gate.
        """
        bank, gate_lr = task.model.bank, self.lr if self.gate_lr is None else self.gate_lr
        groups = bank.groups(task.model.head.parameters(), gate_lr)
        gate, made = bank.gate[-1], ReachableOptimizer(self.optimization(groups).optimizer)

        def threshold(step: int, steps: int) -> None:
            unit = made.optimizer.param_groups[1]["lr"] if self.threshold_unit == "lr" else 1.0
            gate.copy_(thresholded(gate, xi * unit, self.threshold_rule))
            if new and step == 1 and not bool(gate.any()):
                raise UserError(
                    f"SoRA's threshold of {xi * unit:g} leaves no rank: it closes all {gate.numel()} gates in the "
                    "first step; choose one far below 1, the size of gates at the start"
                )

        return self.phase(groups, self.objective(task), epochs=epochs, optimizer=made, after_step=threshold)

    def traces(self, task: Task) -> Traces:
        """Table `gates`, by stage and block: the share of `closed` gates, and the mean `size` |g| of all.

        Of the direction that the task has trained, over the projections of the block.
        """
        return {
            "gates": [
                {
                    "stage": task.index,
                    "block": block,
                    "closed": float((g == 0).float().mean()),
                    "size": float(g.abs().mean()),
                }
                for block, g in enumerate(task.model.bank.gate[-1].detach())
            ]
        }
