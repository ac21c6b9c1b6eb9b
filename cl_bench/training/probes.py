"""Probes: optional measurements of a run, too expensive to be made in every run.

A probe examines the model after each stage and adds rows to the strategy's traces; it does not change the run.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor, nn

from cl_bench.contract.phase import described
from cl_bench.errors import UserError
from cl_bench.experiment import ProbeName, Scalar
from cl_bench.models.lora import LoRAModel
from cl_bench.training.strategy import ContinualStrategy


class Probe:
    """Interface of all probes; this one measures nothing."""

    @classmethod
    def check(cls, model: nn.Module, method: str) -> None:
        """Raise `UserError` if the probe cannot measure this model of the named method."""

    def after_stage(self, index: int, strategy: ContinualStrategy, test: Iterable[Any]) -> None:
        """Measure after stage `index` (from 0) has been trained and evaluated; `test` is the test stream."""

    def tensors(self) -> dict[str, Tensor]:
        """State of the probe for a checkpoint."""
        return {}

    def load(self, tensors: Mapping[str, Tensor], model: nn.Module) -> None:
        """Restore the state of the probe from a checkpoint of this model.

        Raises:
            ValueError: the state does not fit the model.
        """


class Interpolation(Probe):
    """Accuracy along the line between the weight updates after tasks t - 1 and t (SD-LoRA, arXiv 2501.13198, Fig. 4).

    The weights are W0 + (1 - x) U_{t-1} + x U_t for x = 0, 0.1, ..., 1, with the head after task t. The trace
    `interpolation` has the columns stage (t), x, task (t - 1 or t, which is tested), correct (hits, by argmax over the
    classes seen) and total (test images).
    """

    STEPS = 10

    def __init__(self) -> None:
        self.before: Tensor | None = None

    @classmethod
    def check(cls, model: nn.Module, method: str) -> None:
        if not isinstance(model, LoRAModel):
            raise UserError(
                f"--probe interpolation needs low-rank updates, and '{method}' has none; take a LoRA method"
            )

    def after_stage(self, index: int, strategy: ContinualStrategy, test: Iterable[Any]) -> None:
        model: Any = strategy.model
        update = model.update().detach().clone()
        tested = list(test)[max(index - 1, 0) : index + 1]
        rows: list[dict[str, Scalar]] = []
        if self.before is not None:
            for x in (step / self.STEPS for step in range(self.STEPS + 1)):
                mixed = model.merged((1 - x) * self.before.to(update.device) + x * update)
                counts = strategy.count_matrix(tested, learned=2, model=mixed)
                for task, hits, total in zip((index - 1, index), counts.correct, counts.total, strict=True):
                    rows.append({"stage": index, "x": x, "task": task, "correct": hits, "total": total})
            strategy.traces.setdefault("interpolation", []).extend(rows)
        self.before = update

    def tensors(self) -> dict[str, Tensor]:
        return {} if self.before is None else {"before": self.before}

    def load(self, tensors: Mapping[str, Tensor], model: nn.Module) -> None:
        assert isinstance(model, LoRAModel)
        before = tensors.get("before")
        if before is not None and before.shape != model.update().shape:
            raise ValueError(f"the update before the last task is {described(before)}")
        self.before = before


PROBES: Mapping[ProbeName, type[Probe]] = {"none": Probe, "interpolation": Interpolation}
