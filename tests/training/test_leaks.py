"""Predictions depend on the image alone, and not on batch size, order or the other images of the batch."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from avalanche.benchmarks import benchmark_from_datasets
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from cl_bench.contract.gradient import GradientMethod
from cl_bench.contract.losses import masked_cross_entropy
from cl_bench.contract.phase import Phase
from cl_bench.contract.task import Task
from cl_bench.models.base import FeatureModel
from cl_bench.models.heads import Classifier
from cl_bench.training.strategy import ContinualStrategy
from tests.helpers.rows import NAMES, QUICK, ROWS, small
from tests.helpers.tiny import TASKS, cut
from tests.helpers.training import (
    experiences,
    images_of,
    one_by_one,
    same,
    snapshot,
    strategy_of,
    train,
    trained,
)

pytestmark = pytest.mark.usefixtures("one_thread")


@dataclass(frozen=True, kw_only=True, eq=False)
class BatchLeak(GradientMethod):
    """A leak for the audit to find: logits are centred over the batch."""

    def build(self, backbone: VisionTransformer, num_classes: int) -> FeatureModel:
        class Leaky(Classifier):
            def forward(self, images: Tensor) -> Tensor:
                logits = super().forward(images)
                return logits - logits.mean(dim=0)

        return Leaky(backbone, num_classes)

    def phases(self, task: Task) -> list[Phase]:
        return [self.phase([{"params": list(task.model.head.parameters())}], masked_cross_entropy(task.classes, 40))]


def audit(strategy: ContinualStrategy) -> None:
    """Predictions depend on the image alone, and not on batch size, order or the other images of the batch."""
    stream = cut()
    classes = stream.tasks
    direct = one_by_one(strategy, stream.test, classes)
    before, size = snapshot(strategy.model), strategy.eval_mb_size
    for strategy.eval_mb_size in (1, 7, 128):
        counts = strategy.count_matrix(stream.test)
        for name, expected in direct.items():
            np.testing.assert_array_equal(getattr(counts, name), expected, err_msg=f"{name} {strategy.eval_mb_size}")
    strategy.eval_mb_size = size
    for chosen in ([1], [2, 0], [0, 1], [2, 1, 0]):
        counts = strategy.count_matrix([stream.test[task] for task in chosen])
        whole = np.repeat(np.arange(TASKS), counts.total[0])
        for name, expected in direct.items():
            rows = np.concatenate([expected[whole == task] for task in chosen])
            np.testing.assert_array_equal(getattr(counts, name), rows, err_msg=f"{name} of tasks {chosen}")
    shuffled = [np.random.default_rng(task).permutation(len(e.dataset)) for task, e in enumerate(stream.test)]
    datasets = [e.dataset.subset(o.tolist()) for e, o in zip(stream.test, shuffled, strict=True)]
    other = benchmark_from_datasets(test=datasets).streams["test"]
    counts = strategy.count_matrix(other)
    for name, expected in direct.items():
        rows = np.concatenate([part[o] for part, o in zip(np.split(expected, TASKS), shuffled, strict=True)])
        np.testing.assert_array_equal(getattr(counts, name), rows, err_msg=f"{name}, shuffled")
    assert same(before, strategy.model.state_dict()), "evaluation changed the model"
    # Logits are more sensitive than predictions: single images, batches, and batches in reverse order.
    strategy.model.eval()
    images = torch.cat([images_of(experience)[0] for experience in stream.test])
    with torch.no_grad():
        alone = torch.cat([strategy.model(image[None]) for image in images])
        scale = float(alone.abs().max())
        for company in (strategy.model(images), strategy.model(images.flip(0)).flip(0)):
            assert float((company - alone).abs().max()) < 1e-4 * scale


@pytest.mark.parametrize("name", ROWS)
def test_predictions_depend_on_the_image_alone(name: str) -> None:
    strategy = trained(name)
    audit(strategy)
    assert len(set(strategy.count_matrix(cut().test).predicted_task_aware)) > 5, "too uniform to tell a leak"


def test_the_audit_finds_a_leak() -> None:
    with pytest.raises(AssertionError, match="predicted.* 7"):
        audit(train(strategy_of(BatchLeak(lr=0.1, **QUICK)), cut()))


@pytest.mark.parametrize("name", NAMES)
def test_remembered_queries_change_nothing(name: str) -> None:
    """Evaluate twice after each stage, and alternate between two streams of equal shape."""
    stream, twin = cut(), cut(order="permutation:4")
    strategy = strategy_of(small(name, lr=0.01), eval_mb_size=10)
    for experience in experiences(strategy.method, stream):
        strategy.train(experience, eval_streams=[])
        direct = [(tested.test, one_by_one(strategy, tested.test, tested.tasks)) for tested in (stream, twin)]
        for which in (0, 1, 0, 0):
            tested, found = direct[which]
            counts = strategy.count_matrix(tested)
            for field, expected in found.items():
                np.testing.assert_array_equal(getattr(counts, field), expected, err_msg=field)


@pytest.mark.skipif("coda" not in NAMES, reason="needs a method with queries")
def test_queries_are_computed_once_per_stream() -> None:
    stream = cut()
    strategy = train(strategy_of(small("coda")), stream, stages=1)
    passes = []
    strategy.model.backbone.patch_embed.register_forward_hook(lambda *_: passes.append(1))
    strategy.count_matrix(stream.test)
    first = len(passes)
    strategy.count_matrix(stream.test)
    assert (first, len(passes) - first) == (2, 1)
