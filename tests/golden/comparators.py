"""What the golden files of the comparators of 2024-26 have in common: sizes, streams of images, and training on them.

Methods are trained by our own strategy, on images in stored order, so that the numbers check the training loop, too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import numpy as np
import torch
from avalanche.benchmarks import benchmark_from_datasets
from avalanche.benchmarks.utils import as_classification_dataset
from avalanche.core import SupervisedPlugin
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from cl_bench.contract.method import Method
from cl_bench.models.adapters import Adapters
from cl_bench.randomness import Key
from cl_bench.training.strategy import ContinualStrategy
from tests.golden import Fixture
from tests.golden.recipe import HEADS, Recipe, gradient, normals

TESTED = 3
"""Test images per class."""
Named = Callable[[ContinualStrategy], Mapping[str, nn.Parameter]]
Initial = Callable[[int, str, tuple[int, ...]], Tensor | None]


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
        given = [dataset(*self.train_images(t)) for t in range(len(self.sizes))]
        return list(benchmark_from_datasets(train=given, test=given).streams["train"])


@dataclass
class Learned:
    """What a phase did.

    Attributes:
        losses: of every step, before it.
        gradients: of its first step.
        before, after: values of what it trains.
    """

    losses: list[float] = field(default_factory=list)
    gradients: dict[str, Tensor] = field(default_factory=dict)
    before: dict[str, Tensor] = field(default_factory=dict)
    after: dict[str, Tensor] = field(default_factory=dict)


class Watch(SupervisedPlugin):  # type: ignore[misc]
    """Sets what phases start with, and writes down what they do.

    Args:
        named: what the current phase trains, by its name in the file.
        initial: values that a parameter starts a phase with, from the task's number, its name and shape; None: it stays
            as it is.

    Attributes:
        phases: what was done, phase by phase, of all tasks.
    """

    def __init__(self, named: Named, initial: Initial) -> None:
        super().__init__()
        self.named, self.initial = named, initial
        self.phases: list[Learned] = []
        self._phase: object = None

    @torch.no_grad()
    def before_training_epoch(self, strategy: Any, **kwargs: Any) -> None:
        if strategy.phase is self._phase:
            return
        self._phase = strategy.phase
        self.phases.append(Learned())
        for name, parameter in self.named(strategy).items():
            value = self.initial(strategy.tasks_learned, name, tuple(parameter.shape))
            if value is not None:
                parameter.copy_(value)
            self.phases[-1].before[name] = parameter.clone()

    def before_update(self, strategy: Any, **kwargs: Any) -> None:
        if not self.phases[-1].losses:
            named = self.named(strategy)
            self.phases[-1].gradients = {name: gradient(parameter).clone() for name, parameter in named.items()}

    def after_training_iteration(self, strategy: Any, **kwargs: Any) -> None:
        self.phases[-1].losses.append(float(strategy.loss.detach()))

    def after_training_epoch(self, strategy: Any, **kwargs: Any) -> None:
        self.phases[-1].after = {name: value.detach().clone() for name, value in self.named(strategy).items()}


def bottlenecks(adapters: Adapters) -> dict[str, nn.Parameter]:
    """The parameters of adapters as files name them: `BLOCK.down_proj.weight` and so on."""
    found = adapters.blocks.named_parameters()
    return {name.replace("down", "down_proj").replace("up", "up_proj"): parameter for name, parameter in found}


def fresh_bottleneck(recipe: Recipe, adapter: str, name: str, shape: tuple[int, ...]) -> Tensor:
    """The value that a parameter of `bottlenecks` starts with, in the adapter of this name."""
    return recipe(f"{adapter}.{name.replace('_proj', '')}", shape, 0.2 if name.endswith("weight") else 0.02)


@contextmanager
def stored_order() -> Iterator[None]:
    """Nothing is shuffled."""
    with mock.patch("cl_bench.data.samples.permutation", lambda key, n: np.arange(n)):
        yield


@contextmanager
def drawn(run: Run) -> Iterator[None]:
    """In classifier alignment, features are drawn and put in order with the recipe's numbers."""

    def start(key: Key) -> str:
        # Of (seed, "task", task, name of the phase, epoch, what for).
        return f"{run.name}.t{key[2]}"

    def normal(classes: int, per_class: int, dim: int, generator: Key) -> Tensor:
        names = [f"{start(generator)}.z.e{generator[-2]}.c{c}" for c in range(classes)]
        return run.stacked(names, (per_class, dim))

    def order(key: Key, n: int) -> np.ndarray:
        return np.argsort(run(f"{start(key)}.perm.e{key[-2]}", (n,)).numpy(), kind="stable")

    statistics = "cl_bench.models.statistics"
    # The key takes the place of its generator.
    key_itself = mock.patch(f"{statistics}.generator", lambda key: key)
    with normals(normal), key_itself, mock.patch(f"{statistics}.permutation", order):
        yield


def dataset(images: Tensor, labels: Tensor) -> Any:
    """Images [n, C, H, W] and labels [n] as an Avalanche data set."""
    data: Any = TensorDataset(images, labels)
    data.targets = labels.tolist()
    return as_classification_dataset(data)
