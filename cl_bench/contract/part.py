"""Parts: additions to a method's own maths that any method can take."""

from __future__ import annotations

from collections.abc import Sequence

from timm.models.vision_transformer import VisionTransformer

from cl_bench.contract.phase import Phase
from cl_bench.contract.task import Task, Traces
from cl_bench.data.samples import TaskSamples
from cl_bench.models.base import FeatureModel


class Part:
    """An addition to a method's model, training or records that works with any method, such as classifier alignment."""

    def extend(self, model: FeatureModel, method: str) -> None:
        """Add this part's modules and buffers to a model, right after `Method.build`.

        Args:
            model: the model to extend in place.
            method: name of the method's class, for messages.

        Raises:
            UserError: the model is not of the kind that this part needs.
        """

    def before_task(self, task: Task) -> None:
        """Work without gradients before the method's `before_task`; a run that resumes inside the task skips it."""

    def phases(self, task: Task, samples: TaskSamples) -> list[Phase]:
        """Do this part's work without gradients after the method's `after_task`, and return the phases to optimise.

        Args:
            task: the task that the method has learned.
            samples: training samples of this task.
        """
        return []

    def traces(self, task: Task) -> Traces:
        """Rows to store with the run after a task; see `Method.traces`."""
        return {}

    def storage(self, backbone: VisionTransformer, num_classes: int, classes: Sequence[int]) -> dict[str, int]:
        """Declare how many numbers this part stores, by kind; see `Method.storage`."""
        return {}
