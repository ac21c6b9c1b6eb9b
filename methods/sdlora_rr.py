"""SD-LoRA-RR: SD-LoRA with a rank that falls with the task index (Wu et al., ICLR 2025, arXiv 2501.13198, Eq. 6).

Tasks before the mu-th have rank r, those from the nu-th on the smallest one. The paper counts tasks from 1; the
released code (WuYichen-97/SD-Lora-CL @ 8bacded, there commented out) compares the same mu and nu with an index that
starts at 0, so that each drop comes one task later.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from pydantic import PositiveInt
from timm.models.vision_transformer import VisionTransformer

from cl_bench.errors import UserError
from cl_bench.models.base import FeatureModel

from .sdlora import SDLoRA


@dataclass(frozen=True, kw_only=True, eq=False)
class SDLoRARR(SDLoRA):
    """Hyper-parameters of SD-LoRA, and the rank schedule; `rank` is the rank of the first tasks.

    Attributes:
        rank_mu, rank_nu: ranks from the mu-th and from the nu-th task on.
        mu, nu: tasks at which the rank falls.
        index: whether tasks count from 1 (`paper`) or from 0 (`code`).
    """

    revision: ClassVar[int] = 1
    paper: ClassVar[str] = "SD-LoRA-RR (ICLR 2025, arXiv 2501.13198)"

    rank_mu: PositiveInt = 8
    rank_nu: PositiveInt = 6
    mu: PositiveInt = 4
    nu: PositiveInt = 8
    index: Literal["paper", "code"] = "paper"

    def build(self, backbone: VisionTransformer, num_classes: int) -> FeatureModel:
        if not self.rank >= self.rank_mu >= self.rank_nu or self.mu > self.nu:
            raise UserError(
                f"ranks {self.rank}, {self.rank_mu}, {self.rank_nu} from tasks 1, {self.mu}, {self.nu} on: "
                "sdlora-rr needs ranks that never rise and mu <= nu"
            )
        return super().build(backbone, num_classes)

    def rank_of(self, index: int) -> int:
        position = index + (self.index == "paper")
        return self.rank if position < self.mu else self.rank_mu if position < self.nu else self.rank_nu
