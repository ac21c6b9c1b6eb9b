"""What the golden files of the comparators of 2024-26 have in common: sizes, streams of images, and training on them.

Methods are trained by our own strategy, on images in stored order, so that the numbers check the training loop, too.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import numpy as np
import torch
from avalanche.benchmarks import benchmark_from_datasets
from avalanche.benchmarks.utils import as_classification_dataset
from avalanche.core import SupervisedPlugin
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor
from torch.utils.data import TensorDataset

from cl_bench.contract.method import Method
from cl_bench.training.strategy import ContinualStrategy
from tests.golden import Fixture
from tests.golden.recipe import HEADS, Recipe

TESTED = 3
"""Test images per class."""


class Run(Recipe):
    """A stream of a file, and what is trained on it.

    Args:
        fixture: the file.
        name: of the method, which names of images begin with.

    Attributes:
        sizes: classes per task.
    """

    def __init__(self, fixture: Fixture, name: str) -> None:
        super().__init__(fixture)
        self.name = name
        self.dim, self.depth, self.batch = (self.size(key) for key in ("dim", "depth", "batch"))
        self.sizes = [int(size) for size in fixture["meta.sizes"]]
        fixture.verify("meta.heads", HEADS)
        total = sum(float(value.double().abs().sum()) for value in self.backbone().state_dict().values())
        fixture.verify("meta.vit_abs_sum", total, 1e-10)

    def size(self, key: str) -> int:
        """A number that the file tells."""
        return int(self.fixture[f"meta.{key}"])

    def number(self, key: str) -> float:
        """The same, not an integer."""
        return float(self.fixture[f"meta.{key}"])

    @property
    def classes(self) -> int:
        """Of all tasks."""
        return sum(self.sizes)

    def backbone(self) -> VisionTransformer:
        """A fresh one."""
        return self.vit(self.dim, self.depth)

    def train_images(self, t: int) -> tuple[Tensor, Tensor]:
        """Images [n, 3, 32, 32] of a task, one of each class after the other, and labels [n]."""
        first = sum(self.sizes[:t])
        return self._images("train", range(first, first + self.sizes[t]), self.size("per_class"))

    def test_images(self, t: int | None = None) -> tuple[Tensor, Tensor]:
        """The same to be tested on after a task: of all classes seen by then, or of all."""
        seen = self.classes if t is None else sum(self.sizes[: t + 1])
        return self._images("test", range(seen), TESTED)

    def _images(self, kind: str, classes: range, each: int) -> tuple[Tensor, Tensor]:
        shape = (3, 32, 32)
        drawn = [
            self(f"{self.name}.mu.c{c}", shape) + self(f"{self.name}.{kind}.c{c}", (each, *shape), 0.6) for c in classes
        ]
        return torch.stack(drawn, dim=1).flatten(0, 1), torch.tensor(list(classes)).repeat(each)

    def strategy(self, method: Method, *plugins: SupervisedPlugin) -> ContinualStrategy:
        """A strategy for the method on a fresh backbone."""
        return ContinualStrategy(
            plugins=[method, *plugins],
            backbone=self.backbone(),
            num_classes=self.classes,
            num_tasks=len(self.sizes),
        )

    def experiences(self) -> list[Any]:
        """The tasks, as `ContinualStrategy.train` takes them."""
        given = [_dataset(*self.train_images(t)) for t in range(len(self.sizes))]
        return list(benchmark_from_datasets(train=given, test=given).streams["train"])


@contextmanager
def stored_order() -> Iterator[None]:
    """Nothing is shuffled."""
    with mock.patch("cl_bench.data.samples.permutation", lambda key, n: np.arange(n)):
        yield


def _dataset(images: Tensor, labels: Tensor) -> Any:
    data: Any = TensorDataset(images, labels)
    data.targets = labels.tolist()
    return as_classification_dataset(data)
