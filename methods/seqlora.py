"""Sequential LoRA: one low-rank update, trained on one task after the other, without any protection from forgetting.

The floor of the LoRA family. Tables of InfLoRA, SD-LoRA and LoRA-P&M use the name for various targets, heads and
masks; the defaults here are q and v, one head, and the masked loss, all of which are fields.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from .inclora import IncLoRA


@dataclass(frozen=True, kw_only=True, eq=False)
class SeqLoRA(IncLoRA):
    """Hyper-parameters of the one low-rank update."""

    paper: ClassVar[str] = "sequential LoRA (floor)"
    citations: ClassVar[tuple[str, ...]] = ("hu2022lora",)

    boundary: Literal["continue", "stack", "merge"] = "continue"
