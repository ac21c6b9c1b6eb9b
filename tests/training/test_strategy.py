"""The strategy as a plain Avalanche script sees it: counts, leaks, randomness, padding, frozen weights, schedules."""

from __future__ import annotations

import copy
import dataclasses
import io
import math
import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import timm
import torch
from avalanche.benchmarks import benchmark_from_datasets
from avalanche.benchmarks.utils import as_classification_dataset
from avalanche.evaluation.metrics import accuracy_metrics, forgetting_metrics, loss_metrics
from avalanche.logging import BaseLogger, TextLogger
from avalanche.training.plugins import EvaluationPlugin
from timm.models.vision_transformer import ParallelScalingBlock, VisionTransformer
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from cl_bench.contract.method import GradientMethod, Phase, Task, masked_cross_entropy
from cl_bench.errors import UserError
from cl_bench.models.heads import Classifier
from cl_bench.training.strategy import ContinualStrategy
from tests.helpers.rows import FROZEN_BACKBONE, GRADIENT, GROWING, LORA, NAMES, ONE_DIRECTION, QUICK, ROWS, banks, small
from tests.helpers.tiny import CLASSES, TASKS, cut, tiny_vit
from tests.helpers.training import (
    Spy,
    assert_same_counts,
    experiences,
    images_of,
    same,
    snapshot,
    strategy_of,
    train,
    trained,
)

pytestmark = pytest.mark.usefixtures("one_thread")


def foreign(labels: Sequence[int], generator: torch.Generator) -> Any:
    """An Avalanche data set that knows nothing of our image store: one noisy image per label."""
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


@dataclass(frozen=True, kw_only=True, eq=False)
class BatchLeak(GradientMethod):
    """A cheat for the audit to find: logits are centred over the batch."""

    def build(self, backbone: VisionTransformer, num_classes: int) -> nn.Module:
        class Leaky(Classifier):
            def forward(self, images: Tensor) -> Tensor:
                logits = super().forward(images)
                return logits - logits.mean(dim=0)

        return Leaky(backbone, num_classes)

    def phases(self, task: Task) -> list[Phase]:
        return [self.phase([{"params": list(task.model.head.parameters())}], masked_cross_entropy(task.classes, 40))]


@dataclass(frozen=True, kw_only=True, eq=False)
class TwoPhases(GradientMethod):
    """First the head's weight, then its bias and the final norm, with their own learning rates."""

    head_lr: float = 0.5
    norm_lr: float = 0.25

    def build(self, backbone: VisionTransformer, num_classes: int) -> nn.Module:
        return Classifier(backbone, num_classes)

    def phases(self, task: Task) -> list[Phase]:
        head, norm = task.model.head, task.model.backbone.norm
        loss = masked_cross_entropy(task.seen, task.num_classes)
        return [
            self.phase([{"params": [head.weight], "lr": self.head_lr}], loss),
            self.phase([{"params": [head.bias]}, {"params": list(norm.parameters()), "lr": self.norm_lr}], loss),
        ]


# --- a plain Avalanche script ----------------------------------------------------------------------------------


def avalanche_accuracies(results: dict[str, Any], stream: str) -> list[float]:
    """Experience accuracies of a result of `eval()`, by experience."""
    names = sorted(name for name in results if name.startswith(f"Top1_Acc_Exp/eval_phase/{stream}"))
    return [float(results[name]) for name in names]


@pytest.mark.parametrize("name", ROWS)
def test_avalanche_metrics_agree_with_the_counts(name: str) -> None:
    stream, text = cut(), io.StringIO()
    evaluator = EvaluationPlugin(
        accuracy_metrics(stream=True, experience=True, epoch=True, minibatch=True),
        loss_metrics(epoch=True, experience=True),
        forgetting_metrics(experience=True),
        loggers=[TextLogger(text)],
    )
    plugin = small(name, lr=0.01)
    strategy = strategy_of(plugin, evaluator=evaluator, eval_mb_size=7)
    for stage, experience in enumerate(experiences(plugin, stream)):
        epoch = strategy.train(experience)
        if stage == 0 and strategy.trainable:
            assert 0 <= epoch["Top1_Acc_Epoch/train_phase/" + experience.origin_stream.name + "_stream"] <= 1
        results = strategy.eval(stream.test)
        counts = strategy.count_matrix(stream.test)
        ours = [0 if hits is None else hits / n for hits, n in zip(counts.correct, counts.total, strict=True)]
        assert avalanche_accuracies(results, "test_stream") == pytest.approx(ours, abs=1e-12)
        overall = sum(hits or 0 for hits in counts.correct) / sum(counts.total)
        assert results["Top1_Acc_Stream/eval_phase/test_stream"] == pytest.approx(overall, abs=1e-12)
        known = TASKS if plugin.trains_on == "stream" else stage + 1
        assert [hits is not None for hits in counts.correct] == [task < known for task in range(TASKS)]
    assert "Top1_Acc_Stream" in text.getvalue()
    assert counts.total == [len(experience.dataset) for experience in stream.test]


