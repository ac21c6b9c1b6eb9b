"""Experience replay (ER): fine-tuning on the images of each task together with exemplars of the tasks before it.

Each step takes a batch of the current task and as many images from the memory, and descends on the cross-entropy of
both ("On Tiny Episodic Memories in Continual Learning", Algorithm 1; Chaudhry et al., 2019, arXiv 1902.10486). New and
replayed experience have equal parts in CLEAR as well (Rolnick et al., NeurIPS 2019, arXiv 1811.11682).

Here the memory is balanced over the classes, a uniform sample of each class's images, and is updated when a task ends,
because a task is learned in several epochs; both papers see every image once and update it after every batch. Images
are augmented whenever they are drawn. `loss=masked` is the asymmetric loss of ER-ACE (Caccia et al., ICLR 2022, arXiv
2104.05025), with the classes of the task in place of those of the batch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from cl_bench.contract.rehearsal import Rehearsing
from cl_bench.experiment import Value

from .finetune import Finetune


@dataclass(frozen=True, kw_only=True, eq=False)
class Replay(Rehearsing, Finetune):
    """Hyper-parameters: `buffer_mb`, the size of the memory; all others are those of fine-tuning."""

    revision: ClassVar[int] = 1
    paper: ClassVar[str] = "experience replay (2019, arXiv 1902.10486)"
    citations: ClassVar[tuple[str, ...]] = ("chaudhry2019tiny", "rolnick2019replay")
    cited_with: ClassVar[Mapping[str, tuple[str, ...]]] = {"loss=masked": ("caccia2022erace",)}
    published: ClassVar[Mapping[str, Mapping[str, Value]]] = {}
