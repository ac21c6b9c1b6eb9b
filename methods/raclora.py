"""RAC-LoRA: randomized asymmetric chain of LoRA (Malinovsky et al., arXiv 2410.08305).

A task is learned by a chain of K links. Link k draws one factor at random and freezes it, starts the other at 0, trains
it alone, and is merged into the weights: with s = alpha / r (here 1 unless `alpha` is set)

    W_k = W_{k-1} + s B_k A_k

The right sketch draws A and trains B; the left one draws B and trains A. One step of gradient descent on the left one
changes W by -lr s^2 B B^T G, a random part of the gradient G. The sum of the links has up to K times LoRA's rank.
`train=both` is the Chain of LoRA (COLA), which trains the drawn factor as well, and `links=1` asymmetric LoRA.

Checked against hammoudhasan/RACLora @ 7354fd2, which trains an MLP on MNIST and differs from the paper: it scales by
alpha without 1 / r, draws from N(0, 1) (`draw=normal`, `draw_std=1`), goes on with moments and step count of the same
AdamW from link to link (`moments=keep`; decay 0.01), and its main program trains both factors. The paper's experiments
on GLUE have rank 2 and K = 10. It states no setting for vision: learning rate, uniform draws within 1 / sqrt(d) as in
LoRA, and a schedule over all links are our choice. What the links of a task have learned is kept as K directions
(`stack`) or folded into a matrix (`merge`): the same function.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from pydantic import PositiveFloat, PositiveInt
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from cl_bench.contract.chain import divided, scheduled_over_all, with_one_optimizer
from cl_bench.contract.method import Traces
from cl_bench.contract.phase import Phase
from cl_bench.contract.search import Choice, LogUniform, Range
from cl_bench.contract.task import Task
from cl_bench.errors import UserError
from cl_bench.experiment import Scalar
from cl_bench.models.lora import LoRABank

from .inclora import IncLoRA

Sketch = Literal["left", "right"]


class SketchBank(LoRABank):
    """Directions of which one factor is drawn at random, and the other starts at 0.

    Args:
        shape: see `LoRABank`.
        sketch: `right` draws A, `left` draws B.
        std: standard deviation of normal draws; None: uniform draws, LoRA's start of A.
        orthonormal: whether the drawn rows of A (columns of B) are made orthonormal.
    """

    def __init__(self, *shape: Any, sketch: Sketch, std: float | None, orthonormal: bool) -> None:
        super().__init__(*shape)
        self.sketch, self.std, self.orthonormal = sketch, std, orthonormal

    def start(self, A: Tensor, B: Tensor, generator: torch.Generator) -> Sequence[Tensor]:
        if self.std is not None:
            A = torch.randn(A.shape, generator=generator, device="cpu") * self.std
        if self.orthonormal:
            A = torch.linalg.qr(A.mT).Q.mT
        return (torch.zeros_like(A), A.mT) if self.sketch == "left" else (A, B)

    def changes(self, k: int) -> Tensor:
        """Whether direction k may change each block, [L]: not if both of its factors are 0 there."""
        return torch.stack([factor.detach().flatten(1).any(dim=1) for factor in self.direction(k)]).any(dim=0)


@dataclass(frozen=True, kw_only=True, eq=False)
class RACLoRA(IncLoRA):
    """Hyper-parameters; rank and number of links are the paper's on GLUE.

    Attributes:
        links: number K of links per task, which divide the task's epochs evenly; none: 10, or one per epoch if there
            are fewer.
        sketch: factor that is drawn: A (`right`) or B (`left`).
        train: the factor that starts at 0 (`one`), or both factors (`both`, COLA).
        draw: `uniform` within 1 / sqrt(d), or `normal`.
        draw_std: standard deviation of normal draws; none: 1 / sqrt(d).
        orthonormal: whether the drawn rows of A (columns of B) are made orthonormal, as in the theory.
        moments: whether each link has a `fresh` optimiser, or goes on with the last one's state (`keep`).
        schedule_over: whether the schedule of the learning rate runs over the whole `task`, or restarts in each `link`.
    """

    paper: ClassVar[str] = "RAC-LoRA (arXiv 2410.08305)"
    citations: ClassVar[tuple[str, ...]] = ("malinovsky2024raclora",)
    space: ClassVar[Mapping[str, Range]] = {"lr": LogUniform(1e-4, 0.1), "schedule": Choice("constant", "cosine")}
    most_links: ClassVar[int] = 10
    """Number of links where `links` is none."""

    rank: PositiveInt = 2
    links: PositiveInt | None = None
    sketch: Sketch = "right"
    train: Literal["one", "both"] = "one"
    draw: Literal["uniform", "normal"] = "uniform"
    draw_std: PositiveFloat | None = None
    orthonormal: bool = False
    moments: Literal["fresh", "keep"] = "fresh"
    schedule_over: Literal["task", "link"] = "task"
    optimizer: Literal["sgd", "adam", "adamw"] = "adamw"
    lr: PositiveFloat = 1e-3
    boundary: Literal["stack", "merge"] = "stack"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.links is not None and self.links > self.epochs:
            raise UserError(
                f"a chain of {self.links} links does not fit into {self.epochs} epochs: each link needs one; choose "
                f"links of at most {self.epochs}, or more epochs"
            )
        if self.draw_std is not None and self.draw == "uniform":
            raise UserError(
                f"draw_std = {self.draw_std} is the standard deviation of normal draws, but draws are uniform: choose "
                "draw=normal, or leave it out"
            )

    @property
    def chain(self) -> list[int]:
        """Epochs of each link."""
        return divided(self.epochs, self.links or min(self.most_links, self.epochs))

    def bank(self, *shape: Any) -> SketchBank:
        std = None if self.draw == "uniform" else self.draw_std or 1 / math.sqrt(shape[0].embed_dim)
        return SketchBank(*shape, sketch=self.sketch, std=std, orthonormal=self.orthonormal)

    def direction_numbers(self, backbone: VisionTransformer) -> int:
        """Number of parameters of all links of a task."""
        return len(self.chain) * super().direction_numbers(backbone)

    def start(self, task: Task) -> None:
        """Start all links: one that has not been trained changes nothing."""
        for link in range(len(self.chain)):
            task.model.grow(self.rank, task.generator(f"direction-{link}" if link else "direction"))
            self.begin(task, link)

    def begin(self, task: Task, link: int) -> None:
        """Change a new link, the bank's last direction; by default, nothing."""

    def trained(self, A: nn.Parameter, B: nn.Parameter) -> list[nn.Parameter]:
        """The factors of a link that are trained."""
        return [A, B] if self.train == "both" else [B] if self.sketch == "right" else [A]

    def phases(self, task: Task) -> list[Phase]:
        phases = []
        for link, epochs in enumerate(self.chain):
            A, B = task.model.bank.direction(link - len(self.chain))
            parameters = [*self.trained(A, B), *task.model.head.parameters()]
            phases.append(self.phase([{"params": parameters}], self.objective(task), epochs=epochs))
        if self.schedule_over == "task":
            phases = scheduled_over_all(phases)
        return with_one_optimizer(phases, task.scratch) if self.moments == "keep" else phases

    def traces(self, task: Task) -> Traces:
        """Table `links`: by stage and link, the Frobenius `norm` of its update over all blocks and projections, the
        norm of the sum of the task's links up to it (`total`), and the number of `blocks` that it may change."""
        bank, count = task.model.bank, len(self.chain)
        own = range(len(bank) - count, len(bank))
        rows: list[dict[str, Scalar]] = []
        total = 0.0
        for link, k in enumerate(own):
            products = [float(bank.inner(k, other).sum().detach()) for other in own[: link + 1]]
            total += products[-1] + 2 * sum(products[:-1])
            blocks = int(bank.changes(k).sum())
            norms = {"norm": math.sqrt(max(products[-1], 0.0)), "total": math.sqrt(max(total, 0.0))}
            rows.append({"stage": task.index, "link": link, **norms, "blocks": blocks})
        return {"links": rows}