def test_training_on_the_whole_stream_at_once_is_the_same_as_one_experience_after_the_other() -> None:
    one, other = strategy_of(small("finetune")), strategy_of(small("finetune"))
    one.train(cut().train)
    train(other, cut())
    assert same(one.model.state_dict(), other.model.state_dict())
    assert one.tasks_learned == other.tasks_learned == TASKS


@pytest.mark.parametrize("name", ROWS)
def test_foreign_stream(name: str) -> None:
    """An Avalanche benchmark that knows nothing of our image store."""
    plugin = small(name, lr=0.01)
    generator = torch.Generator().manual_seed(5)

    tasks = [[0, 1], [2, 3], [4, 5]]
    parts = [list(range(6))] if plugin.trains_on == "stream" else tasks
    benchmark = benchmark_from_datasets(
        train=[foreign(part * 5, generator) for part in parts], test=[foreign(task * 4, generator) for task in tasks]
    )
    evaluator = EvaluationPlugin(accuracy_metrics(stream=True, experience=True, epoch=True), loggers=[BaseLogger()])
    strategy = strategy_of(plugin, num_classes=6, evaluator=evaluator)
    strategy.train(benchmark.train_stream)
    counts = strategy.count_matrix(benchmark.test_stream)
    assert counts.total == [8, 8, 8]
    assert counts.label.tolist() == [label for task in tasks for label in task * 4]
    results = strategy.eval(benchmark.test_stream)
    ours = [int(hits or 0) / 8 for hits in counts.correct]
    assert avalanche_accuracies(results, "test_stream") == pytest.approx(ours, abs=1e-12)
    direct = one_by_one(strategy, benchmark.test_stream, tasks)
    np.testing.assert_array_equal(counts.predicted, direct["predicted"])


def test_avalanche_evaluates_every_task_after_the_first_one_for_a_random_start() -> None:
    """Classes not learned yet are never predicted, so that Avalanche counts them as misses."""
    strategy = train(strategy_of(small("finetune", lr=0.01)), cut(), stages=1)
    outputs: list[Tensor] = []
    strategy.plugins.append(Spy(after_eval_forward=lambda s: outputs.append(s.mb_output.clone())))
    strategy.eval(cut().test)
    unseen = [label for label in range(CLASSES) if label not in strategy.seen]
    assert all(bool((output[:, unseen] == float("-inf")).all()) for output in outputs)
    assert all(bool(output[:, list(strategy.seen)].isfinite().all()) for output in outputs)


def test_counts_are_the_hits_of_the_predictions() -> None:
    stream = cut()
    strategy = train(strategy_of(small("finetune", lr=0.01)), stream, stages=2)
    counts = strategy.count_matrix(stream.test)
    for task, own in enumerate(stream.tasks):
        rows = counts.task == task
        assert rows.sum() == counts.total[task]
        assert set(counts.label[rows]) == set(own)
        assert counts.correct_task_aware[task] == (counts.predicted_task_aware == counts.label)[rows].sum()
        assert set(counts.predicted_task_aware[rows]) <= set(own)
        if task < 2:
            assert counts.correct[task] == (counts.predicted == counts.label)[rows].sum()
            assert set(counts.predicted[rows]) <= set(strategy.seen)
        else:
            assert counts.correct[task] is None and set(counts.predicted[rows]) == {-1}


