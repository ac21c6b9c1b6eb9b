"""PRILoRA: ranks that grow with depth, and pruning (Benedek & Wolf, Findings of EACL 2024, arXiv 2401.11316).

From the paper alone: no program could be obtained. Two ideas:

- *ranks*: block l of L has the rank r_l = r_1 + (r_L - r_1) (l - 1) / (L - 1), rounded; 4 to 12 in the paper, so that
  the mean, the budget, is 8;
- *pruning*: now and then while training, the entries of A that matter least are set to 0. The importance of A_ij is
  |A_ij| ||X_j||, where ||X_j|| is a running average of the norm of the j-th input feature over the tokens of a batch. B
  is not pruned.

How the importance is computed in detail, how often and how much is pruned, and whether pruned entries may grow again
could not be confirmed from a source: `prune_*`, `importance`, `norm_*`, `regrow`, `rounding`, `scale_by` are fields,
and their defaults our choice, as are what happens between tasks and the learning rate. The average and the pruning
start anew with each task. q, k and v of a block share one input, so one average.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field, PositiveFloat, PositiveInt
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from cl_bench.contract.method import Traces
from cl_bench.contract.phase import Phase
from cl_bench.contract.search import Choice, LogUniform, Range
from cl_bench.contract.task import Task
from cl_bench.data.samples import TaskSamples
from cl_bench.errors import UserError
from cl_bench.models.lora import LoRABank
from cl_bench.models.update_measures import energy

from .seqlora import SeqLoRA

Group = Literal["row", "column", "matrix"]
Share = Annotated[float, Field(ge=0, lt=1)]
_NORMS, _PRUNED, _REMOVED, _COUNT, _DENSITY = "input norms", "pruned", "removed", "prunings", "density before the task"


def ranks_of(blocks: int, first: int, last: int, rounding: Literal["nearest", "floor"] = "nearest") -> list[int]:
    """Rank of each block: linear in depth from `first` to `last`; a single block has their mean."""
    places = [block / (blocks - 1) for block in range(blocks)] if blocks > 1 else [0.5]
    return [math.floor(first + (last - first) * place + (0.5 if rounding == "nearest" else 0)) for place in places]


def lowest(importance: Tensor, share: float, group: Group) -> Tensor:
    """Entries to be pruned: in each group, the share of lowest importance, rounded down; of equal ones, the last.

    Args:
        importance: [P, r, d] of a block's A.
        group: a row (the d inputs of a rank), a column (the r ranks of an input), or the whole matrix.

    Returns:
        bool [P, r, d].
    """
    grouped = {"row": importance, "column": importance.mT, "matrix": importance.flatten(1)}[group]
    count = math.floor(share * grouped.shape[-1] + 1e-9)
    order = grouped.argsort(dim=-1, descending=True, stable=True)[..., grouped.shape[-1] - count :]
    chosen = torch.zeros_like(grouped, dtype=torch.bool).scatter(-1, order, True)
    return chosen.mT if group == "column" else chosen.view_as(importance)


class PRILoRABank(LoRABank):
    """Directions of which each block has a rank of its own: A [P, R, d] and B [P, d, R] with the sum R of the ranks.

    `factors` fills up with zeros to the largest rank.

    Args:
        shape: see `LoRABank`; its rank is the largest of all blocks.
        ranks: rank r_l of each block.
        by_layer: whether block l is scaled by alpha / r_l; otherwise by alpha over the mean rank.
    """

    def __init__(self, *shape: Any, ranks: Sequence[int], by_layer: bool) -> None:
        backbone, targets, _, alpha = shape
        super().__init__(backbone, targets, max(ranks), alpha)
        self.ranks = list(ranks)
        mean = sum(ranks) / len(ranks)
        self.scales = [1.0 if alpha is None else alpha / (rank if by_layer else mean) for rank in ranks]

    def grow(self, rank: int, generator: torch.Generator, device: torch.device, zero: bool = True) -> None:
        """Add a direction that starts like the first r_l ranks of LoRA of the largest rank; `rank` has no effect."""
        super().grow(max(self.ranks), generator, device, zero)

    def start(self, A: Tensor, B: Tensor, generator: torch.Generator) -> Sequence[Tensor]:
        packed_A = torch.cat([block[:, :rank] for block, rank in zip(A, self.ranks, strict=True)], dim=1)
        packed_B = torch.cat([block[..., :rank] for block, rank in zip(B, self.ranks, strict=True)], dim=2)
        return packed_A, packed_B

    def factors(self, k: int) -> tuple[Tensor, Tensor]:
        most, As, Bs = max(self.ranks), self.A[k].split(self.ranks, dim=1), self.B[k].split(self.ranks, dim=2)
        pairs = zip(Bs, self.scales, strict=True)
        A = torch.stack([nn.functional.pad(block, (0, 0, 0, most - block.shape[1])) for block in As])
        return A, torch.stack([nn.functional.pad(block * s, (0, most - block.shape[2])) for block, s in pairs])


@dataclass(frozen=True, kw_only=True, eq=False)
class PRILoRA(SeqLoRA):
    """Hyper-parameters; the paper's ranks, 4 to 12, have the mean 8. All others are our choice.

    Attributes:
        rank: mean rank of the blocks; the rank of the last one is 2 rank - rank_first.
        rank_first: rank of the first block; none: half the mean, rounded down.
        rounding: how ranks are rounded; `floor` may give fewer in all than the mean rank.
        scale_by: with `alpha`, block l is scaled by alpha / r_l (`layer`) or by alpha / rank (`mean`).
        prune_every: steps from one pruning to the next.
        prune_share: share of the entries of A that a pruning sets to 0, rounded down in each group.
        prune_group: entries that are ranked together: each rank's inputs (`row`), each input's ranks (`column`), or all
            of a block and projection (`matrix`).
        prune_end: share of a task's steps after which nothing is pruned any more.
        importance: |A_ij| times the average norm of input j, or |A_ij| alone.
        norm_decay: share of the old average that a new norm leaves.
        norm_when: whether norms are averaged over the batches of all steps (another pass each), or over those of the
            steps that prune.
        regrow: whether pruned entries are trained on; otherwise they stay 0 until the task ends.
    """

    paper: ClassVar[str] = "PRILoRA (Findings of EACL 2024, arXiv 2401.11316; from the paper, no program)"
    citations: ClassVar[tuple[str, ...]] = ("benedek2024prilora",)
    space: ClassVar[Mapping[str, Range]] = {
        "lr": LogUniform(1e-4, 0.1),
        "schedule": Choice("constant", "cosine"),
        "prune_share": Choice(0.25, 0.5, 0.75),
    }

    rank: PositiveInt = 8
    rank_first: PositiveInt | None = None
    rounding: Literal["nearest", "floor"] = "nearest"
    scale_by: Literal["layer", "mean"] = "layer"
    prune_every: PositiveInt = 40
    prune_share: Share = 0.5
    prune_group: Group = "row"
    prune_end: Annotated[float, Field(ge=0, le=1)] = 1.0
    importance: Literal["magnitude*norm", "magnitude"] = "magnitude*norm"
    norm_decay: Share = 0.9
    norm_when: Literal["step", "prune"] = "prune"
    regrow: bool = True
    optimizer: Literal["sgd", "adam", "adamw"] = "adamw"
    lr: PositiveFloat = 1e-3

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.rank_first is not None and self.rank_first >= 2 * self.rank:
            raise UserError(
                f"PRILoRA of mean rank {self.rank} with {self.rank_first} in the first block leaves no rank to the "
                f"last one: choose rank_first of at most {2 * self.rank - 1}"
            )
        if "proj" in self.targets and self.importance != "magnitude" and self.prune_share:
            raise UserError(
                "PRILoRA knows the inputs of q, k and v, not those of proj: leave this target out, or choose "
                "importance=magnitude"
            )

    def ranks(self, blocks: int) -> list[int]:
        """Rank of each block."""
        first = max(self.rank // 2, 1) if self.rank_first is None else self.rank_first
        return ranks_of(blocks, first, 2 * self.rank - first, self.rounding)

    def bank(self, *shape: Any) -> PRILoRABank:
        return PRILoRABank(*shape, ranks=self.ranks(len(shape[0].blocks)), by_layer=self.scale_by == "layer")

    def direction_numbers(self, backbone: VisionTransformer) -> int:
        return len(self.targets) * 2 * sum(self.ranks(len(backbone.blocks))) * int(backbone.embed_dim)

    def before_task(self, task: Task, images: TaskSamples) -> None:
        super().before_task(task, images)
        bank, scratch = task.model.bank, task.scratch
        scratch[_NORMS] = torch.zeros(bank.blocks, bank.dim)
        scratch[_REMOVED], scratch[_COUNT] = torch.zeros(bank.blocks), torch.zeros(())
        scratch[_DENSITY] = density(bank)
        if not self.regrow:
            scratch[_PRUNED] = torch.zeros_like(bank.A[-1], dtype=torch.bool)

    def phases(self, task: Task) -> list[Phase]:
        model, scratch = task.model, task.scratch
        by_norm = self.importance == "magnitude*norm" and self.prune_share > 0

        def prunes(step: int, steps: int) -> bool:
            return step % self.prune_every == 0 and step <= self.prune_end * steps

        def before_step(images: Tensor, step: int, steps: int) -> None:
            if by_norm and (self.norm_when == "step" or prunes(step, steps)):
                seen = model.vit.attention_inputs(images, weights=model.weights())
                norms = torch.stack([x.flatten(0, 1).norm(dim=0) for x in seen])
                first = step == (1 if self.norm_when == "step" else self.prune_every)
                scratch[_NORMS].copy_(norms if first else scratch[_NORMS].lerp(norms, 1 - self.norm_decay))

        def after_step(step: int, steps: int) -> None:
            if self.prune_share and prunes(step, steps):
                self.prune(task)
            if not self.regrow:
                model.bank.A[-1].masked_fill_(scratch[_PRUNED], 0.0)

        return [self.direction_phase(task, before_step=before_step, after_step=after_step)]

    def prune(self, task: Task) -> None:
        """Set the least important entries of the last direction's A to 0, by the norms in the task's scratch."""
        bank, scratch = task.model.bank, task.scratch
        norms = scratch[_NORMS] if self.importance == "magnitude*norm" else torch.ones_like(scratch[_NORMS])
        removed = []
        for number, A in enumerate(bank.A[-1].split(bank.ranks, dim=1)):
            chosen = lowest(A.abs() * norms[number], self.prune_share, self.prune_group)
            removed.append(energy(A.masked_fill(~chosen, 0.0)).sum() / energy(A).sum())
            if not self.regrow:
                scratch[_PRUNED].split(bank.ranks, dim=1)[number].copy_(chosen)
            A.masked_fill_(chosen, 0.0)
        scratch[_REMOVED].add_(torch.stack(removed))
        scratch[_COUNT].add_(1)

    def traces(self, task: Task) -> Traces:
        """Table `pruned`: how a block's A was pruned in the task.

        `rank` is the block's, `density_before` and `density` the shares of entries other than 0 before and after the
        task, `prunings` their number, and `removed` the mean share of ||A||_F^2 that one of them set to 0; it is left
        out if there was none.
        """
        bank, scratch = task.model.bank, task.scratch
        prunings = int(scratch[_COUNT])
        columns = zip(bank.ranks, scratch[_DENSITY].tolist(), density(bank).tolist(), strict=True)
        rows: Traces = {"pruned": []}
        for block, (rank, before, after) in enumerate(columns):
            row = {"stage": task.index, "block": block, "rank": rank, "density_before": before, "density": after}
            removed = {"removed": float(scratch[_REMOVED][block]) / prunings} if prunings else {}
            rows["pruned"].append(row | {"prunings": prunings} | removed)
        return rows


def density(bank: PRILoRABank) -> Tensor:
    """Share of entries of the last direction's A that are not 0, by block, [L]."""
    return torch.stack([(A != 0).float().mean() for A in bank.A[-1].split(bank.ranks, dim=1)])
