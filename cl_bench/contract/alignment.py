"""Classifier alignment: from the second task on, the head is trained on features drawn from class statistics.

From SLCA (Zhang et al., ICCV 2023, arXiv 2303.05118), checked against GengDavid/SLCA @ 169d4e6.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field, PositiveFloat, PositiveInt
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from cl_bench.contract import schedules
from cl_bench.contract.losses import masked_cross_entropy
from cl_bench.contract.method import Method
from cl_bench.contract.part import Part
from cl_bench.contract.phase import Phase
from cl_bench.contract.task import Task
from cl_bench.data.samples import TaskSamples
from cl_bench.errors import UserError
from cl_bench.models.base import FeatureModel
from cl_bench.models.heads import task_norm
from cl_bench.models.statistics import ClassStatistics, Covariance


@dataclass(frozen=True, kw_only=True)
class Alignment(Part):
    """Classifier alignment (SLCA; Zhang et al., ICCV 2023, arXiv 2303.05118).

    Stores a Gaussian of each class's features and, after each task but the first, trains the head on features drawn
    from them.

    Attributes:
        epochs: epochs of the alignment (SGD, momentum 0.9, cosine schedule).
        lr: learning rate of the alignment.
        samples: drawn features per class and epoch; also the batch size.
        covariance: stored form of covariances, see `ClassStatistics`.
        temperature: logits are divided by this and by the mean norm of a task's logits; None: not divided.
        shrink: how far the means of the oldest classes are pulled towards 0, see `ClassStatistics.draw`.
        restore: whether the next task continues from the head as it was before alignment.
        weight_decay: weight decay of the alignment.
    """

    epochs: int = 5
    lr: float = 0.01
    samples: int = 256
    covariance: Covariance = "full"
    temperature: float | None = 0.1
    shrink: float = 0.1
    restore: bool = True
    weight_decay: float = 5e-4

    def extend(self, model: FeatureModel, method: str) -> None:
        if not isinstance(model.head, nn.Linear):
            raise UserError(f"align=true: {method} trains no linear head that could be aligned")
        model.keep_statistics(self.covariance, self.restore)

    def collect(self, model: FeatureModel, samples: TaskSamples) -> tuple[Tensor, Tensor]:
        """Compute the features [n, d] of a task that the statistics describe, and their labels [n]."""
        return samples.collect(model.own_features)

    def phases(self, task: Task, samples: TaskSamples) -> list[Phase]:
        model = task.model
        with torch.no_grad():
            features, labels = self.collect(model, samples)
            model.statistics.update(features, labels, task.index)
        head = model.head
        if model.aligned is not None:
            head = model.aligned
            head.load_state_dict(model.head.state_dict())
        return [self.phase(task, model.statistics, head, list(head.parameters()), "align")] if task.index else []

    def phase(
        self,
        task: Task,
        statistics: ClassStatistics,
        head: Callable[[Tensor], Tensor],
        parameters: list[Any],
        name: str,
    ) -> Phase:
        """Make the phase that trains a head on features drawn from class statistics.

        Args:
            task: the task that has been learned.
            statistics: Gaussians of all classes seen so far.
            head: maps features [B, d] to logits [B, num_classes].
            parameters: parameters of the head to train.
            name: name of the phase's random draws.
        """
        tasks = statistics.by_task()
        cross_entropy = masked_cross_entropy(statistics.labels.tolist(), task.num_classes)

        def loss(logits: Tensor, labels: Tensor) -> Tensor:
            if self.temperature is not None:
                logits = logits / (task_norm(logits, tasks) * self.temperature)
            return cross_entropy(logits, labels)

        return Phase(
            parameters=[{"params": parameters}],
            epochs=self.epochs,
            batch_size=self.samples,
            loss=loss,
            optimizer=lambda groups: torch.optim.SGD(groups, lr=self.lr, momentum=0.9, weight_decay=self.weight_decay),
            schedule=lambda epoch, epochs: schedules.cosine(None, epoch, epochs),
            forward=head,
            batches=lambda epoch: statistics.batches(self.samples, (*task.key, name, epoch), self.shrink),
        )

    def storage(self, backbone: VisionTransformer, num_classes: int, classes: Sequence[int]) -> dict[str, int]:
        dim = int(backbone.num_features)
        return {
            "statistics": ClassStatistics.numbers(self.covariance, dim, classes),
            "aligned head": num_classes * (dim + 1) * self.restore,
        }


@dataclass(frozen=True, kw_only=True, eq=False)
class Alignable(Method):
    """A method with classifier alignment as an option.

    Attributes:
        align: classifier alignment (SLCA, ICCV 2023, arXiv 2303.05118): store a Gaussian of each class's features and,
            after each task but the first, train the head on features drawn from them.
        align_epochs: epochs of the alignment (SGD, momentum 0.9, weight decay 5e-4, cosine schedule).
        align_lr: learning rate of the alignment.
        align_samples: drawn features per class and epoch; also the batch size.
        align_covariance: stored form of covariances: `full`, `variance` (diagonal) or `shared` (one for all classes).
        align_temperature: logits are divided by this and by the mean norm of a task's logits; none: not divided.
        align_shrink: how far the means of the oldest classes are pulled towards 0.
        align_restore: whether the next task continues from the head as it was before alignment.
    """

    cited_with: ClassVar[Mapping[str, tuple[str, ...]]] = {"align=true": ("zhang2023slca",)}

    align: bool = False
    align_epochs: PositiveInt = 5
    align_lr: PositiveFloat = 0.01
    align_samples: PositiveInt = 256
    align_covariance: Covariance = "full"
    align_temperature: PositiveFloat | None = 0.1
    align_shrink: Annotated[float, Field(ge=0, lt=1)] = 0.1
    align_restore: bool = True

    @property
    def alignment(self) -> Alignment:
        """Alignment with these hyper-parameters, whether or not `align` is set."""
        return Alignment(
            epochs=self.align_epochs,
            lr=self.align_lr,
            samples=self.align_samples,
            covariance=self.align_covariance,
            temperature=self.align_temperature,
            shrink=self.align_shrink,
            restore=self.align_restore,
        )

    @property
    def parts(self) -> tuple[Part, ...]:
        return (*super().parts, self.alignment) if self.align else super().parts