@pytest.mark.parametrize("name", ROWS)
def test_evaluating_before_any_training_counts_nothing_but_task_aware(name: str) -> None:
    strategy = strategy_of(small(name))
    before = snapshot(strategy.model)
    counts = strategy.count_matrix(cut().test)
    assert counts.correct == [None] * TASKS and set(counts.predicted) == {-1}
    assert all(0 <= hits <= n for hits, n in zip(counts.correct_task_aware, counts.total, strict=True))
    for task, own in enumerate(cut().tasks):
        assert set(counts.predicted_task_aware[counts.task == task]) <= set(own)
    assert same(before, strategy.model.state_dict())
    again = strategy.count_matrix(cut().test)
    np.testing.assert_array_equal(again.predicted_task_aware, counts.predicted_task_aware)


@pytest.mark.parametrize("name", GROWING)
def test_what_grows_starts_as_its_head_on_the_plain_backbone(name: str) -> None:
    model = strategy_of(small(name)).model.eval()
    images, _ = images_of(cut().test[0])
    with torch.no_grad():
        assert torch.allclose(model(images), model.head(model.backbone(images)), atol=1e-6)


@pytest.mark.parametrize("name", ROWS)
def test_evaluating_before_training_leaves_the_training_as_it_is(name: str) -> None:
    evaluated = strategy_of(small(name, epochs=1))
    evaluated.count_matrix(cut().test)
    trained = [train(strategy, cut(), stages=1) for strategy in (evaluated, strategy_of(small(name, epochs=1)))]
    assert same(trained[0].model.state_dict(), trained[1].model.state_dict())


# --- leak audit ------------------------------------------------------------------------------------------------


def audit(strategy: ContinualStrategy) -> None:
    """Predictions belong to images alone: whatever the batch size, the order and the company."""
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
    # The logits say more than predictions: alone, in company, in reverse.
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
    """Evaluations between training stages, twice each, and of two streams of equal shape in turn."""
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


# --- randomness ------------------------------------------------------------------------------------------------


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


# --- padding ---------------------------------------------------------------------------------------------------


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
            # Of nearly singular covariances.
            value, models[1][key] = value @ value.mT, models[1][key] @ models[1][key].mT
        torch.testing.assert_close(models[1][key], value, atol=2e-6, rtol=1e-5, msg=lambda m, key=key: f"{key}: {m}")


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


# --- frozen weights --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FROZEN_BACKBONE)
def test_the_backbone_stays_bit_identical(name: str) -> None:
    vit = tiny_vit()
    before = snapshot(vit)
    strategy = train(strategy_of(small(name, lr=0.1), backbone=vit), cut())
    assert same(before, strategy.model.backbone.state_dict())
    assert not any(parameter.requires_grad for parameter in strategy.model.backbone.parameters())


def test_only_full_training_touches_the_backbone() -> None:
    assert sorted(set(ROWS) - set(FROZEN_BACKBONE)) == ["finetune", "finetune[loss=masked]", "joint", "optima", "slca"]


@pytest.mark.parametrize("name", [row for row in GROWING if row not in ONE_DIRECTION])
def test_earlier_directions_and_components_stay_and_the_current_ones_move(name: str) -> None:
    stream = cut()
    started: dict[int, list[Tensor]] = {}

    def start(strategy: Any) -> None:
        started.setdefault(strategy.tasks_learned, [bank[-1].detach().clone() for bank in banks(strategy.model)])

    spy = Spy(before_training_epoch=start)
    strategy = strategy_of(small(name, lr=0.05, epochs=1), spy)
    kept: list[list[Tensor]] = []
    for task, experience in enumerate(stream.train):
        strategy.train(experience, eval_streams=[])
        for bank, old in zip(banks(strategy.model), zip(*kept, strict=True), strict=bool(kept)):
            assert len(bank) == task + 1
            assert all(torch.equal(a, b) for a, b in zip(list(bank)[:-1], old, strict=True))
            assert not any(part.requires_grad for part in list(bank)[:-1])
        kept.append([bank[-1].detach().clone() for bank in banks(strategy.model)])
        moved = [not torch.equal(a, b) for a, b in zip(started[task], kept[task], strict=True)]
        # InfLoRA designs A and trains B.
        assert moved == [not name.startswith("inflora"), *[True] * (len(moved) - 1)]


@pytest.mark.parametrize("name", ONE_DIRECTION)
def test_some_rows_have_one_direction_in_all(name: str) -> None:
    strategy = strategy_of(small(name, epochs=1))
    for experience in experiences(strategy.method, cut()):
        strategy.train(experience, eval_streams=[])
        assert [len(bank) for bank in banks(strategy.model)] == [1, 1]


