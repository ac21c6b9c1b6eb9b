"""BeamLoRA: ranks that matter least are replaced by earlier states of those that matter most (ACL 2025).

Gu et al., arXiv 2502.13604. A direction is B diag(c) A with the scores c = r softmax(g / tau) of a gate g [r] per
projection, which starts at 0: all scores are 1 there, and their sum is always r. Every T steps:

    pruned    in the list of all scores of all projections, from the highest down, all from the first position where the
              running sum exceeds p(t) times the whole sum
    replaced  a projection with K pruned ranks shuffles its K best ones; the i-th pruned rank gets the row of A and the
              column of B that the i-th of them had T / 2 steps before, and both get the mean of their gates

and p(t) = 1 - (1 - p) (1 + cos(pi (t - 1) / T_end)) / 2 rises from p to 1, where nothing is pruned any more. The
function changes: duplicates are not halved. If K > r / 2, a rank may be pruned and a partner; the partner's gate is
written last.

Checked against gccnlp/BeamLoRA @ 2610c6a, which trains language models. Notes on the paper prune within each projection
(`scope=module`), the program over all. The program means to give a replaced rank the moments of its partner
(`moments=inherit`), but writes them into a copy, so those of A and B stay (`keep`); moments of all gates are cleared.

The program's recipe is rank 64, alpha = 128 (here, all directions have the scale 1 unless `alpha` is set), AdamW at
3e-4, tau = 0.05, T = 3,000 of 37,031 steps, p = 0.95, and T_end at two thirds of the steps; the last T steps replace
nothing. T from the number of `operations`, what happens between tasks, rank, and learning rate are our choice.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from cl_bench.contract.method import Traces
from cl_bench.contract.phase import Phase, ReachableOptimizer
from cl_bench.contract.search import Choice, LogUniform, Range
from cl_bench.contract.task import Task
from cl_bench.models.gated import GatedBank

from .seqlora import SeqLoRA

Scope = Literal["all", "module"]


def kept_share(elapsed: int, end: float, start: float) -> float:
    """Share p of the scores' sum that is kept after a number of steps: from `start` up to 1 at the step `end`."""
    return 1.0 if elapsed >= end else 1 - (1 - start) * (1 + math.cos(math.pi * elapsed / end)) / 2


def pruned(scores: Tensor, share: float, scope: Scope) -> Tensor:
    """Whether a rank is pruned, [L, P, r], from its score [L, P, r]; none is at a share of 1."""
    if share >= 1:
        return torch.zeros_like(scores, dtype=torch.bool)
    lists = scores.double().flatten() if scope == "all" else scores.double()
    descending, places = lists.sort(dim=-1, descending=True, stable=True)
    beyond = descending.cumsum(-1) > share * lists.shape[-1]
    return torch.zeros_like(beyond).scatter(-1, places, beyond).view_as(scores)


class BeamLoRABank(GatedBank):
    """Directions whose ranks are weighted by r softmax(g / tau).

    Args:
        shape: see `LoRABank`.
        temperature: tau.
    """

    def __init__(self, *shape: Any, temperature: float) -> None:
        super().__init__(*shape)
        self.temperature = temperature

    def start_gates(self, shape: torch.Size, generator: torch.Generator) -> Tensor:
        return torch.zeros(shape)

    def weights_of_ranks(self, k: int) -> Tensor:
        gate = self.gate[k]
        return gate.shape[-1] * (gate / self.temperature).softmax(-1)


