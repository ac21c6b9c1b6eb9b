"""What the contract carries: small methods, each with one need, are trained, killed and resumed, and audited.

Their numbers are compared with those of the authors' programs in tests/golden, or with a plain loop.
"""

from __future__ import annotations

import random
from functools import cache
from pathlib import Path

import pytest
import torch

from cl_bench import streams
from cl_bench.contract import registry
from cl_bench.contract.method import Method
from cl_bench.experiment import Limits
from cl_bench.studies import audit as audits
from cl_bench.studies.audit import AuditedMethod, Slice
from cl_bench.training import checkpoint
from cl_bench.training.checkpoint import Facts, Stage
from cl_bench.training.strategy import ContinualStrategy
from tests.helpers import kinds
from tests.helpers.tiny import TASKS, TRANSFORMS, cut, tiny_vit
from tests.helpers.training import Spy, assert_same_counts, same, snapshot, strategy_of

pytestmark = pytest.mark.usefixtures("one_thread", "plain_and_single_threaded")

NAMES = [*(path.stem for path in kinds.FILES), *kinds.VARIANTS]
SIZES = {"epochs": 2, "batch_size": 24}
PLACES = 4
"""Optimiser steps after which each run is killed."""


STAGE = Stage(
    correct=[], correct_task_aware=[], train_seconds=0, eval_seconds=0, train_samples=0, trainable=0, stored=0
)
"""A finished experience; a strategy only counts those."""


class Killed(Exception):
    """Stands for the end of the process."""


@cache
def method_of(name: str) -> Method:
    file, options = kinds.VARIANTS.get(name, (name, {}))
    entry = registry.load_file(Path(kinds.__file__).parent / f"{file}.py")
    return entry.configure({**SIZES, **kinds.OPTIONS.get(file, {}), **options})


def learn(strategy: ContinualStrategy) -> None:
    """Learn the remaining tasks and evaluate after each, as a run does."""
    stream = cut()
    for experience in list(stream.train)[strategy.tasks_learned :]:
        strategy.train(experience, eval_streams=[])
        strategy.count_matrix(stream.test, learned=strategy.tasks_learned)


@cache
def whole(name: str) -> tuple[ContinualStrategy, list[int]]:
    """An uninterrupted run, and the number of steps of each of its tasks."""
    steps = [0] * TASKS

    def count(strategy: ContinualStrategy) -> None:
        if strategy.position is not None:
            steps[strategy.tasks_learned] += 1

    strategy = strategy_of(method_of(name), Spy(after_training_iteration=count))
    learn(strategy)
    return strategy, steps


def killed(name: str, task: int, step: int, path: Path) -> None:
    """A run that is killed after some steps of a task, with a checkpoint of that moment."""
    left = [step]

    def kill(strategy: ContinualStrategy) -> None:
        if strategy.position is None or strategy.tasks_learned != task:
            return
        left[0] -= 1
        if not left[0]:
            checkpoint.write(path, strategy.checkpoint(Facts(key=name, stages=[STAGE] * task)))
            raise Killed

    with pytest.raises(Killed):
        learn(strategy_of(method_of(name), Spy(after_training_iteration=kill)))


@pytest.mark.parametrize("name", NAMES)
def test_what_is_killed_inside_a_task_ends_as_if_it_had_never_been(name: str, tmp_path: Path) -> None:
    undisturbed, steps = whole(name)
    places = [(task, step) for task, number in enumerate(steps) for step in range(1, number + 1)]
    for task, step in random.Random(name).sample(places, PLACES):
        path = tmp_path / f"{task}-{step}.safetensors"
        killed(name, task, step, path)
        found = checkpoint.read(path, name)
        assert found is not None
        resumed = strategy_of(method_of(name))
        resumed.resume(found)
        learn(resumed)
        place = f"killed after step {step} of task {task}"
        assert same(resumed.model.state_dict(), undisturbed.model.state_dict()), place
        assert resumed.traces == undisturbed.traces, place
        assert resumed.stored_numbers() == undisturbed.stored_numbers()
        assert resumed.trainable == undisturbed.trainable
        if not undisturbed.method.stateful_prediction:
            assert_same_counts(resumed.count_matrix(cut().test), undisturbed.count_matrix(cut().test))


@pytest.mark.parametrize("name", NAMES)
def test_scratch_ends_with_its_task(name: str) -> None:
    strategy, _ = whole(name)
    assert strategy.task is not None and not strategy.task.scratch


WHERE = Slice(
    source=streams.find("icons-tune").source(),
    backbone=tiny_vit,
    tasks=10,
    order="permutation:3",
    transforms=TRANSFORMS,
    limits=Limits(tasks=TASKS, train_per_class=5, test_per_class=4),
)


@pytest.mark.parametrize("name", NAMES)
def test_the_audit_finds_what_is_wrong_and_nothing_else(name: str) -> None:
    (report,) = audits.audit([AuditedMethod(name, method_of(name))], WHERE, None)
    assert report.error is None
    assert set(report.failed) == kinds.WRONG.get(name, set())


def test_every_kind_trains_what_it_is_about() -> None:
    """Training changes the model of every kind; one that changed nothing would prove nothing."""
    for name in NAMES:
        strategy, steps = whole(name)
        before, after = snapshot(strategy_of(method_of(name)).model), strategy.model.state_dict()
        changed = {key for key in after if key not in before or not torch.equal(after[key], before[key])}
        assert min(steps) > 0 and changed, name
