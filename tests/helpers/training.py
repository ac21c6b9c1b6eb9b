"""Training of rows on the tiny stream, and helpers to compare states before and after."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Any

import numpy as np
import torch
from avalanche.benchmarks.utils import as_classification_dataset
from avalanche.core import SupervisedPlugin
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from cl_bench.contract.method import Method
from cl_bench.streams.scenarios import TaskStream
from cl_bench.training.evaluation import Counts
from cl_bench.training.strategy import ContinualStrategy
from tests.helpers.rows import small
from tests.helpers.tiny import CLASSES, TASKS, cut, tiny_vit


def strategy_of(plugin: Method, *others: SupervisedPlugin, **arguments: Any) -> ContinualStrategy:
    """A strategy on a fresh tiny ViT."""
    return ContinualStrategy(
        **{"backbone": tiny_vit(), "num_classes": CLASSES, "num_tasks": TASKS, "plugins": [plugin, *others]} | arguments
    )


def experiences(plugin: Method, stream: TaskStream) -> list[Any]:
    """The experiences that a method trains on, one per stage."""
    return list(stream.joint if plugin.trains_on == "stream" else stream.train)


def train(strategy: ContinualStrategy, stream: TaskStream, stages: int | None = None) -> ContinualStrategy:
    for experience in experiences(strategy.method, stream)[:stages]:
        strategy.train(experience, eval_streams=[])
    return strategy


@cache
def trained(name: str) -> ContinualStrategy:
    """A trained strategy, cached: tests that use it must not change the model."""
    return train(strategy_of(small(name, lr=0.01)), cut())


def snapshot(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def images_of(experience: Any) -> tuple[Tensor, Tensor]:
    items = [experience.dataset[i] for i in range(len(experience.dataset))]
    return torch.stack([item[0] for item in items]), torch.tensor([item[1] for item in items])


def assert_same_counts(left: Counts, right: Counts) -> None:
    for field in dataclasses.fields(Counts):
        np.testing.assert_array_equal(getattr(left, field.name), getattr(right, field.name), err_msg=field.name)


class Spy(SupervisedPlugin):
    """A plugin whose hooks call the given functions with the strategy."""

    def __init__(self, **hooks: Callable[[Any], None]) -> None:
        super().__init__()
        for name, hook in hooks.items():
            setattr(self, name, partial(self._call, hook))

    @staticmethod
    def _call(hook: Callable[[Any], None], strategy: Any, **kwargs: Any) -> None:
        hook(strategy)


def foreign(labels: Sequence[int], generator: torch.Generator) -> Any:
    """An Avalanche data set without our image store: one noisy image per label."""
    target = torch.tensor(labels, dtype=torch.int64)
    means = (target / 2.5 - 1).view(-1, 1, 1, 1)
    data = TensorDataset(means + 0.3 * torch.randn(len(target), 1, 32, 32, generator=generator), target)
    data.targets = target.tolist()  # type: ignore[attr-defined]
    return as_classification_dataset(data)


@torch.no_grad()
def one_by_one(strategy: ContinualStrategy, stream: Any, classes: Sequence[Sequence[int]]) -> dict[str, np.ndarray]:
    """Predictions of the bare model, one image at a time: the definition that counts are checked against."""
    strategy.model.eval()
    found: dict[str, list[int]] = {"predicted": [], "predicted_task_aware": []}
    for experience, own in zip(stream, classes, strict=True):
        for image in images_of(experience)[0]:
            logits = strategy.model(image[None])[0]
            seen = list(strategy.seen)
            known = set(own) <= set(seen)
            found["predicted"].append(seen[int(logits[seen].argmax())] if known else -1)
            found["predicted_task_aware"].append(list(own)[int(logits[list(own)].argmax())])
    return {name: np.array(values) for name, values in found.items()}


def all_images() -> Tensor:
    return torch.cat([images_of(experience)[0] for experience in cut().test])


def distance(left: Tensor, right: Tensor) -> float:
    """max |left - right| / max |right|."""
    return float((left - right).detach().abs().max() / right.detach().abs().max())
