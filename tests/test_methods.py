"""Every installed method keeps the contract of `cl_bench.method`; the plain baselines train what they say."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from cl_bench import method, registry
from cl_bench.data.samples import TaskImages, samples_of
from cl_bench.errors import UserError
from cl_bench.method import GradientMethod, Method, Task
from cl_bench.strategy import ContinualStrategy
from tests.test_strategy import (
    CLASSES,
    NAMES,
    TASKS,
    cut,
    experiences,
    images_of,
    one_thread,  # noqa: F401  (autouse)
    small,
    snapshot,
    strategy_of,
    tiny_vit,
    train,
)

DIM, DEPTH = 32, 2
FIELDS = [(name, field) for name in NAMES for field in registry.find(name).defaults]

# (revision, defaults) of every method. Stored results are compared with new ones of the same revision: whoever changes
# a default raises `revision` in the method's file and then replaces the row here (the failing test prints it).
PINNED: dict[str, tuple[int, dict[str, Any]]] = {
    "coda": (
        1,
        {
            "epochs": 20,
            "batch_size": 128,
            "optimizer": "adam",
            "lr": 0.001,
            "momentum": 0.9,
            "weight_decay": 0.0,
            "schedule": "coda",
            "clip_norm": None,
            "components": 100,
            "length": 8,
            "blocks": 5,
            "orthogonality": 0.0,
        },
    ),
    "finetune": (
        1,
        {
            "epochs": 20,
            "batch_size": 128,
            "optimizer": "sgd",
            "lr": 0.01,
            "momentum": 0.9,
            "weight_decay": 0.0,
            "schedule": "constant",
            "clip_norm": None,
            "masked": False,
            "backbone_lr_scale": 1.0,
        },
    ),
    "joint": (
        1,
        {
            "epochs": 20,
            "batch_size": 128,
            "optimizer": "sgd",
            "lr": 0.01,
            "momentum": 0.9,
            "weight_decay": 0.0,
            "schedule": "constant",
            "clip_norm": None,
            "backbone_lr_scale": 1.0,
        },
    ),
    "sdlora": (
        1,
        {
            "epochs": 20,
            "batch_size": 128,
            "optimizer": "sgd",
            "lr": 0.01,
            "momentum": 0.9,
            "weight_decay": 0.0,
            "schedule": "constant",
            "clip_norm": None,
            "rank": 10,
            "magnitude": 0.8,
        },
    ),
    "simplecil": (1, {}),
}


@cache
def trained(name: str) -> ContinualStrategy:
    """A strategy after its last task; tests leave it as it is."""
    return train(strategy_of(small(name, lr=0.01)), cut())


def task_of(model: nn.Module, plugin: Method, index: int, classes: Sequence[int], seen: Sequence[int]) -> Task:
    """What the strategy tells a method, with another key."""
    num_tasks = TASKS if plugin.needs_num_tasks else None
    return Task(index, tuple(classes), tuple(seen), CLASSES, num_tasks, model, ("elsewhere", index))


# --- hyper-parameters ------------------------------------------------------------------------------------------


def test_shipped_methods_are_found() -> None:
    assert {"coda", "finetune", "joint", "sdlora", "simplecil"} <= set(NAMES)
    assert sorted(NAMES) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_facts_that_tables_show(name: str) -> None:
    cls = registry.find(name).cls
    assert cls.paper and cls.stores and cls.__doc__
    assert cls.trains_on in ("task", "stream")
    assert cls.forward_passes >= 1
    assert isinstance(cls.revision, int) and cls.revision >= 1


@pytest.mark.parametrize("name", NAMES)
def test_every_hyper_parameter_but_the_common_ones_is_documented(name: str) -> None:
    common = set(registry.Found("common", GradientMethod, 1).defaults)
    own = set(registry.find(name).defaults) - common
    assert all(field in str(registry.find(name).cls.__doc__) for field in own)


@pytest.mark.parametrize(("name", "field"), FIELDS)
@pytest.mark.parametrize(
    "value",
    ["not-a-value", "-1", "", [["nested"]], {"a": 1}]
    + ["nan", "inf", "-inf", "1e999", float("nan"), float("inf"), -float("inf")],
    ids=repr,
)
def test_ill_typed_values_name_method_and_field(name: str, field: str, value: Any) -> None:
    found = registry.find(name)
    with pytest.raises(UserError, match=rf"^{name}\.{field} = .* is not valid: "):
        found.create({field: value})
    with pytest.raises(UserError, match=rf"^{found.cls.__name__}\.{field} = .* is not valid: "):
        found.cls(**{field: value})


@pytest.mark.parametrize("name", NAMES)
def test_unknown_hyper_parameters_are_refused_with_a_guess(name: str) -> None:
    found = registry.find(name)
    for field in found.defaults:
        with pytest.raises(UserError, match=f"'{name}' '{field}x'; .*Did you mean"):
            found.create({f"{field}x": 1})
    with pytest.raises(UserError, match=f"hyper-parameter of '{name}' 'zzz'"):
        found.create({"zzz": 1})


def test_unknown_methods_are_refused_with_a_guess() -> None:
    with pytest.raises(UserError, match="unknown method 'sd-lora'.*Did you mean 'sdlora'"):
        registry.find("sd-lora")


@pytest.mark.parametrize("name", NAMES)
def test_defaults_survive_json_and_the_command_line(name: str) -> None:
    found = registry.find(name)
    stored = json.loads(json.dumps(found.defaults, allow_nan=False))
    assert stored == found.defaults
    values = found.create(stored).values()
    assert values == found.defaults
    assert {field: type(value) for field, value in values.items()} == {
        field: type(value) for field, value in found.defaults.items()
    }
    typed = {
        field: "+".join(map(str, value)) if isinstance(value, list) else str(value) for field, value in stored.items()
    }
    assert found.create(typed).values() == found.defaults


@pytest.mark.parametrize("name", NAMES)
def test_a_changed_default_needs_a_new_revision(name: str) -> None:
    found = registry.find(name)
    row = f'"{name}": ({found.revision!r}, {found.defaults!r}),'
    assert name in PINNED, f"new method: add this row to PINNED in {__file__}: {row}"
    revision, defaults = PINNED[name]
    changed = {
        field for field, value in defaults.items() if field not in found.defaults or found.defaults[field] != value
    }
    assert not changed or found.revision != revision, (
        f"defaults of '{name}' changed ({', '.join(sorted(changed))}), but not its revision: stored results of "
        f"revision {revision} would be taken for results of the new defaults. Raise `revision` in methods/{name}.py"
    )
    assert (found.revision, found.defaults) == PINNED[name], f"'{name}' is newer: replace its row in PINNED by {row}"


def test_a_method_file_takes_its_hash_as_revision(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    source = Path(str(method.__file__)).with_name("methods").joinpath("finetune.py").read_text()
    path.write_text(source)
    found = registry.load_file(path)
    path.write_text(source + "\n")
    assert found.name == "mine"
    assert str(found.revision).startswith("file:") and registry.load_file(path).revision != found.revision
    assert registry.load_file(path).defaults == registry.find("finetune").defaults
    for text, message in (("x = (", "syntax error in line 1"), ("1 / 0", "ZeroDivisionError"), ("x = 1", "found none")):
        path.write_text(text)
        with pytest.raises(UserError, match=message):
            registry.load_file(path)
    with pytest.raises(UserError, match="cannot be read"):
        registry.load_file(tmp_path / "absent.py")


# --- models ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_the_model_is_built_on_the_backbone_it_is_given(name: str) -> None:
    vit = tiny_vit()
    model = small(name).build(vit, CLASSES)
    assert model.backbone is vit


@pytest.mark.parametrize("name", NAMES)
def test_forward_passes_are_counted_right(name: str) -> None:
    strategy = trained(name)
    passes: list[int] = []
    hook = strategy.model.backbone.patch_embed.register_forward_hook(lambda *_: passes.append(1))
    strategy.model.eval()
    with torch.no_grad():
        logits = strategy.model(images_of(cut().test[0])[0])
    hook.remove()
    assert len(passes) == strategy.method.forward_passes
    assert logits.shape == (len(cut().test[0].dataset), CLASSES)
    assert logits.dtype == torch.float32 and bool(logits.isfinite().all())


HEAD = CLASSES * (DIM + 1)
STORED = {
    "simplecil": lambda t: CLASSES * DIM,
    "finetune": lambda t: sum(p.numel() for p in tiny_vit().parameters()) + HEAD,
    "joint": lambda t: sum(p.numel() for p in tiny_vit().parameters()) + HEAD,
    # A [blocks, 2, rank, d], B [blocks, 2, d, rank] and a magnitude per task; rank 3.
    "sdlora": lambda t: HEAD + t * (2 * DEPTH * 2 * 3 * DIM + 1),
    # 12 / 3 components per task: P [blocks, 4, length 4, d], K and A [blocks, 4, d].
    "coda": lambda t: HEAD + t * DEPTH * 4 * DIM * (4 + 1 + 1),
}


@pytest.mark.parametrize("name", NAMES)
def test_stored_and_trainable_numbers(name: str) -> None:
    plugin = small(name, epochs=1)
    strategy = strategy_of(plugin)
    stages = experiences(plugin, cut())
    stored = []
    for stage, experience in enumerate(stages, start=1):
        strategy.train(experience, eval_streams=[])
        stored.append(strategy.stored_numbers())
        total = sum(value.numel() for value in strategy.model.state_dict().values())
        assert 0 < stored[-1] <= total
        assert strategy.trainable <= stored[-1], "trained numbers that are not kept"
        assert (strategy.trainable == 0) is not isinstance(plugin, GradientMethod)
        if name in STORED:
            assert stored[-1] == STORED[name](stage)
    assert stored == sorted(stored)


@pytest.mark.parametrize("name", NAMES)
def test_all_that_outlives_a_task_is_in_the_state_dict(name: str) -> None:
    """A second model that went through the same growth predicts the same once it has the first one's weights."""
    strategy = trained(name)
    plugin, stream = small(name, lr=0.01), cut()
    model = plugin.build(tiny_vit(seed=1), CLASSES)
    seen: list[int] = []
    for index, experience in enumerate(experiences(plugin, stream)):
        own = sorted(experience.classes_in_this_experience)
        seen += own
        images = TaskImages(samples_of(experience.dataset), ("elsewhere", index), torch.device("cpu"))
        with torch.no_grad():
            plugin.before_task(task_of(model, plugin, index, own, seen), images)
    images, _ = images_of(stream.test[1])
    with torch.no_grad():
        expected = strategy.model.eval()(images)
        assert not torch.allclose(model.eval()(images), expected, atol=1e-3)
        model.load_state_dict(strategy.model.state_dict(), strict=True)
        assert torch.equal(model.eval()(images), expected)


