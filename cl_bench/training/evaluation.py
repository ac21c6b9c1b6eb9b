"""Evaluation: counts the hits on all tasks of a test stream in one pass over the shuffled images."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from cl_bench.data.samples import Concatenated, samples_of
from cl_bench.errors import Diverged
from cl_bench.models.base import FeatureModel
from cl_bench.randomness import permutation
from cl_bench.training.phase_run import SMALLER_STEPS

Predict = Callable[[Tensor, bytes], Tensor]


@dataclass(frozen=True)
class Counts:
    """Hits of one evaluation over T tasks and n test images.

    Attributes:
        correct: hits per task, by argmax over all classes seen so far; None for tasks not learned yet.
        correct_task_aware: hits per task, by argmax over the task's own classes.
        total: number of images per task.
        label, task: label and task of each image, int16 [n].
        predicted, predicted_task_aware: predicted classes, int16 [n]; `predicted` is -1 where `correct` is None.
    """

    correct: list[int | None]
    correct_task_aware: list[int]
    total: list[int]
    label: NDArray[np.int16]
    task: NDArray[np.int16]
    predicted: NDArray[np.int16]
    predicted_task_aware: NDArray[np.int16]


class Evaluation:
    """Counts hits, and caches the frozen queries of the test images after the first pass.

    Args:
        num_classes: size of the label set of the whole stream.
    """

    def __init__(self, num_classes: int, device: torch.device) -> None:
        self.num_classes, self.device = num_classes, device
        self._queried: list[Any] = []
        self._queries: dict[bytes, Tensor | None] = {}

    # Not inference mode, which would compile one more graph.
    @torch.no_grad()
    def count(
        self, datasets: Sequence[Any], predict: Predict, classes: Iterable[int], learned: int | None, batch_size: int
    ) -> Counts:
        """Evaluate on the test images of all tasks.

        Images of all tasks are shuffled together (by a fixed key), so that no prediction can profit from batch
        neighbours of its own task. The device is synchronised once, at the end.

        Args:
            datasets: the test images of each task.
            predict: logits [B, num_classes] from (images [B, C, H, W], bytes that identify the chunk of test images).
            classes: classes seen so far.
            learned: number of tasks, from the first on, that count as learned; None: tasks of which all classes have
                been seen.
            batch_size: images per batch.

        Raises:
            Diverged: a logit is NaN, or the largest logit of an image is infinite.
        """
        if [id(d) for d in datasets] != [id(d) for d in self._queried]:
            self._queried, self._queries = list(datasets), {}
        parts = [samples_of(dataset) for dataset in datasets]
        images = Concatenated(parts)
        total = [len(part.labels) for part in parts]
        label = images.labels
        task = torch.repeat_interleave(torch.arange(len(parts)), torch.tensor(total))
        own = torch.zeros(len(parts), self.num_classes, dtype=torch.bool, device=self.device)
        for index, part in enumerate(parts):
            own[index, part.labels.unique().to(self.device)] = True
        known_classes = list(classes)
        seen = mask_of(known_classes, self.num_classes, self.device)
        order = permutation(("evaluation",), len(label))
        # Everything that the loop needs is copied to the device before it, since a copy in the loop would block it.
        tasks = task[torch.from_numpy(order)].to(self.device).split(batch_size)
        views = images.views(order, None, self.device, batch_size)
        predicted, task_aware, wrong = [], [], []
        for chunk, view, of in zip(_chunks(order, batch_size), views, tasks, strict=True):
            logits = predict(view, chunk.tobytes()).float()
            masked = logits.masked_fill(~seen, float("-inf"))
            predicted.append(masked.argmax(1))
            wrong.append(undecided(masked, logits) if known_classes else logits.isnan().any(1))
            task_aware.append(logits.masked_fill(~own[of], float("-inf")).argmax(1))
        inverse = torch.from_numpy(np.argsort(order))
        if number := int(torch.cat(wrong).sum()):
            raise Diverged(f"the logits of {number} of {len(label)} test images are not finite; {SMALLER_STEPS}")
        prediction = torch.cat(predicted).cpu()[inverse]
        prediction_task_aware = torch.cat(task_aware).cpu()[inverse]
        if learned is None:
            known = [bool((own[index] <= seen).all()) for index in range(len(parts))]
        else:
            known = [index < learned for index in range(len(parts))]
        prediction = torch.where(torch.tensor(known)[task], prediction, -1)
        hits = (prediction == label).split(total)
        hits_task_aware = (prediction_task_aware == label).split(total)
        return Counts(
            correct=[int(h.sum()) if k else None for h, k in zip(hits, known, strict=True)],
            correct_task_aware=[int(h.sum()) for h in hits_task_aware],
            total=total,
            label=label.numpy().astype(np.int16),
            task=task.numpy().astype(np.int16),
            predicted=prediction.numpy().astype(np.int16),
            predicted_task_aware=prediction_task_aware.numpy().astype(np.int16),
        )

    def predict(self, model: nn.Module, images: Tensor, chunk: bytes) -> Tensor:
        """Logits of a chunk of the test images, with frozen queries that are computed in the first pass only.

        This is exact: the test view is deterministic, the backbone frozen, and all passes have the same chunks.
        """
        if not isinstance(model, FeatureModel):
            return model(images)
        if chunk not in self._queries:
            self._queries[chunk] = model.query(images)
        query = self._queries[chunk]
        return model(images) if query is None else model(images, query)


def undecided(masked: Tensor, logits: Tensor) -> Tensor:
    """Which rows of logits [B, num_classes] give no valid prediction: any is NaN, or the largest is infinite; bool [B].

    Single logits of minus infinity are valid: a method may exclude classes.

    Args:
        masked: the same logits, with minus infinity for unseen classes.
    """
    return logits.isnan().any(1) | ~masked.amax(1).isfinite()


def mask_of(classes: Iterable[int], num_classes: int, device: torch.device) -> Tensor:
    """Mask that is true for these classes: bool [num_classes]."""
    mask = torch.zeros(num_classes, dtype=torch.bool, device=device)
    mask[list(classes)] = True
    return mask


def _chunks(order: NDArray[np.int64], size: int) -> list[NDArray[np.int64]]:
    return [order[start : start + size] for start in range(0, len(order), size)]