def keeps_other_rows(values: dict[str, Any]) -> bool:
    """Whether a method's head moves in the rows of the current task only."""
    aligned = values["align"] and not values["align_restore"]
    return values["loss"] == "masked" and not values["weight_decay"] and not aligned


@pytest.mark.parametrize(
    "name",
    [row for row in GRADIENT if small(row).trains_on == "task" and keeps_other_rows(small(row).values())],
)
def test_head_rows_of_other_tasks_stay_bit_identical(name: str) -> None:
    strategy = strategy_of(small(name, lr=0.05))
    for experience, own in zip(cut().train, cut().tasks, strict=True):
        before = snapshot(strategy.model.head)
        strategy.train(experience, eval_streams=[])
        for key, after in strategy.model.head.state_dict().items():
            same_row = (before[key] == after).reshape(CLASSES, -1).all(dim=1)
            assert set(np.flatnonzero(~same_row.numpy()).tolist()) == set(own), key


# --- phases, optimisers, schedules -----------------------------------------------------------------------------

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


# --- what is rejected, and what a method may not hold -----------------------------------------------------------


@pytest.mark.parametrize("methods", [[], ["finetune", "simplecil"]])
def test_exactly_one_method(methods: list[str]) -> None:
    plugins = [Spy(), *(small(name) for name in methods)]
    with pytest.raises(ValueError, match=f"exactly one Method.*found {len(methods)}"):
        ContinualStrategy(plugins=plugins, backbone=tiny_vit(), num_classes=CLASSES)


@pytest.mark.parametrize("name", ROWS)
def test_tasks_of_unequal_size_and_of_one_class(name: str) -> None:
    """One image of one class, then many of three: the masked loss of a single class has no gradient at all."""
    plugin, generator = small(name, lr=0.01), torch.Generator().manual_seed(5)
    tasks = [[0], [1, 2, 3] * 6, [4], [5, 6, 5, 6, 5]]
    parts = [sum(tasks, [])] if plugin.trains_on == "stream" else tasks
    benchmark = benchmark_from_datasets(
        train=[foreign(labels, generator) for labels in parts],
        test=[foreign(sorted(set(labels)) * 3, generator) for labels in tasks],
    )
    images = torch.cat([images_of(experience)[0] for experience in benchmark.test_stream])
    strategy = strategy_of(plugin, num_classes=7, num_tasks=len(tasks))
    for experience in benchmark.train_stream:
        strategy.train(experience, eval_streams=[])
        state = strategy.model.state_dict()
        assert [key for key, value in state.items() if not bool(value.isfinite().all())] == []
        with torch.no_grad():
            logits = strategy.model.eval()(images)
            merged = strategy.predictor()(images)
        assert logits.shape == (len(images), 7) and bool(logits.isfinite().all())
        torch.testing.assert_close(merged, logits, atol=1e-4, rtol=1e-4)
    counts = strategy.count_matrix(benchmark.test_stream)
    assert counts.total == [3, 9, 3, 6]
    assert [counts.correct_task_aware[task] for task in (0, 2)] == [3, 3], "a single class cannot be missed"
    assert None not in counts.correct


@pytest.mark.parametrize("name", ROWS)
def test_a_task_without_training_images_is_named(name: str) -> None:
    """Nothing has changed then, and training may go on without it."""
    generator = torch.Generator().manual_seed(5)
    parts = [foreign(labels, generator) for labels in ([0, 1] * 3, [], [2, 3] * 3)]
    first, empty, last = benchmark_from_datasets(train=parts).streams["train"]
    strategy, untroubled = (strategy_of(small(name, epochs=1)) for _ in range(2))
    with pytest.raises(UserError, match="^task 0 has no training images"):
        strategy.train(empty, eval_streams=[])
    strategy.train(first, eval_streams=[])
    before = snapshot(strategy.model)
    with pytest.raises(UserError, match="^task 1 has no training images"):
        strategy.train(empty, eval_streams=[])
    assert same(before, strategy.model.state_dict())
    assert (strategy.tasks_learned, strategy.seen) == (1, (0, 1))
    strategy.train(last, eval_streams=[])
    for experience in (first, last):
        untroubled.train(experience, eval_streams=[])
    assert same(untroubled.model.state_dict(), strategy.model.state_dict())
    assert not same(before, strategy.model.state_dict())


