"""Phases of a task: optimisers, schedules, what is trained, clipped gradients."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from cl_bench.contract.gradient import GradientMethod
from cl_bench.contract.losses import masked_cross_entropy
from cl_bench.contract.phase import Phase
from cl_bench.contract.task import Task
from cl_bench.models.base import FeatureModel
from cl_bench.models.heads import Classifier
from tests.helpers.rows import small
from tests.helpers.tiny import CLASSES, TASKS, cut
from tests.helpers.training import (
    Spy,
    snapshot,
    strategy_of,
    train,
)

pytestmark = pytest.mark.usefixtures("one_thread")


@dataclass(frozen=True, kw_only=True, eq=False)
class TwoPhases(GradientMethod):
    """First the head's weight, then its bias and the final norm, with their own learning rates."""

    head_lr: float = 0.5
    norm_lr: float = 0.25

    def build(self, backbone: VisionTransformer, num_classes: int) -> FeatureModel:
        return Classifier(backbone, num_classes)

    def phases(self, task: Task) -> list[Phase]:
        head, norm = task.model.head, task.model.backbone.norm
        loss = masked_cross_entropy(task.seen, task.num_classes)
        return [
            self.phase([{"params": [head.weight], "lr": self.head_lr}], loss),
            self.phase([{"params": [head.bias]}, {"params": list(norm.parameters()), "lr": self.norm_lr}], loss),
        ]


FORMULAS: dict[str, Callable[[int, int], float]] = {
    "constant": lambda e, epochs: 1.0,
    "cosine": lambda e, epochs: (1 + math.cos(math.pi * e / epochs)) / 2,
    "coda": lambda e, epochs: math.cos(99 * math.pi * e / (200 * (epochs - 1))) if epochs > 1 else 1.0,
    # The first two epochs are at the base rate, every later one is where `coda` was an epoch before.
    "inflora": lambda e, epochs: 1.0 if e < 2 else math.cos(99 * math.pi * (e - 1) / (200 * (epochs - 1))),
    "steps": lambda e, epochs: [1.0, 0.25, 0.25, 0.0625][e],
}


@pytest.mark.parametrize("epochs", [1, 4])
@pytest.mark.parametrize("schedule", list(FORMULAS))
@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
def test_learning_rates_follow_the_schedule_and_groups_keep_their_own(
    optimizer: str, schedule: str, epochs: int
) -> None:
    seen: list[tuple[str, list[float]]] = []
    spy = Spy(
        after_training_iteration=lambda s: seen.append(
            (type(s.optimizer).__name__.lower(), [group["lr"] for group in s.optimizer.param_groups])
        )
    )
    sizes = {"epochs": epochs, "batch_size": 20, "milestones": (3, 1), "decay": 0.25}  # milestones: for `steps` alone
    plugin = TwoPhases(lr=0.125, optimizer=optimizer, schedule=schedule, **sizes)  # type: ignore[arg-type]
    train(strategy_of(plugin, spy), cut(train=1), stages=2)
    factors = [FORMULAS[schedule](epoch, epochs) for epoch in range(epochs)]
    expected = [[0.5 * f] for f in factors] + [[0.125 * f, 0.25 * f] for f in factors]
    assert {kind for kind, _ in seen} == {optimizer}
    assert len(seen) == 2 * len(expected)
    for (_, found), wanted in zip(seen, expected * 2, strict=True):
        assert found == pytest.approx(wanted, rel=1e-12)


@pytest.mark.parametrize("kind", ["sgd", "adam", "adamw"])
def test_optimisers_are_made_with_the_methods_hyper_parameters(kind: Literal["sgd", "adam", "adamw"]) -> None:
    plugin = TwoPhases(optimizer=kind, lr=0.3, momentum=0.6, weight_decay=0.02)
    made = plugin.phase([{"params": [nn.Parameter(torch.zeros(2))]}], lambda logits, labels: logits).optimizer
    optimizer = made([{"params": [nn.Parameter(torch.zeros(2))]}])
    expected = {"lr": 0.3, "weight_decay": 0.02} | ({"momentum": 0.6, "nesterov": False} if kind == "sgd" else {})
    assert type(optimizer) is {"sgd": torch.optim.SGD, "adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[kind]
    assert {name: optimizer.param_groups[0][name] for name in expected} == expected


def test_every_phase_of_every_task_starts_with_a_fresh_optimiser() -> None:
    optimizers: list[Any] = []
    filled: list[bool] = []

    def look(strategy: Any) -> None:
        if not optimizers or optimizers[-1] is not strategy.optimizer:
            optimizers.append(strategy.optimizer)
            filled.append(bool(strategy.optimizer.state))

    plugin = TwoPhases(optimizer="adam", epochs=2, batch_size=8)
    train(strategy_of(plugin, Spy(before_update=look)), cut())
    assert len({id(optimizer) for optimizer in optimizers}) == len(optimizers) == 2 * TASKS
    assert filled == [False] * (2 * TASKS)


def test_only_what_the_phase_names_changes() -> None:
    named = [{"head.weight"}, {"head.bias", "backbone.norm.weight", "backbone.norm.bias"}]
    states: list[dict[str, Tensor]] = []
    spy = Spy(before_training_epoch=lambda s: states.append(snapshot(s.model)))
    strategy = strategy_of(TwoPhases(epochs=1, batch_size=8), spy)
    train(strategy, cut(), stages=2)
    states.append(snapshot(strategy.model))
    for step, (before, after) in enumerate(zip(states, states[1:], strict=False)):
        changed = {key for key in before if not torch.equal(before[key], after[key])}
        assert changed == named[step % 2]
    assert strategy.trainable == CLASSES * 32 + CLASSES + 2 * 32


def test_the_gradient_norm_is_clipped() -> None:
    """One plain SGD step of length at most lr * clip_norm; without clipping it is longer."""
    moved = []
    for clip in (None, 0.01):
        plugin = small(
            "finetune", epochs=1, batch_size=20, optimizer="sgd", lr=1.0, momentum=0.0, weight_decay=0.0, clip_norm=clip
        )
        strategy = strategy_of(plugin)
        before = snapshot(strategy.model)
        train(strategy, cut(), stages=1)
        after = strategy.model.state_dict()
        moved.append(math.sqrt(sum(float((after[k] - before[k]).double().square().sum()) for k in before)))
    assert moved[0] > 0.02
    assert moved[1] == pytest.approx(0.01, rel=1e-3)