@pytest.mark.parametrize("name", NAMES)
def test_traces_are_tables_of_plain_values(name: str) -> None:
    strategy = trained(name)
    assert strategy.task is not None
    tables = strategy.method.traces(strategy.task)
    assert json.loads(json.dumps(tables, allow_nan=False)) == tables
    assert all(isinstance(row, dict) for rows in tables.values() for row in rows)


# --- who competes in the loss ----------------------------------------------------------------------------------


def rows_with_gradient(plugin: Method, classes: Sequence[int], seen: Sequence[int]) -> set[int]:
    """Classes whose logits get a gradient from the method's own loss in its only phase."""
    model = plugin.build(tiny_vit(), CLASSES)
    (phase,) = plugin.phases(task_of(model, plugin, 1, classes, seen))
    logits = torch.zeros(len(classes), CLASSES).requires_grad_()
    losses = phase.loss(logits, torch.tensor(list(classes)))
    assert losses.shape == (len(classes),)
    losses.sum().backward()
    assert logits.grad is not None and bool(logits.grad.isfinite().all())
    return set(np.flatnonzero(logits.grad.abs().sum(dim=0).numpy() > 0).tolist())


def test_finetune_lets_all_classes_seen_compete_and_masked_only_the_task() -> None:
    own, seen = [4, 5, 6, 7], list(range(8))
    assert rows_with_gradient(small("finetune"), own, seen) == set(seen)
    assert rows_with_gradient(small("finetune", masked=True), own, seen) == set(own)
    assert rows_with_gradient(small("joint"), seen, seen) == set(seen)


