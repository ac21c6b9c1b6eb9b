"""What a method freezes stays bit-identical."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.helpers.rows import DESIGNED, FROZEN_BACKBONE, GRADIENT, GROWING, ONE_DIRECTION, ROWS, banks, links, small
from tests.helpers.tiny import CLASSES, cut, tiny_vit
from tests.helpers.training import (
    Spy,
    experiences,
    same,
    snapshot,
    strategy_of,
    train,
)

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("name", FROZEN_BACKBONE)
def test_the_backbone_stays_bit_identical(name: str) -> None:
    vit = tiny_vit()
    before = snapshot(vit)
    strategy = train(strategy_of(small(name, lr=0.1), backbone=vit), cut())
    assert same(before, strategy.model.backbone.state_dict())
    assert not any(parameter.requires_grad for parameter in strategy.model.backbone.parameters())


def test_only_full_training_touches_the_backbone() -> None:
    assert sorted(set(ROWS) - set(FROZEN_BACKBONE)) == [
        "finetune", "finetune[loss=masked]", "joint", "optima", "replay", "replay[loss=masked]", "slca",
    ]  # fmt: skip


@pytest.mark.parametrize("name", [row for row in GROWING if row not in ONE_DIRECTION])
def test_earlier_directions_and_components_stay_and_the_current_ones_move(name: str) -> None:
    stream, plugin = cut(), small(name, lr=0.05, epochs=links(small(name)))
    count = links(plugin)

    def latest(strategy: Any) -> list[list[Tensor]]:
        return [[part.detach().clone() for part in list(bank)[-count:]] for bank in banks(strategy.model)]

    started: dict[int, list[list[Tensor]]] = {}
    spy = Spy(before_training_epoch=lambda strategy: started.setdefault(strategy.tasks_learned, latest(strategy)))
    strategy = strategy_of(plugin, spy)
    finished: list[list[Tensor]] = [[] for _ in banks(strategy.model)]
    for task, experience in enumerate(stream.train):
        strategy.train(experience, eval_streams=[])
        own = latest(strategy)
        for place, (bank, old) in enumerate(zip(banks(strategy.model), finished, strict=True)):
            assert len(bank) == (task + 1) * count
            assert all(torch.equal(a, b) for a, b in zip(list(bank)[:-count], old, strict=True))
            assert not any(part.requires_grad for part in list(bank)[:-count])
            moved = [not torch.equal(a, b) for a, b in zip(started[task][place], own[place], strict=True)]
            assert moved == [place != DESIGNED.get(name)] * count
            old += own[place]


@pytest.mark.parametrize("name", ONE_DIRECTION)
def test_some_rows_have_one_direction_in_all(name: str) -> None:
    strategy = strategy_of(small(name, epochs=1))
    for experience in experiences(strategy.method, cut()):
        strategy.train(experience, eval_streams=[])
        assert {len(bank) for bank in banks(strategy.model)} == {1}


def keeps_other_rows(values: dict[str, Any]) -> bool:
    """Whether a method's head moves in the rows of the current task only."""
    aligned = values["align"] and not values["align_restore"]
    return values["loss"] == "masked" and not values["weight_decay"] and not aligned


@pytest.mark.parametrize(
    "name",
    [
        row
        for row in GRADIENT
        if small(row).trains_on == "task" and not small(row).exemplars and keeps_other_rows(small(row).values())
    ],
)
def test_head_rows_of_other_tasks_stay_bit_identical(name: str) -> None:
    strategy = strategy_of(small(name, lr=0.05))
    for experience, own in zip(cut().train, cut().tasks, strict=True):
        before = snapshot(strategy.model.head)
        strategy.train(experience, eval_streams=[])
        for key, after in strategy.model.head.state_dict().items():
            same_row = (before[key] == after).reshape(CLASSES, -1).all(dim=1)
            assert set(np.flatnonzero(~same_row.numpy()).tolist()) == set(own), key
