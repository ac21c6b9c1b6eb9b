"""The base class of LoRA methods: what all of them record about the updates that they learn."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from cl_bench.contract.gradient import GradientMethod
from cl_bench.contract.method import Traces
from cl_bench.contract.part import Part
from cl_bench.contract.task import Task
from cl_bench.experiment import Scalar
from cl_bench.models.lora import LoRAModel
from cl_bench.models.update_measures import cosine, effective_rank, energy, input_overlap, output_overlap

_BEFORE = "update before the task"


class LearnedUpdates(Part):
    """Traces how each task changes the update of the weights, in the table `updates`.

    With U_t the whole update of a projection after task t and D_t = U_t - U_{t-1}, a row has, by stage and projection:
    `norm` and `change`, the Frobenius norms of U_t and D_t over all blocks; `rank` and `change_rank`, their effective
    ranks (see `cl_bench.models.update_measures`); and `cosine`, `input_overlap`, `output_overlap` of D_t and U_{t-1}.
    The last five are means over blocks. A value that is undefined (an update of 0) is left out.
    """

    def before_task(self, task: Task) -> None:
        if (update := _update(task.model)) is not None:
            task.scratch[_BEFORE] = update

    def traces(self, task: Task) -> Traces:
        update = _update(task.model)
        if update is None:
            return {}
        before = task.scratch.get(_BEFORE, torch.zeros_like(update))
        change = update - before
        # By block and projection.
        measured = {
            "rank": effective_rank(update),
            "change_rank": effective_rank(change),
            "cosine": cosine(change, before),
            "input_overlap": input_overlap(change, before),
            "output_overlap": output_overlap(change, before),
        }
        norms = {"norm": energy(update).sum(0).sqrt(), "change": energy(change).sum(0).sqrt()}
        columns = norms | {name: values.mean(0) for name, values in measured.items()}
        rows: list[dict[str, Scalar]] = []
        for number, target in enumerate(task.model.bank.targets):
            values = {name: float(column[number]) for name, column in columns.items()}
            defined = {name: value for name, value in values.items() if value == value}
            rows.append({"stage": task.index, "target": target, **defined})
        return {"updates": rows}


def _update(model: LoRAModel) -> Tensor | None:
    """The update [L, P, d, d] with which the model predicts; None: nothing has been learned yet."""
    if not len(model.bank) and model.bank.base is None:
        return None
    training = model.training
    try:
        return model.eval().update()
    finally:
        model.train(training)


@dataclass(frozen=True, kw_only=True, eq=False)
class LoRAMethod(GradientMethod):
    """A method whose model is a `LoRAModel`; it records what every task does to the update of the weights."""

    @property
    def parts(self) -> tuple[Part, ...]:
        return (*super().parts, LearnedUpdates())