def changed_rows(before: dict[str, Tensor], after: dict[str, Tensor]) -> set[int]:
    return set(np.flatnonzero((before["weight"] != after["weight"]).any(dim=1).numpy()).tolist())


@pytest.mark.parametrize("masked", [False, True])
def test_finetune_trains_the_backbone_and_the_head_rows_that_compete(masked: bool) -> None:
    strategy = strategy_of(small("finetune", masked=masked))
    for experience, own in zip(cut().train, cut().tasks, strict=True):
        head, vit = snapshot(strategy.model.head), snapshot(strategy.model.backbone)
        strategy.train(experience, eval_streams=[])
        expected = set(own) if masked else set(strategy.seen)
        assert changed_rows(head, strategy.model.head.state_dict()) == expected
        moved = strategy.model.backbone.state_dict()
        assert all(not torch.equal(vit[key], moved[key]) for key in vit if key.endswith("weight"))


@pytest.mark.parametrize("name", ["finetune", "joint"])
def test_a_slow_backbone_gets_its_own_learning_rate(name: str) -> None:
    plugin = small(name, lr=0.5, backbone_lr_scale=0.25)
    model = plugin.build(tiny_vit(), CLASSES)
    (phase,) = plugin.phases(task_of(model, plugin, 0, range(4), range(4)))
    groups = phase.optimizer(phase.parameters).param_groups
    rates = {id(parameter): group["lr"] for group in groups for parameter in group["params"]}
    assert {rates[id(p)] for p in model.backbone.parameters()} == {0.125}
    assert {rates[id(p)] for p in model.head.parameters()} == {0.5}


