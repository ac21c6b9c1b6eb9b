"""Methods, tasks, backbones and LoRA options that the strategy accepts or refuses."""

from __future__ import annotations

import copy
import dataclasses
import re

import pytest
import timm
import torch
from avalanche.benchmarks import benchmark_from_datasets
from timm.models.vision_transformer import ParallelScalingBlock
from torch import nn

from cl_bench.errors import UserError
from cl_bench.training.strategy import ContinualStrategy
from tests.helpers.rows import GROWING, LORA, NAMES, ROWS, small
from tests.helpers.tiny import CLASSES, TASKS, cut, tiny_vit
from tests.helpers.training import (
    Spy,
    foreign,
    images_of,
    same,
    snapshot,
    strategy_of,
    train,
)

pytestmark = pytest.mark.usefixtures("one_thread")


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
    """The strategy is unchanged then, and training may continue without the task."""
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
        if name.startswith(("inflora", "prilora")) and targets == "proj":
            # They need the inputs of the projections, and know those of q, k and v.
            with pytest.raises(UserError, match=r"inflora\.targets = .* is not valid|PRILoRA knows the inputs of q, k"):
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
        strategy_of(small(name, rank=33, rank_first=33))
    model = train(strategy_of(small(name, rank=32, rank_first=32, epochs=1)), cut(), stages=1).model
    assert [tuple(factor.shape[2:]) for factor in model.bank.factors(0)] == [(32, 32), (32, 32)]
    assert bool(model.bank.B[0].any()) and bool(model.bank.B[0].isfinite().all())


@pytest.mark.parametrize("name", LORA)
@pytest.mark.parametrize("targets", [["q", "q"], ["v", "q", "k", "v"], []])
def test_lora_targets_are_named_once_each(name: str, targets: list[str]) -> None:
    with pytest.raises(UserError, match=rf"LoRA targets {re.escape('+'.join(targets) or 'none')}: name each .* once"):
        strategy_of(small(name, targets=targets))


@pytest.mark.parametrize("name", NAMES)
def test_only_methods_that_need_the_number_of_tasks_get_it(name: str) -> None:
    plugin = small(name)
    if plugin.needs_num_tasks:
        with pytest.raises(ValueError, match=f"{type(plugin).__name__}.*num_tasks"):
            strategy_of(plugin, num_tasks=None)
    strategy = train(strategy_of(plugin, num_tasks=TASKS if plugin.needs_num_tasks else None), cut(), stages=1)
    assert strategy.task is not None
    task = train(strategy_of(plugin), cut(), stages=1).task
    assert task is not None and task.num_tasks == (TASKS if plugin.needs_num_tasks else None)


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
