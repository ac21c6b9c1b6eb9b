"""The seed alone decides, and global generators are left alone."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from tests.helpers.rows import GRADIENT, ROWS, small
from tests.helpers.tiny import cut, tiny_vit
from tests.helpers.training import (
    Spy,
    assert_same_counts,
    experiences,
    same,
    snapshot,
    strategy_of,
    train,
)

pytestmark = pytest.mark.usefixtures("one_thread")


def disturb(strategy: Any = None) -> None:
    """Draw from every global generator."""
    torch.rand(3)
    np.random.rand(3)
    random.random()


@pytest.mark.parametrize("name", ROWS)
def test_the_seed_alone_decides(name: str) -> None:
    stream = cut()
    results = []
    for state in (0, 1):
        torch.manual_seed(state)
        np.random.seed(state)
        random.seed(state)
        noise = Spy(before_training_iteration=disturb, before_training_epoch=disturb) if state else Spy()
        strategy = strategy_of(small(name), noise, seed=11)
        matrices = []
        for experience in experiences(strategy.method, stream):
            if state:
                disturb()
            strategy.train(experience, eval_streams=[])
            matrices.append(strategy.count_matrix(stream.test))
            if state:
                strategy.eval(stream.test)
        results.append((matrices, snapshot(strategy.model)))
    for left, right in zip(results[0][0], results[1][0], strict=True):
        assert_same_counts(left, right)
    assert same(results[0][1], results[1][1])


@pytest.mark.parametrize("name", [row for row in GRADIENT if "projection=0" not in row])  # nothing random in that
def test_another_seed_gives_other_parameters(name: str) -> None:
    one, other = (train(strategy_of(small(name, epochs=1), seed=seed), cut(), stages=1).model for seed in (0, 1))
    assert not torch.equal(one.head.weight, other.head.weight)


def test_every_choice_of_a_seed_reaches_initialisation_order_and_views() -> None:
    """With the same start, another seed still trains on other views."""
    start = strategy_of(small("finetune")).model.state_dict()
    models = []
    for seed in (0, 1):
        strategy = strategy_of(small("finetune", epochs=1, batch_size=100), seed=seed)
        assert torch.equal(strategy.model.head.weight, start["head.weight"]) is (seed == 0)
        strategy.model.load_state_dict(start)
        models.append(train(strategy, cut(), stages=1).model)
    # All images are in one batch: only views can differ, and a pure reordering would change rounding alone.
    assert not torch.allclose(models[0].head.weight, models[1].head.weight, atol=1e-4)


def test_every_epoch_has_an_order_and_views_of_its_own() -> None:
    seen: list[tuple[Tensor, Tensor]] = []
    spy = Spy(before_training_iteration=lambda s: seen.append((s.mb_y.clone(), s.mb_x.flatten(1).sum(dim=1))))
    size = len(cut().train[0].dataset)
    train(strategy_of(small("linear", epochs=3, batch_size=size), spy), cut(), stages=2)
    assert len({tuple(labels.tolist()) for labels, _ in seen}) == len(seen) == 6
    # Each view of each image is another one.
    assert all(len(torch.cat([sums for _, sums in seen[task : task + 3]]).unique()) == 3 * size for task in (0, 3))


@pytest.mark.parametrize("name", ROWS)
def test_global_generators_are_left_alone(name: str) -> None:
    vit = tiny_vit()
    before = (torch.get_rng_state().clone(), np.random.get_state(), random.getstate())
    strategy = train(strategy_of(small(name, epochs=1), backbone=vit), cut(), stages=2)
    strategy.count_matrix(cut().test)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert all(np.array_equal(a, b) for a, b in zip(np.random.get_state(), before[1], strict=True))
    assert random.getstate() == before[2]


def test_an_embedded_backbone_by_name_leaves_the_global_generator_alone() -> None:
    before = torch.get_rng_state().clone()
    strategy = strategy_of(small("simplecil"), backbone="vit_tiny_patch8_32.icons")
    assert isinstance(strategy.model.backbone, VisionTransformer)
    assert torch.equal(torch.get_rng_state(), before)
