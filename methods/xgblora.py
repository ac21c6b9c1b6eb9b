"""XGBLoRA: boosting by updates of rank 1 (Zhang et al., arXiv 2410.19694).

A task is learned by a chain of boosters. Each has rank 1 and changes only L_s of the L blocks, drawn at random; it is
trained on the task's loss from the model that the earlier ones have made, and merged:

    W_k = W_{k-1} + c B_k A_k,    A_k drawn as in LoRA, B_k = 0 at the start, both trained

with c = `shrinkage`, 1 in the paper (times alpha / r if `alpha` is set). The loss may have the paper's penalty on the
size of the current booster, `norm_penalty` (||A_k||_F^2 + ||B_k||_F^2), whose weight is not to be found.

There is no program of the authors. This follows the paper's abstract and public reviews, by which 11 of 32 blocks of a
language model are best, hence a third of the blocks here. The number of boosters, their even shares of the epochs,
learning rate and weight decay are our choice. In public reimplementations, the optimiser goes on from one booster to
the next (`moments=keep`). A booster trains few numbers, but the boosters of all tasks together store many.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from pydantic import NonNegativeFloat, PositiveInt
from torch import Tensor

from cl_bench.contract.search import Choice, LogUniform, Range
from cl_bench.contract.task import Task
from cl_bench.errors import UserError

from .raclora import RACLoRA, SketchBank


@dataclass(frozen=True, kw_only=True, eq=False)
class XGBLoRA(RACLoRA):
    """Hyper-parameters; `links` are the boosters of a task.

    Attributes:
        links: number of boosters per task, which divide the task's epochs evenly; none: 20, or one per epoch if there
            are fewer.
        blocks: number L_s of blocks that a booster changes; none: a third of all.
        select: blocks are drawn `uniform`ly, or so that the task's boosters use all of them equally often (`balanced`),
            or a booster changes `all`.
        shrinkage: factor c on every booster.
        norm_penalty: weight of the squared norms of the current booster's factors in the loss.
    """

    paper: ClassVar[str] = "XGBLoRA (arXiv 2410.19694)"
    citations: ClassVar[tuple[str, ...]] = ("zhang2024xgblora",)
    space: ClassVar[Mapping[str, Range]] = {"lr": LogUniform(1e-4, 0.1), "schedule": Choice("constant", "cosine")}
    most_links: ClassVar[int] = 20

    rank: PositiveInt = 1
    train: Literal["one", "both"] = "both"
    blocks: PositiveInt | None = None
    select: Literal["uniform", "balanced", "all"] = "uniform"
    shrinkage: NonNegativeFloat = 1.0
    norm_penalty: NonNegativeFloat = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.select == "all" and self.blocks is not None:
            raise UserError(
                f"boosters that change all blocks (select=all) cannot be limited to {self.blocks}: leave out one of "
                "select and blocks"
            )

    def bank(self, *shape: Any) -> SketchBank:
        bank = super().bank(*shape)
        if self.blocks is not None and self.blocks > bank.blocks:
            raise UserError(
                f"a booster of XGBLoRA cannot change {self.blocks} blocks of a backbone with {bank.blocks}: choose at "
                f"most {bank.blocks}"
            )
        if self.shrinkage != 1:
            bank.scale = self.shrinkage * (1.0 if bank.scale is None else bank.scale)
        return bank

    @torch.no_grad()
    def begin(self, task: Task, link: int) -> None:
        """Draw the booster's blocks. In the others, both factors are 0, and so are their gradients: they stay 0."""
        bank = task.model.bank
        count = self.blocks or max(1, round(bank.blocks / 3))
        if self.select == "all" or count == bank.blocks:
            return
        order = torch.rand(bank.blocks, generator=task.generator(f"blocks-{link}"), device="cpu")
        if self.select == "balanced" and link:
            # Draws are below 1, so they only decide between blocks that have been used equally often.
            order += torch.stack([bank.changes(k) for k in range(-link - 1, -1)]).sum(0).cpu()
        others = order.argsort()[count:].to(task.model.device)
        for factor in bank.direction(-1):
            factor[others] = 0.0

    def penalty(self, task: Task) -> Tensor | None:
        if not self.norm_penalty:
            return None
        trained = [factor for factor in task.model.bank.parameters() if factor.requires_grad]
        return self.norm_penalty * torch.stack([factor.square().sum() for factor in trained]).sum()
