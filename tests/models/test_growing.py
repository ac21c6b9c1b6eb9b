"""Modules that grow over the tasks are restored by their state dict alone."""

from __future__ import annotations

import copy
import random
from dataclasses import dataclass
from typing import Any

import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from cl_bench.contract.gradient import GradientMethod
from cl_bench.contract.phase import Phase
from cl_bench.contract.task import Task
from cl_bench.data.samples import TaskSamples
from cl_bench.models.adapters import Adapters
from cl_bench.models.base import FeatureModel
from cl_bench.models.growing import Growing, GrowingModules
from cl_bench.models.heads import linear_head
from cl_bench.training.checkpoint import Checkpoint, Facts, Stage
from cl_bench.training.strategy import ContinualStrategy
from tests.helpers.tiny import cut
from tests.helpers.training import Spy, same, snapshot, strategy_of, train

Plan = Any
"""A leaf by name, or ("plain" | "growing", plans of the parts)."""


class Buffer(nn.Module):
    values: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("values", torch.zeros(2))


class Bank(Growing):
    """A module with its own growing parameter lists and buffers, like `LoRABank` and `ClassStatistics`."""

    values: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.factors = nn.ParameterList()
        self.register_buffer("values", torch.zeros(0, 3))


LEAVES: dict[str, Any] = {
    "linear": lambda: nn.Linear(2, 3),
    "norm": lambda: nn.LayerNorm(2),
    "empty list": lambda: nn.ParameterList(),
    "list": lambda: nn.ParameterList([nn.Parameter(torch.zeros(2))]),
    "buffer": Buffer,
    "bank": Bank,
    "nothing": nn.ReLU,
}


def made(plan: Plan) -> nn.Module:
    if isinstance(plan, str):
        return LEAVES[plan]()
    kind, parts = plan
    if kind == "growing":
        return GrowingModules(lambda: made(("plain", parts) if len(parts) > 1 else parts[0]))
    return nn.ModuleDict({f"part {number}": made(part) for number, part in enumerate(parts)})


def shape(random: random.Random, dims: int) -> list[int]:
    return [random.randint(1, 4) for _ in range(dims)]


def grow(module: nn.Module, random: random.Random) -> None:
    """Give everything inside a module another size and other values."""
    if isinstance(module, GrowingModules):
        for _ in range(random.randint(0, 3)):
            module.grow()
        if random.random() < 0.2:
            del module[-1:]
    elif isinstance(module, nn.ParameterList):
        for _ in range(random.randint(0, 2)):
            module.append(torch.randn(shape(random, random.randint(0, 3))))
    elif isinstance(module, nn.Linear):
        module.out_features, module.in_features = shape(random, 2)
        module.weight = nn.Parameter(torch.randn(module.out_features, module.in_features))
        module.bias = nn.Parameter(torch.randn(module.out_features))
    elif isinstance(module, nn.LayerNorm):
        module.normalized_shape = tuple(shape(random, 1))
        module.weight, module.bias = (nn.Parameter(torch.randn(module.normalized_shape)) for _ in range(2))
    elif isinstance(module, Buffer | Bank):
        module.values = torch.randn(shape(random, 2))
    for child in module.children():
        grow(child, random)


plans = st.recursive(
    st.sampled_from(list(LEAVES)),
    lambda parts: st.tuples(st.sampled_from(["plain", "growing"]), st.lists(parts, min_size=1, max_size=3)),
    max_leaves=8,
)


@given(parts=st.lists(plans, min_size=1, max_size=3), seed=st.integers(0, 2**32))
@settings(deadline=None)
def test_any_nest_takes_on_the_state_of_another(parts: list[Plan], seed: int) -> None:
    """A fresh, a larger and a smaller nest take on a stored state bit for bit, and shrink back."""
    root, chance = ("plain", [("growing", parts)]), random.Random(seed)
    grown = made(root)
    grow(grown, chance)
    stored = safetensors.torch.save(snapshot(grown))
    for rounds in range(2):
        other = made(root)
        for _ in range(rounds):
            grow(other, chance)
        before, text = snapshot(other), str(other)
        generator = torch.get_rng_state()
        other.load_state_dict(safetensors.torch.load(stored))
        assert torch.equal(torch.get_rng_state(), generator)
        # The text of a module shows the number of its elements and the sizes of its layers.
        assert same(other.state_dict(), grown.state_dict()) and str(other) == str(grown)
        assert all(parameter.requires_grad for parameter in other.parameters())
        other.load_state_dict(before)
        assert same(other.state_dict(), before) and str(other) == text


class Model(nn.Module):
    """A part that grows and a part that does not."""

    def __init__(self, width: int = 2) -> None:
        super().__init__()
        self.experts = GrowingModules(lambda: nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 2)))
        self.head = nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(sum(expert(x) for expert in self.experts))


def grown_model(width: int = 3, elements: int = 2) -> Model:
    model = Model(width)
    for _ in range(elements):
        model.experts.grow()
    return model


def test_restored_layers_compute_the_same() -> None:
    """Includes layers with an attribute that repeats the shape of their weights."""
    model, restored, x = grown_model(), grown_model(width=2, elements=1), torch.randn(4, 3)
    restored(x[:, :2]).sum().backward()
    restored.load_state_dict(model.state_dict())
    assert torch.equal(model(x), restored(x))
    restored(x).sum().backward()