@dataclass(frozen=True, kw_only=True, eq=False)
class BeamLoRA(SeqLoRA):
    """Hyper-parameters; temperature, share and end of the pruning are the program's.

    Attributes:
        temperature: tau.
        share: p, the share of the scores' sum that the first replacement keeps at least.
        operations: T is the number of steps of a task divided by this, at least 2; 0: nothing is replaced.
        pruning_end: T_end as a share of the steps of a task.
        scope: scores that share one list: of `all` projections, or of one (`module`).
        moments: replaced ranks `keep` the optimiser's moments of A and B, or `inherit` those of their partners.
        history: replaced ranks get their partner's A and B from T / 2 steps before (`half`), or the `current` ones.
        gate_lr: learning rate of the gates; none: `lr`; 0: LoRA, as no rank's score differs from the others'.
    """

    paper: ClassVar[str] = "BeamLoRA (ACL 2025, arXiv 2502.13604)"
    citations: ClassVar[tuple[str, ...]] = ("gu2025beamlora",)
    space: ClassVar[Mapping[str, Range]] = {
        "lr": LogUniform(1e-4, 0.1),
        "schedule": Choice("constant", "cosine"),
        "temperature": LogUniform(0.01, 1.0),
    }

    rank: PositiveInt = 8
    temperature: PositiveFloat = 0.05
    share: Annotated[float, Field(gt=0, le=1)] = 0.95
    operations: NonNegativeInt = 12
    pruning_end: PositiveFloat = 2 / 3
    scope: Scope = "all"
    moments: Literal["keep", "inherit"] = "keep"
    history: Literal["half", "current"] = "half"
    gate_lr: NonNegativeFloat | None = None
    optimizer: Literal["sgd", "adam", "adamw"] = "adamw"
    lr: PositiveFloat = 1e-3

    def bank(self, *shape: Any) -> BeamLoRABank:
        return BeamLoRABank(*shape, temperature=self.temperature)

    def direction_numbers(self, backbone: VisionTransformer) -> int:
        return GatedBank.numbers(backbone, self.targets, self.rank)

    def phases(self, task: Task) -> list[Phase]:
        bank, gate_lr = task.model.bank, self.lr if self.gate_lr is None else self.gate_lr
        groups = bank.groups(task.model.head.parameters(), gate_lr)
        made = ReachableOptimizer(self.optimization(groups).optimizer)

        def beam(step: int, steps: int) -> None:
            period = max(2, steps // self.operations)
            if (step + period // 2) % period == 0:
                task.scratch.update({f"earlier {name}": ranks for name, ranks in self.inherited(task, made).items()})
            if step % period == 0 and steps - step >= period:
                self.replace(task, made, step, kept_share(step - 1, self.pruning_end * steps, self.share))

        return [self.phase(groups, self.objective(task), optimizer=made, after_step=beam if self.operations else None)]

    def inherited(self, task: Task, made: ReachableOptimizer) -> dict[str, Tensor]:
        """Views [L, P, r, d] of what replaced ranks get from their partners, by name."""
        A, B, _ = task.model.bank.direction(-1)
        ranks = {"A": A, "B": B.mT}
        if self.moments == "inherit":
            ranks |= {f"A {name}": moment for name, moment in made.moments(A).items()}
            ranks |= {f"B {name}": moment.mT for name, moment in made.moments(B).items()}
        return ranks

    def order(self, task: Task, step: int, block: int, projection: int, count: int) -> Tensor:
        """Order of the best ranks of a projection in which they replace the pruned ones, a permutation of `count`."""
        return torch.randperm(count, generator=task.generator(f"beam-{step}-{block}-{projection}"))

    def replace(self, task: Task, made: ReachableOptimizer, step: int, share: float) -> None:
        """Replace the ranks that lie beyond a share of the scores' sum, and clear the moments of the gates."""
        gate = task.model.bank.gate[-1]
        ranks = self.inherited(task, made)
        earlier = {
            name: task.scratch[f"earlier {name}"] if self.history == "half" else now.clone()
            for name, now in ranks.items()
        }
        scores = task.model.bank.weights_of_ranks(-1).cpu()
        lost = pruned(scores, share, self.scope)
        counts = lost.sum(-1)
        for block, p in counts.nonzero().tolist():
            count = int(counts[block, p])
            best = scores[block, p].argsort(descending=True, stable=True)[:count]
            partners = best[self.order(task, step, block, p, count)].to(gate.device)
            replaced = lost[block, p].nonzero()[:, 0].to(gate.device)
            for name, now in ranks.items():
                now[block, p, replaced] = earlier[name][block, p, partners]
            mean = (gate[block, p, replaced] + gate[block, p, partners]) / 2
            gate[block, p, replaced] = mean
            gate[block, p, partners] = mean
        for moment in made.moments(gate).values():
            moment.zero_()
        task.scratch["replaced"] = counts + task.scratch.get("replaced", torch.zeros_like(counts)).cpu()

    def traces(self, task: Task) -> Traces:
        """Table `beams`, by stage and block: ranks `replaced` during the task, and the `largest` and `smallest` score.

        `replaced` is the number over all replacements and projections of the block; scores are means over projections.
        """
        scores = task.model.bank.weights_of_ranks(-1).detach()
        replaced = task.scratch.get("replaced", torch.zeros(scores.shape[:2]))
        largest, smallest = scores.amax(-1).mean(-1), scores.amin(-1).mean(-1)
        columns = zip(replaced.sum(-1).tolist(), largest.tolist(), smallest.tolist(), strict=True)
        return {
            "beams": [
                {"stage": task.index, "block": block, "replaced": int(count), "largest": high, "smallest": low}
                for block, (count, high, low) in enumerate(columns)
            ]
        }