@pytest.mark.parametrize("name", NAMES)
def test_a_backbone_that_is_no_vit_is_refused(name: str) -> None:
    resnet = timm.create_model("resnet10t", num_classes=0)
    with pytest.raises(UserError, match="backbone ResNet is no timm VisionTransformer"):
        strategy_of(small(name), backbone=resnet)


@pytest.mark.parametrize("name", LORA)
def test_lora_needs_the_projections_of_every_block(name: str) -> None:
    with pytest.raises(UserError, match=r"LoRA target '\w' does not exist.*\(ParallelScalingBlock has no attn\.qkv"):
        strategy_of(small(name), backbone=tiny_vit(block_fn=ParallelScalingBlock))
    for part, targets in (("qkv", "q+v"), ("qkv", "k"), ("proj", "proj")):
        vit = tiny_vit()
        setattr(vit.blocks[-1].attn, part, nn.Identity())
        if name.startswith("inflora") and targets == "proj":
            # Its directions are designed for the inputs of q, k and v.
            with pytest.raises(UserError, match=r"inflora\.targets = .* is not valid"):
                small(name, targets=targets)
            continue
        with pytest.raises(UserError, match=rf"LoRA target '\w+' does not exist.*\(Block has no attn\.{part}"):
            strategy_of(small(name, targets=targets), backbone=vit)


@pytest.mark.parametrize("name", [row for row in ROWS if row not in (*GROWING, "l2p[prompts=prefix]", "ranpac")])
def test_without_adapters_any_kind_of_block_will_do(name: str) -> None:
    strategy = strategy_of(small(name, lr=0.01, epochs=1), backbone=tiny_vit(block_fn=ParallelScalingBlock))
    start = snapshot(strategy.model)
    train(strategy, cut(), stages=1)
    assert not same(start, strategy.model.state_dict())
    with torch.no_grad():
        assert bool(strategy.model.eval()(images_of(cut().test[0])[0]).isfinite().all())


@pytest.mark.parametrize("name", LORA)
def test_lora_takes_any_rank_up_to_the_width(name: str) -> None:
    with pytest.raises(UserError, match="LoRA rank 33 is more than the backbone's width 32; choose at most 32"):
        strategy_of(small(name, rank=33))
    model = train(strategy_of(small(name, rank=32, epochs=1)), cut(), stages=1).model
    assert [tuple(factor.shape[2:]) for factor in model.bank.direction(0)] == [(32, 32), (32, 32)]
    assert bool(model.bank.B[0].any()) and bool(model.bank.B[0].isfinite().all())


@pytest.mark.parametrize("name", LORA)
@pytest.mark.parametrize("targets", [["q", "q"], ["v", "q", "k", "v"], []])
def test_lora_targets_are_named_once_each(name: str, targets: list[str]) -> None:
    with pytest.raises(UserError, match=rf"LoRA targets {re.escape('+'.join(targets) or 'none')}: name each .* once"):
        strategy_of(small(name, targets=targets))


@pytest.mark.parametrize("name", NAMES)
def test_the_number_of_tasks_is_asked_for_and_told_only_where_needed(name: str) -> None:
    plugin = small(name)
    if plugin.needs_num_tasks:
        with pytest.raises(ValueError, match=f"{type(plugin).__name__}.*num_tasks"):
            strategy_of(plugin, num_tasks=None)
    strategy = train(strategy_of(plugin, num_tasks=TASKS if plugin.needs_num_tasks else None), cut(), stages=1)
    assert strategy.task is not None
    told = train(strategy_of(plugin), cut(), stages=1).task
    assert told is not None and told.num_tasks == (TASKS if plugin.needs_num_tasks else None)


@pytest.mark.parametrize("name", NAMES)
def test_methods_are_frozen_and_hold_no_state(name: str) -> None:
    plugin = small(name, epochs=1)
    fields = {field.name for field in dataclasses.fields(plugin)}
    copied, values = copy.deepcopy(plugin), plugin.values()
    with pytest.raises(dataclasses.FrozenInstanceError):
        plugin.epochs = 3
    states = []
    for instance in (plugin, plugin, copied):
        states.append(snapshot(train(strategy_of(instance), cut()).model))
        assert set(vars(instance)) == fields
        assert instance.values() == values
    assert same(states[0], states[1]) and same(states[0], states[2])
