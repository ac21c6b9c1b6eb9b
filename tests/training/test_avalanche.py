"""The strategy in a plain Avalanche script: its metrics, foreign streams, and counts of hits."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
import torch
from avalanche.benchmarks import benchmark_from_datasets
from avalanche.evaluation.metrics import accuracy_metrics, forgetting_metrics, loss_metrics
from avalanche.logging import BaseLogger, TextLogger
from avalanche.training.plugins import EvaluationPlugin
from torch import Tensor, nn

from tests.helpers.rows import GROWING, ROWS, small
from tests.helpers.tiny import CLASSES, TASKS, cut
from tests.helpers.training import (
    Spy,
    experiences,
    foreign,
    images_of,
    one_by_one,
    same,
    snapshot,
    strategy_of,
    train,
)

pytestmark = pytest.mark.usefixtures("one_thread")


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
    """An Avalanche benchmark that does not use cl-bench's image store."""
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
    """Classes not learned yet are never predicted, so that Avalanche counts their images as misses."""
    strategy = train(strategy_of(small("finetune", lr=0.01)), cut(), stages=1)
    outputs: list[Tensor] = []
    strategy.plugins.append(Spy(after_eval_forward=lambda s: outputs.append(s.mb_output.clone())))
    strategy.eval(cut().test)
    unseen = [label for label in range(CLASSES) if label not in strategy.seen]
    assert all(bool((output[:, unseen] == float("-inf")).all()) for output in outputs)
    assert all(bool(output[:, list(strategy.seen)].isfinite().all()) for output in outputs)


def test_test_images_of_all_tasks_are_mixed() -> None:
    """No prediction can profit from batch neighbours of its own task: every batch has images of all tasks."""
    strategy, tests = strategy_of(small("linear")), cut().test
    seen: list[set[float]] = []

    class Looking(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            seen.append(set(images.flatten(1).sum(dim=1).tolist()))
            return torch.zeros(len(images), CLASSES)

    strategy.eval_mb_size = len(tests[0].dataset)
    strategy.count_matrix(tests, model=Looking())
    of_task = [set(images_of(experience)[0].flatten(1).sum(dim=1).tolist()) for experience in tests]
    assert len(seen) == len(of_task) == TASKS and all(batch & task for batch in seen for task in of_task)


def test_so_many_tasks_count_as_learned() -> None:
    """If classes recur in every task, the caller says how many tasks count as learned."""
    strategy = train(strategy_of(small("linear")), cut())
    for learned in range(TASKS + 1):
        counts = strategy.count_matrix(cut().test, learned)
        assert [hits is None for hits in counts.correct] == [task >= learned for task in range(TASKS)]


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
