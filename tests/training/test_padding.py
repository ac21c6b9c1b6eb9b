"""Padding of the last batch: it has no effect on training, and plugins never see it."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.helpers.rows import GRADIENT, small
from tests.helpers.tiny import cut
from tests.helpers.training import (
    Spy,
    experiences,
    images_of,
    strategy_of,
    train,
)

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("name", GRADIENT)
def test_filling_up_the_last_batch_has_no_effect(name: str) -> None:
    stream = cut()
    n = len(experiences(small(name), stream)[0].dataset)
    models = []
    for batch_size in (n, n + 5):
        changes = {"epochs": 1, "batch_size": batch_size, "optimizer": "sgd", "lr": 0.1}
        models.append(train(strategy_of(small(name, **changes)), stream, stages=1).model.state_dict())
    start = strategy_of(small(name)).model.state_dict()
    assert not torch.equal(models[0]["head.weight"], start["head.weight"])
    for key, value in models[0].items():
        if key.endswith(".factors") and value.ndim == 3:
            # Statistics of nearly singular covariances, which amplify rounding.
            value, models[1][key] = value @ value.mT, models[1][key] @ models[1][key].mT
        # A sum over samples rounds like its largest entries.
        atol = 2e-6 * max(1.0, float(value.double().abs().max()) if value.numel() else 0)
        torch.testing.assert_close(models[1][key], value, atol=atol, rtol=1e-5, msg=lambda m, key=key: f"{key}: {m}")


@pytest.mark.parametrize("batch_size", [8, 20, 25])
def test_plugins_see_each_sample_once_per_epoch(batch_size: int) -> None:
    """Padding never reaches the metrics: 4 classes of 5 images are 20 samples, whatever the batches."""
    seen: list[tuple[int, int, int]] = []
    labels: list[int] = []

    def look(strategy: Any) -> None:
        seen.append((len(strategy.mb_x), len(strategy.mb_y), len(strategy.mb_output)))
        labels.extend(strategy.mb_y.tolist())

    strategy = strategy_of(small("finetune", epochs=1, batch_size=batch_size), Spy(after_training_iteration=look))
    train(strategy, cut(), stages=1)
    assert [sizes[0] for sizes in seen] == [min(batch_size, 20 - start) for start in range(0, 20, batch_size)]
    assert all(len(set(sizes)) == 1 for sizes in seen)
    assert sorted(labels) == sorted(images_of(cut().train[0])[1].tolist())


def test_every_batch_that_reaches_the_network_has_the_same_shape() -> None:
    shapes = set()
    strategy = strategy_of(small("finetune", epochs=1, batch_size=16))
    strategy.model.register_forward_pre_hook(lambda module, inputs: shapes.add(tuple(inputs[0].shape)))
    train(strategy, cut())
    assert shapes == {(16, 1, 32, 32)}