def test_joint_trains_on_everything_at_once() -> None:
    kind: Literal["task", "stream"] = registry.find("joint").cls.trains_on
    assert kind == "stream"
    strategy = strategy_of(small("joint", epochs=1))
    head = snapshot(strategy.model.head)
    train(strategy, cut())
    everything = {label for own in cut().tasks for label in own}
    assert strategy.tasks_learned == 1 and set(strategy.seen) == everything
    assert changed_rows(head, strategy.model.head.state_dict()) == everything


@pytest.mark.skipif("coda" not in NAMES, reason="about coda")
def test_coda_needs_a_component_for_each_task() -> None:
    plugin = small("coda", components=TASKS - 1)
    with pytest.raises(UserError, match=f"coda.components = {TASKS - 1}.*at least {TASKS}"):
        plugin.check(TASKS)
    small("coda", components=TASKS).check(TASKS)


@pytest.mark.skipif("coda" not in NAMES, reason="about coda")
def test_coda_prompts_no_more_blocks_than_there_are() -> None:
    small("coda", blocks=DEPTH).build(tiny_vit(), CLASSES)
    with pytest.raises(UserError, match=f"coda.blocks = {DEPTH + 1}.*only {DEPTH} blocks"):
        small("coda", blocks=DEPTH + 1).build(tiny_vit(), CLASSES)
