"""PRoLoRA: low-rank factors made of rotated copies of a chunk (Wang et al., ACL 2024, arXiv 2402.16902).

Of the r ranks of a direction, u are those of LoRA, with A_u [u, d] and B_u [d, u]. The other R = r - u are made of one
chunk of each factor, A_0 [R, ceil(d / m)] and B_0 [ceil(d / n), R], and its rotated copies:

    A = [A_0, rot(A_0, s_A), ..., rot(A_0, (m - 1) s_A)], cut to d columns, above A_u
    B = [B_0; rot(B_0, s_B); ...; rot(B_0, (n - 1) s_B)], cut to d rows, left of B_u

where rot(A_0, s) has row (i + s) mod R of A_0 as its row i, and B_0 is rotated by columns. Without the rotation, chunks
would repeat, and the product would consist of m n equal blocks. The strides are s_A = max(floor(R / m), 1) and
s_B = max(floor(R / n), 1). A_0 and A_u start in +-1 / sqrt(d), the bound for the full width; B_0 and B_u at 0.

Checked against Forence1999/PRoLoRA @ 2e2b1ee, which trains language models. Equation 3 of the paper has strides from r
(`stride=rank`), the program from R, which need not be a multiple of m and n. The paper's recipe is rank 8, u = 1,
m = n = 7 and alpha = 16 (here, all directions have the scale 1 unless `alpha` is set), AdamW at 2e-4 with warm-up, and
a gradient clipped at 0.3. Its dropout of 0.1 in front of A is left out. Paper and program train one task; what happens
between tasks, and the learning rate, are our choice.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from pydantic import NonNegativeInt, PositiveFloat, PositiveInt
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from cl_bench.contract.method import Traces
from cl_bench.contract.search import Choice, LogUniform, Range
from cl_bench.contract.task import Task
from cl_bench.errors import UserError
from cl_bench.models.lora import LoRABank
from cl_bench.models.update_measures import energy

from .seqlora import SeqLoRA


class PRoLoRABank(LoRABank):
    """Directions whose parameters are the chunks and the unshared ranks of both factors.

    Args:
        shape: see `LoRABank`.
        unshared: number u of ranks that share nothing.
        shares: numbers m and n of chunks of A and of B.
        strides: rotations s_A and s_B from one chunk to the next, in ranks.
        full: whether chunks start in the bound of the full width d; otherwise in that of their own width.

    Attributes:
        chunks: widths of a chunk of A and of B.

    Raises:
        UserError: there are more chunks than the backbone's width; or see `LoRABank`.
    """

    parts = ("A", "B", "A_u", "B_u")

    def __init__(
        self, *shape: Any, unshared: int, shares: tuple[int, int], strides: tuple[int, int], full: bool
    ) -> None:
        super().__init__(*shape)
        if max(shares) > self.dim:
            raise UserError(
                f"PRoLoRA cannot cut a width of {self.dim} into {max(shares)} chunks: choose share_a and share_b of at "
                f"most {self.dim}"
            )
        self.unshared, self.shares, self.strides, self.full = unshared, shares, strides, full
        self.chunks = tuple(math.ceil(self.dim / count) for count in shares)

    def start(self, A: Tensor, B: Tensor, generator: torch.Generator) -> Sequence[Tensor]:
        shared = A.shape[2] - self.unshared
        wide, high = self.chunks
        chunk = A[:, :, :shared, :wide] * (1.0 if self.full else math.sqrt(self.dim / wide))
        return chunk, B[:, :, :high, :shared], A[:, :, shared:], B[..., shared:]

    def shared(self, k: int) -> tuple[Tensor, Tensor]:
        """The ranks of direction k that consist of rotated chunks: A [L, P, R, d] and B [L, P, d, R], unscaled."""
        (m, n), (s_A, s_B) = self.shares, self.strides
        A = torch.cat([self.A[k].roll(-j * s_A, dims=2) for j in range(m)], dim=3)
        B = torch.cat([self.B[k].roll(-j * s_B, dims=3) for j in range(n)], dim=2)
        return A[..., : self.dim], B[:, :, : self.dim]

    def factors(self, k: int) -> tuple[Tensor, Tensor]:
        _, _, A_u, B_u = self.direction(k)
        A, B = self.shared(k)
        B = torch.cat([B, B_u], dim=3)
        return torch.cat([A, A_u], dim=2), B if self.scale is None else B * self.scale


@dataclass(frozen=True, kw_only=True, eq=False)
class PRoLoRA(SeqLoRA):
    """Hyper-parameters; ranks and shares are the paper's at the budget of LoRA of rank 2.

    Attributes:
        unshared: number u of the ranks that share nothing; `rank` of them: LoRA.
        share_a: number m of chunks of A.
        share_b: number n of chunks of B.
        rotate: whether chunks are rotated.
        stride: ranks from which the strides follow: r - u (`shared`, code) or r (`rank`, the paper's Equation 3).
        bound: start of A_0 in +-1 / sqrt(d) (`full`) or +-1 / sqrt(ceil(d / m)) (`chunk`).
    """

    paper: ClassVar[str] = "PRoLoRA (ACL 2024, arXiv 2402.16902)"
    citations: ClassVar[tuple[str, ...]] = ("wang2024prolora",)
    space: ClassVar[Mapping[str, Range]] = {"lr": LogUniform(1e-4, 0.1), "schedule": Choice("constant", "cosine")}

    rank: PositiveInt = 8
    unshared: NonNegativeInt = 1
    share_a: PositiveInt = 7
    share_b: PositiveInt = 7
    rotate: bool = True
    stride: Literal["shared", "rank"] = "shared"
    bound: Literal["full", "chunk"] = "full"
    optimizer: Literal["sgd", "adam", "adamw"] = "adamw"
    lr: PositiveFloat = 1e-3

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.unshared > self.rank:
            raise UserError(
                f"PRoLoRA of rank {self.rank} cannot leave {self.unshared} ranks unshared: choose at most {self.rank}"
            )

    def bank(self, *shape: Any) -> PRoLoRABank:
        shares = (self.share_a, self.share_b)
        ranks = self.rank if self.stride == "rank" else self.rank - self.unshared
        s_A, s_B = (max(ranks // count, 1) if self.rotate else 0 for count in shares)
        return PRoLoRABank(*shape, unshared=self.unshared, shares=shares, strides=(s_A, s_B), full=self.bound == "full")

    def direction_numbers(self, backbone: VisionTransformer) -> int:
        dim, places = int(backbone.embed_dim), len(backbone.blocks) * len(self.targets)
        chunks = math.ceil(dim / self.share_a) + math.ceil(dim / self.share_b)
        return places * (2 * self.unshared * dim + (self.rank - self.unshared) * chunks)

    def traces(self, task: Task) -> Traces:
        """Table `shared_ranks`: how many `numbers` a projection's direction has, and what they do.

        `of_lora` is their ratio to those of LoRA of the same rank, and `energy` the share of the shared ranks in
        ||shared||_F^2 + ||unshared||_F^2 of the two parts of the direction, over all blocks and projections; it is left
        out while the direction is 0.
        """
        bank = task.model.bank
        numbers = sum(parameter[0, 0].numel() for parameter in bank.direction(-1))
        A, B = bank.shared(-1)
        A_u, B_u = bank.A_u[-1], bank.B_u[-1]
        shared, unshared = (float(energy((up @ down).detach()).sum()) for up, down in ((B, A), (B_u, A_u)))
        row = {"stage": task.index, "numbers": numbers, "of_lora": numbers / (2 * self.rank * bank.dim)}
        return {"shared_ranks": [row | ({"energy": shared / (shared + unshared)} if shared + unshared else {})]}