def test_what_does_not_grow_is_checked_as_ever() -> None:
    state = grown_model().state_dict()
    for name, stored, message in (
        ("head.weight", torch.zeros(2, 5), "size mismatch for head.weight"),
        ("experts.0.1.scale", torch.zeros(()), "Unexpected key.*experts.0.1.scale"),
        ("experts.2.1.weight", torch.zeros(2, 2), "Unexpected key.*experts.2.1.weight"),
        ("other", torch.zeros(()), "Unexpected key.*other"),
    ):
        with pytest.raises(RuntimeError, match=message):
            Model().load_state_dict({**state, name: stored})
    del state["experts.1.1.bias"]
    with pytest.raises(RuntimeError, match="Missing key.*experts.1.1.bias"):
        Model().load_state_dict(state)


def test_tensors_keep_what_is_not_their_shape() -> None:
    model = grown_model(width=2, elements=1).double().requires_grad_(False)
    model.experts[0].append(nn.ParameterList([nn.Parameter(torch.zeros(1).double(), requires_grad=False)]))
    first = model.experts[0][1].weight
    state = grown_model(width=3, elements=2).state_dict()
    more = {"experts.0.2.0": torch.ones(1), "experts.0.2.1": torch.ones(4)}
    model.experts.make = Model(3).experts.make
    model.load_state_dict({**state, **more})
    assert model.experts[0][1].weight is first and first.shape == (2, 3)
    old = [*model.experts[0].parameters(), *model.head.parameters()]
    assert len(old) == 8 and all(one.dtype == torch.float64 and not one.requires_grad for one in old)
    assert all(one.dtype == torch.float32 and one.requires_grad for one in model.experts[1].parameters())


@pytest.mark.parametrize("elements", [0, 1])
def test_a_new_element_lies_where_the_others_lie_and_is_in_their_mode(elements: int) -> None:
    experts = grown_model(elements=elements).experts.to("meta").eval()
    element = experts.grow()
    assert element is experts[-1] and not element.training
    assert {parameter.device.type for parameter in experts.parameters()} == {"meta"}


@pytest.mark.filterwarnings("ignore:.*meta parameter:UserWarning")
def test_restored_tensors_lie_where_the_module_lies() -> None:
    for elements in (0, 1):
        model = grown_model(width=2, elements=elements).to("meta")
        state = grown_model().state_dict()
        if elements:
            model.experts[0].append(nn.ParameterList())
            state["experts.0.2.0"] = torch.zeros(2)
        model.load_state_dict(state)
        assert len(model.experts) == 2
        assert {parameter.device.type for parameter in model.parameters()} == {"meta"}


def test_a_slice_and_a_copy() -> None:
    experts = grown_model().experts
    assert list(experts[:1]) == [experts[0]]
    copied = copy.deepcopy(experts)
    copied.grow()
    assert len(copied) == 3 and len(experts) == 2


# --- a method --------------------------------------------------------------------------------------------------------


class Experts(FeatureModel):
    """One set of adapters per task; the features are the sum over all sets."""

    def __init__(self, backbone: VisionTransformer, num_classes: int) -> None:
        super().__init__(backbone.requires_grad_(False), linear_head(backbone.num_features, num_classes))
        self.experts = GrowingModules(lambda: Adapters(backbone, 4))

    def features(self, images: Tensor) -> Tensor:
        return torch.stack([expert.features(self.vit, images) for expert in self.experts]).sum(dim=0)


@dataclass(frozen=True, kw_only=True, eq=False)
class ExpertPerTask(GradientMethod):
    """Trains the adapters of the current task and the head."""

    def build(self, backbone: VisionTransformer, num_classes: int) -> FeatureModel:
        return Experts(backbone, num_classes)

    def before_task(self, task: Task, images: TaskSamples) -> None:
        task.model.experts.grow()

    def phases(self, task: Task) -> list[Phase]:
        parameters = [*task.model.experts[-1].parameters(), *task.model.head.parameters()]
        return [self.phase([{"params": parameters}], self.cross_entropy(task))]


def test_a_method_with_growing_modules_goes_on_from_inside_a_task() -> None:
    stream, method = cut(), ExpertPerTask(epochs=2, batch_size=16)
    caught: list[Checkpoint] = []

    def catch(strategy: ContinualStrategy) -> None:
        position = strategy.where()
        assert position is not None
        if (strategy.tasks_learned, position.epoch) == (1, 1):
            stage = Stage(
                correct=[],
                correct_task_aware=[],
                train_seconds=0,
                eval_seconds=0,
                train_samples=0,
                trainable=0,
                stored=0,
            )
            found = strategy.checkpoint(Facts(key="", stages=[stage]))
            caught.append(Checkpoint(found.facts, {name: tensor.clone() for name, tensor in found.tensors.items()}))

    whole = train(strategy_of(method, Spy(before_training_epoch=catch)), stream)
    assert len(whole.model.experts) == 3
    resumed = strategy_of(method)
    resumed.resume(caught[0])
    assert len(resumed.model.experts) == 2
    for experience in list(stream.train)[1:]:
        resumed.train(experience, eval_streams=[])
    assert same(resumed.model.state_dict(), whole.model.state_dict())
