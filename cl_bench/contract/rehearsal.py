"""Rehearsal: a method keeps exemplars, images of past tasks, and trains on them with the images of each new task."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from pydantic import PositiveFloat
from timm.models.vision_transformer import VisionTransformer

from cl_bench.contract.method import Method
from cl_bench.contract.part import Part
from cl_bench.contract.phase import Phase
from cl_bench.contract.task import Task
from cl_bench.data.rehearsal import stored_images
from cl_bench.data.samples import TaskSamples
from cl_bench.errors import UserError
from cl_bench.models.base import FeatureModel
from cl_bench.models.exemplars import MEGABYTE


@dataclass(frozen=True, kw_only=True)
class Rehearsal(Part):
    """A memory of exemplars, `model.exemplars`, that is filled after each task (see `models.exemplars.Exemplars`).

    Attributes:
        megabytes: size of the memory in MB of 10^6 bytes.
    """

    megabytes: float

    def extend(self, model: FeatureModel, method: str) -> None:
        model.keep_exemplars(self.megabytes)

    def phases(self, task: Task, samples: TaskSamples) -> list[Phase]:
        memory = task.model.exemplars
        labels = samples.samples.labels.numpy()
        drawn = torch.randint(2**31 - 1, (len(labels),), generator=task.generator("exemplars")).numpy()
        memory.offer(labels, drawn, lambda positions: stored_images(samples.samples, positions))
        if not len(memory):
            raise UserError(f"a memory of {self.megabytes:g} MB holds not a single image of this stream; enlarge it")
        return []

    def storage(self, backbone: VisionTransformer, num_classes: int, classes: Sequence[int]) -> dict[str, int]:
        return {"exemplars": int(self.megabytes * MEGABYTE)}


@dataclass(frozen=True, kw_only=True, eq=False)
class Rehearsing(Method):
    """A method that keeps exemplars, images of past tasks, and trains on them; a base to add to a method's own.

    Phases of `GradientMethod.phase` add as many exemplars to each step as `batch_size`. With `loss=masked`, only the
    current task's classes compete for its own samples, and all classes seen for exemplars (ER-ACE; Caccia et al., ICLR
    2022); with `loss=all`, all classes seen compete for both.

    Attributes:
        buffer_mb: size of the memory in MB (10^6 bytes) of stored uint8 pixels, and 20 bytes per image for its label,
            size and rank.
    """

    stores: ClassVar[str] = "exemplars"
    exemplars: ClassVar[str] = "buffer_mb"

    buffer_mb: PositiveFloat = 1.0

    @property
    def parts(self) -> tuple[Part, ...]:
        return (*super().parts, Rehearsal(megabytes=self.buffer_mb))
