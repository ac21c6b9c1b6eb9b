"""LoRA Dropout: inputs and outputs of the update are dropped at random while training (Lin et al., arXiv 2404.09610).

From the paper alone: no program could be obtained. In every step, each projection gets masks m_A [d] and m_B [d], whose
entries are 1 with the probability 1 - p, and computes with

    diag(m_B) B A diag(m_A)

so that whole columns of A and rows of B are dropped, never ranks: an entry of the update is 0 with the probability
2 p - p^2. The loss is the mean of the cross-entropy over N draws of all masks (`instances`), each a pass of its own.
The paper predicts by an ensemble of masked models (`ensemble`), too; without it, a prediction is one pass without
masks.

The formulas of the paper do not rescale by 1 / (1 - p), so that a single pass without masks has an update that is too
large. `rescale` is our addition: `train` divides both masks by 1 - p, `test` multiplies the update by (1 - p)^2.
Neither p, nor N, nor what the ensemble averages could be confirmed from a source: `rate`, `instances`, `ensemble` and
`ensemble_on` are our choice, as are what happens between tasks and the learning rate. Masks concern the direction that
is trained; earlier ones (`stack`, `merge`) count with the mean of their masked updates.

The masks of the ensemble are drawn at the end of a task and stored, so that a prediction depends on its image alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from cl_bench.contract.method import Traces
from cl_bench.contract.phase import Loss, Phase
from cl_bench.contract.search import Choice, LogUniform, Range
from cl_bench.contract.task import Task
from cl_bench.data.samples import TaskSamples
from cl_bench.errors import UserError
from cl_bench.experiment import Scalar
from cl_bench.models.lora import LoRABank, LoRAModel
from cl_bench.models.update_measures import energy

from .seqlora import SeqLoRA

_COLUMNS, _ROWS = "masks of A", "masks of B"
Masks = tuple[Tensor, Tensor]
"""Masks of the columns of A and of the rows of B, each [N, L, P, d] or, of one draw, [L, P, d]."""


class DropoutBank(LoRABank):
    """A bank whose last direction can be masked."""

    def masked(self, earlier: Tensor, masks: Masks, dtype: torch.dtype | None = None) -> Tensor:
        """Sum of the base, the earlier directions and the masked last one, diag(m_B) B A diag(m_A), [L, P, d, d].

        Args:
            earlier: coefficient of the earlier directions, a scalar tensor.
            masks: m_A and m_B of one draw, each [L, P, d].
            dtype: see `LoRABank.update`.
        """
        columns, rows = masks
        A, B = self.factors(-1)
        update = (B * rows[..., None]) @ (A * columns[:, :, None])
        if len(self) > 1:
            coefficients = earlier.expand(len(self), self.blocks, len(self.targets)).clone()
            coefficients[-1] = 0
            return self.update(coefficients, dtype) + update
        return update if self.base is None else self.base + update


class Average(nn.Module):
    """The mean of several models' logits, or the logarithm of the mean of their probabilities over the classes seen."""

    def __init__(self, models: Sequence[nn.Module], mean: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.models, self.mean = nn.ModuleList(models), mean

    def forward(self, images: Tensor) -> Tensor:
        return self.mean(torch.stack([model(images) for model in self.models]))


class LoRADropoutModel(LoRAModel):
    """A LoRA model that predicts by an ensemble of masked updates, if it has masks.

    Args:
        shape: see `LoRAModel`; its bank is a `DropoutBank`.
        members: size N of the ensemble; 0: a prediction is one pass without masks.
        of_probabilities: whether the ensemble averages probabilities over the classes seen; otherwise logits.
        kept: factor on what a mask keeps, 1 or 1 / (1 - p).
        last: coefficient of the last direction without masks.
        earlier: coefficient of earlier directions, the mean of their masks' products.

    Attributes:
        columns, rows: masks of the ensemble, bool [N, L, P, d].
        seen: classes seen so far, bool [num_classes]; only if the ensemble averages probabilities.
    """

    bank: DropoutBank
    columns: Tensor
    rows: Tensor
    seen: Tensor

    def __init__(
        self, *shape: Any, members: int, of_probabilities: bool, kept: float, last: float, earlier: float
    ) -> None:
        super().__init__(*shape)
        self.members, self.of_probabilities, self.kept, self.last = members, of_probabilities, kept, last
        self.earlier = earlier
        if members:
            places = (members, self.bank.blocks, len(self.bank.targets), self.bank.dim)
            self.register_buffer("columns", torch.ones(places, dtype=torch.bool))
            self.register_buffer("rows", torch.ones(places, dtype=torch.bool))
            if of_probabilities:
                self.register_buffer("seen", torch.ones(shape[1], dtype=torch.bool))

    def coefficients(self) -> Tensor:
        coefficients = super().coefficients() * self.earlier
        coefficients[-1:] = self.last
        return coefficients

    def merge(self) -> None:
        self.bank.fold(super().coefficients() * self.earlier)

    def masked(self, masks: Masks, dtype: torch.dtype | None = None) -> Tensor:
        """Update [L, P, d, d] with the masks of one draw, each [L, P, d]."""
        return self.bank.masked(torch.full((), self.earlier, device=self.device), masks, dtype)

    def masked_features(self, images: Tensor, masks: Masks) -> Tensor:
        """Features [B, d] of images with the masks of one draw, each [L, P, d]."""
        update = self.masked(masks, self.vit.execution.dtype)
        return self.vit.features(images, weights=self.bank.weights(self.backbone, update))

    def draws(self) -> list[Masks]:
        """The masks of the ensemble; none before the first task."""
        if not self.members or not len(self.bank):
            return []
        return [(m_A * self.kept, m_B * self.kept) for m_A, m_B in zip(self.columns, self.rows, strict=True)]

    def update(self) -> Tensor:
        """Change of the projections, [L, P, d, d]; of an ensemble, the mean of its members' changes."""
        draws = self.draws()
        return torch.stack([self.masked(masks) for masks in draws]).mean(0) if draws else super().update()

    def features(self, images: Tensor) -> Tensor:
        """CLS features [B, d]; of an ensemble, the mean of its members' features."""
        draws = self.draws()
        if not draws:
            return super().features(images)
        return torch.stack([self.masked_features(images, masks) for masks in draws]).mean(0)

    def mean(self, logits: Tensor) -> Tensor:
        """Logits [B, C] of an ensemble from those of its members [N, B, C]."""
        if not self.of_probabilities:
            return logits.mean(0)
        total = logits.masked_fill(~self.seen, float("-inf")).logsumexp(dim=2, keepdim=True)
        return torch.logsumexp(logits - total, dim=0) - math.log(len(logits))

    def forward(self, images: Tensor) -> Tensor:
        draws = self.draws()
        if not draws:
            return super().forward(images)
        return self.mean(torch.stack([self.classify(self.masked_features(images, masks)) for masks in draws]))

    @torch.no_grad()
    def merged(self, update: Tensor | None = None) -> nn.Module:
        draws = [] if update is not None else self.draws()
        if not draws:
            return super().merged(update)
        member, dtype = super().merged, self.vit.execution.dtype
        return Average([member(self.masked(masks, dtype)) for masks in draws], self.mean).eval()


@dataclass(frozen=True, kw_only=True, eq=False)
class LoRADropout(SeqLoRA):
    """Hyper-parameters.

    Attributes:
        rate: probability p that an entry of a mask is 0.
        instances: number N of draws per step, each with a pass of its own.
        ensemble: number of masked models that predict; 0: one model without masks.
        ensemble_on: what the ensemble averages: probabilities over the classes seen, or logits.
        rescale: divide masks by 1 - p (`train`), or multiply the update without masks by (1 - p)^2 (`test`); `never`
            as in the paper's formulas. `auto`: `train` without an ensemble, `never` with one.
        share_masks: whether the projections of a block, which have the same input, share m_A.
    """

    paper: ClassVar[str] = "LoRA Dropout (arXiv 2404.09610; from the paper, no program)"
    citations: ClassVar[tuple[str, ...]] = ("lin2024loradropout",)
    space: ClassVar[Mapping[str, Range]] = {
        "lr": LogUniform(1e-4, 0.1),
        "schedule": Choice("constant", "cosine"),
        "rate": Choice(0.1, 0.3, 0.5),
    }

    rank: PositiveInt = 8
    rate: Annotated[float, Field(ge=0, lt=1)] = 0.5
    instances: PositiveInt = 1
    ensemble: NonNegativeInt = 0
    ensemble_on: Literal["probabilities", "logits"] = "probabilities"
    rescale: Literal["auto", "never", "train", "test"] = "auto"
    share_masks: bool = False
    optimizer: Literal["sgd", "adam", "adamw"] = "adamw"
    lr: PositiveFloat = 1e-3

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.ensemble and self.rescale == "test":
            raise UserError(
                "LoRA Dropout rescales at test (rescale=test) a prediction without masks, but an ensemble has masks: "
                "choose rescale=never or rescale=train"
            )

    @property
    def rescaled(self) -> str:
        """When the update is rescaled: `never`, `train` or `test`."""
        if self.rescale != "auto":
            return self.rescale
        return "never" if self.ensemble else "train"

    def passes(self, tasks: int) -> int:
        return max(self.ensemble, 1)

    def bank(self, *shape: Any) -> DropoutBank:
        return DropoutBank(*shape)

    def model(self, backbone: VisionTransformer, num_classes: int) -> LoRAModel:
        mean = (1 - self.rate) ** 2
        return LoRADropoutModel(
            *(backbone, num_classes, self.targets, self.rank, self.alpha, self.bank),
            members=self.ensemble,
            of_probabilities=self.ensemble_on == "probabilities",
            kept=1 / (1 - self.rate) if self.rescaled == "train" else 1.0,
            last=mean if self.rescaled == "test" else 1.0,
            earlier=1.0 if self.rescaled == "train" else mean,
        )

    def storage(self, backbone: VisionTransformer, num_classes: int, classes: Sequence[int]) -> dict[str, int]:
        numbers = super().storage(backbone, num_classes, classes)
        if self.ensemble:
            places = len(backbone.blocks) * len(self.targets)
            numbers["masks"] = self.ensemble * places * 2 * int(backbone.embed_dim)
            if self.ensemble_on == "probabilities":
                numbers["classes seen"] = num_classes
        return numbers

    def draw(self, task: Task, purpose: str, count: int) -> Masks:
        """Draw masks for a purpose in this task, each bool [count, L, P, d] on the CPU."""
        bank, generator = task.model.bank, task.generator(purpose)
        targets = len(bank.targets)
        columns = torch.rand(count, bank.blocks, 1 if self.share_masks else targets, bank.dim, generator=generator)
        rows = torch.rand(count, bank.blocks, targets, bank.dim, generator=generator)
        return (columns >= self.rate).expand_as(rows), rows >= self.rate

    def before_task(self, task: Task, images: TaskSamples) -> None:
        super().before_task(task, images)
        model = task.model
        if model.members and model.of_probabilities:
            model.seen.zero_()[list(task.seen)] = True

    def phases(self, task: Task) -> list[Phase]:
        model, scratch = task.model, task.scratch
        for name in (_COLUMNS, _ROWS):
            # Places for the masks of a step: a captured step reads them there.
            scratch.setdefault(name, torch.zeros(self.instances, *model.bank.A[-1].shape[:2], model.bank.dim))

        def before_step(images: Tensor, step: int, steps: int) -> None:
            for name, masks in zip((_COLUMNS, _ROWS), self.draw(task, f"mask-{step}", self.instances), strict=True):
                scratch[name].copy_(masks * model.kept)

        def forward(images: Tensor) -> tuple[Tensor, ...]:
            draws = zip(scratch[_COLUMNS], scratch[_ROWS], strict=True)
            return tuple(model.classify(model.masked_features(images, masks)) for masks in draws)

        return [self.direction_phase(task, forward=forward, before_step=before_step)]

    def objective(self, task: Task) -> Loss:
        """Per-sample cross-entropy, averaged over the draws of masks."""
        cross_entropy = self.cross_entropy(task)

        def loss(outputs: Any, labels: Tensor) -> Tensor:
            logits = outputs if isinstance(outputs, tuple) else (outputs,)
            return torch.stack([cross_entropy(each, labels) for each in logits]).mean(0)

        return loss

    def after_task(self, task: Task, images: TaskSamples) -> None:
        if self.ensemble:
            columns, rows = self.draw(task, "ensemble", self.ensemble)
            task.model.columns.copy_(columns)
            task.model.rows.copy_(rows)

    def traces(self, task: Task) -> Traces:
        """Table `masks`: what masks keep of the direction learned in the task.

        `kept` is the share of ||B A||_F^2 that the masks of the last step kept, over all blocks, projections and draws,
        without rescaling; (1 - p)^2 on average for masks that the direction does not adapt to. `entries` is the share
        of its entries.
        """
        A, B = task.model.bank.factors(-1)
        whole = (B @ A).detach()
        columns, rows = (task.scratch[name] != 0 for name in (_COLUMNS, _ROWS))
        places = rows[..., None] & columns[..., None, :]
        entries = float(places.float().mean())
        row: dict[str, Scalar] = {"stage": task.index, "entries": entries}
        total = float(energy(whole).sum()) * len(places)
        kept = {"kept": float(energy(whole * places).sum()) / total} if total else {}
        return {"masks": [row | kept]}
