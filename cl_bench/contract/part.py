"""What a method can take on besides its own maths."""

from __future__ import annotations

from collections.abc import Sequence

from timm.models.vision_transformer import VisionTransformer

from cl_bench.contract.phase import Phase
from cl_bench.contract.task import Task
from cl_bench.data.samples import TaskSamples
from cl_bench.models.base import FeatureModel


class Part:
    """Something that is added to a method's model and work, whatever the method is."""

    def extend(self, model: FeatureModel, method: str) -> None:
        """Add to the model of the named method, right after `Method.build`, what this part keeps in it.

        Raises:
            UserError: the model is not of the kind that it needs.
        """

    def phases(self, task: Task, samples: TaskSamples) -> list[Phase]:
        """What is done and optimised after the method's `after_task`; current samples only."""
        return []

    def storage(self, backbone: VisionTransformer, num_classes: int, classes: Sequence[int]) -> dict[str, int]:
        """As `Method.storage`: what this part keeps."""
        return {}
