"""A faulty phase, hook or step ends the run in one sentence that names the phase and the method."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from avalanche.evaluation.metrics import accuracy_metrics
from avalanche.logging import BaseLogger
from avalanche.training.plugins import EvaluationPlugin, EWCPlugin
from torch import Tensor, nn

from cl_bench.contract.method import build_model
from cl_bench.contract.phase import Batch, Phase, StepBatch
from cl_bench.contract.task import Task
from cl_bench.data.samples import TaskSamples
from cl_bench.errors import UserError
from tests.helpers.command import RUNS, TRIAL, Cli, assert_refused
from tests.helpers.phases import Numbers, OnNumbers, always, carry_out, features, learn, method
from tests.helpers.tiny import CLASSES, tiny_vit

pytestmark = pytest.mark.usefixtures("one_thread")

Phases = Callable[[OnNumbers, Task], list[Phase]]


def refused(phases: Phases, *plugins: Any, evaluator: Any = None, **functions: Any) -> str:
    """The sentence of the `UserError` in which learning a task with these phases ends."""
    with pytest.raises(UserError) as error:
        learn(method(phases=phases, **functions)(epochs=2, batch_size=7), *plugins, evaluator=evaluator)
    sentence = str(error.value)
    assert "\n" not in sentence
    return sentence


def values(task: Task) -> Callable[[Any, Tensor], Tensor]:
    """A loss per sample that depends on `x` alone."""
    return lambda outputs, labels: task.model.x.expand(len(labels))


def with_step(step: Callable[[Task, StepBatch], Any], **more: Any) -> Phases:
    """One phase that trains `x` by its own step."""

    def phases(self: OnNumbers, task: Task) -> list[Phase]:
        return [self.phase([{"params": [task.model.x]}], step=lambda batch: step(task, batch), **more)]

    return phases


def with_hook(hook: Callable[[Task], None]) -> Phases:
    """Two phases; the second trains `x` and calls the hook after its last step."""

    def phases(self: OnNumbers, task: Task) -> list[Phase]:
        trains = [{"params": [task.model.x]}]

        def after_step(step: int, steps: int) -> None:
            if step == steps:
                hook(task)

        return [self.phase(trains, values(task)), self.phase(trains, values(task), after_step=after_step)]

    return phases


# --- the parts of a phase --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (
            lambda self, model: {"parameters": []},
            "trains nothing: it lists no parameters; list what it trains, or leave it out",
        ),
        (
            lambda self, model: {
                "parameters": [{"params": [model.x]}],
                "step": lambda batch: model.x,
                "others": {"critic": self.optimization([{"params": []}])},
            },
            "trains nothing: its optimiser 'critic' lists no parameters; list what it trains, or leave it out",
        ),
        (
            lambda self, model: {"parameters": [{"params": [nn.Parameter(torch.zeros(2, 3))]}]},
            "trains a tensor of shape (2, 3) that is no parameter of the model or of task.scratch, or has been "
            "replaced: register it there, and change it in place",
        ),
        (
            lambda self, model: {"parameters": [{"params": [model.decided]}]},
            "trains a tensor of shape () that is no parameter of the model or of task.scratch, or has been replaced: "
            "register it there, and change it in place",
        ),
    ],
    ids=["nothing", "nothing by another optimiser", "outside the model", "a buffer"],
)
def test_what_a_phase_cannot_train(make: Callable[..., dict[str, Any]], sentence: str) -> None:
    def phases(self: OnNumbers, task: Task) -> list[Phase]:
        given = make(self, task.model)
        loss = None if "step" in given else values(task)
        return [self.phase([{"params": [task.model.x]}], values(task)), self.phase(**{"loss": loss, **given})]

    assert refused(phases) == f"phase 1 of Mine {sentence}"


def step(batch: StepBatch) -> Tensor:
    return batch.inputs.mean()


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        ({}, "a phase takes its steps by `loss`, or by a `step` of its own: give one of them"),
        (
            {"loss": nn.functional.cross_entropy, "step": step},
            "a phase takes its steps by `loss`, or by a `step` of its own: give one of them",
        ),
        (
            {"step": step, "forward": nn.Identity()},
            "a phase with a `step` of its own has no `forward`: make the passes in the step",
        ),
        (
            {"step": step, "before_step": nn.Identity()},
            "a phase with a `step` of its own has no `before_step`: do the work in the step",
        ),
        (
            {"loss": nn.functional.cross_entropy, "others": ["critic", "head"]},
            "a phase uses other optimisers (critic, head) only in a `step` of its own",
        ),
        (
            {"step": step, "others": [""]},
            "one of the other optimisers of a phase has an empty name, which is its own optimiser's",
        ),
    ],
    ids=[
        "neither loss nor step",
        "loss and step",
        "forward and step",
        "before_step and step",
        "others without step",
        "nameless",
    ],
)
def test_what_does_not_go_together(more: dict[str, Any], sentence: str) -> None:
    def phases(self: OnNumbers, task: Task) -> list[Phase]:
        trains = [{"params": [task.model.x]}]
        others = {name: self.optimization(trains) for name in more.get("others", [])}
        return [self.phase(trains, **{**more, "others": others})]

    assert refused(phases) == f"Mine.phases, task 0: {sentence}"


def test_parameters_without_groups() -> None:
    def phases(self: OnNumbers, task: Task) -> list[Phase]:
        return [self.phase([task.model.x], values(task))]

    assert refused(phases) == "Mine.phases, task 0: `parameters` are a list of groups: write [{'params': [...]}]"


def test_parameters_may_be_given_as_torch_takes_them() -> None:
    """A single tensor, or an iterator that can be read once."""

    def phases(self: OnNumbers, task: Task) -> list[Phase]:
        groups = [{"params": task.model.head.parameters()}, {"params": task.model.y}]
        return [self.phase(groups, lambda logits, labels: logits.square().mean() + task.model.y.sum())]

    strategy = learn(method(phases=phases)(epochs=1, batch_size=20))
    assert strategy.trainable == CLASSES * 33 + 2
    assert strategy.trained == {"head.weight", "head.bias", "y"}
    assert strategy.model.y.tolist() == pytest.approx([2.99, -4.01])


@pytest.mark.parametrize(
    ("counts", "sentence"),
    [
        ([0, 2], "phase 0 of Mine: its `batches` give 0 in epoch 0, expected at least one"),
        ([2, 1], "phase 0 of Mine: its `batches` give 1 in epoch 1, expected 2 as in the epoch before"),
    ],
)
def test_epochs_of_other_lengths(counts: list[int], sentence: str) -> None:
    def phases(self: OnNumbers, task: Task) -> list[Phase]:
        def batches(epoch: int) -> list[Batch]:
            return always(features(counts[epoch]))(epoch)

        return [self.phase([{"params": [task.model.x]}], values(task), task.model.head, batches=batches)]

    assert refused(phases) == sentence


# --- losses and steps ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("found", "described"),
    [
        (lambda labels: torch.zeros(len(labels), 1), "a tensor of shape (7, 1)"),
        (lambda labels: torch.zeros(len(labels) + 1), "a tensor of shape (8,)"),
        (lambda labels: 0.5, "float"),
        (lambda labels: None, "NoneType"),
    ],
    ids=["matrix", "too long", "float", "None"],
)
def test_a_loss_of_a_wrong_shape(found: Callable[[Tensor], Any], described: str) -> None:
    def phases(self: OnNumbers, task: Task) -> list[Phase]:
        return [self.phase([{"params": [task.model.x]}], lambda outputs, labels: found(labels))]

    expected = "expected one value per sample, shape (7,), or a scalar"
    assert refused(phases) == f"phase 0 of Mine: its loss is {described}, {expected}"


ON_THE_WAY = "list the parameters that it comes from, and look for a detach() on the way"
NOTHING = f"the loss depends on nothing that the phase trains; {ON_THE_WAY}"


@pytest.mark.parametrize(
    "outputs", [lambda model: model.y.sum(), lambda model: nn.Parameter(torch.ones(()))], ids=["frozen", "elsewhere"]
)
@pytest.mark.parametrize("own", [False, True], ids=["loss", "step"])
def test_a_loss_that_depends_on_nothing_trained(own: bool, outputs: Callable[[Any], Tensor]) -> None:
    def phases(self: OnNumbers, task: Task) -> list[Phase]:
        def step(batch: StepBatch) -> Tensor:
            loss = outputs(task.model)
            batch.update(loss)
            return loss

        trains = [{"params": [task.model.x]}]
        return [self.phase(trains, step=step) if own else self.phase(trains, lambda o, labels: outputs(task.model))]

    assert refused(phases) == f"phase 0 of Mine: {NOTHING}"


@pytest.mark.parametrize(
    ("update", "sentence"),
    [
        (
            lambda model, batch: batch.update(model.x, "critc"),
            "this phase has no optimiser 'critc'; name it in `others`",
        ),
        (
            lambda model, batch: batch.update(model.x, "critic"),
            f"the loss depends on nothing that the optimiser 'critic' trains; {ON_THE_WAY}",
        ),
        (
            lambda model, batch: batch.update(model.x.expand(3)),
            "`update` was given a tensor of shape (3,), expected a loss, a scalar tensor",
        ),
        (lambda model, batch: batch.update(0.5), "`update` was given float, expected a loss, a scalar tensor"),
    ],
    ids=["unknown optimiser", "loss of another optimiser", "vector", "float"],
)
def test_an_update_that_cannot_be_made(update: Callable[..., None], sentence: str) -> None:
    def phases(self: OnNumbers, task: Task) -> list[Phase]:
        return [
            self.phase(
                [{"params": [task.model.x]}],
                step=lambda batch: update(task.model, batch),
                others={"critic": self.optimization([{"params": [task.model.y]}])},
            )
        ]

    assert refused(phases) == f"phase 0 of Mine: {sentence}"


@pytest.mark.parametrize(
    ("returned", "described"),
    [
        (lambda loss: None, "NoneType"),
        (lambda loss: loss.expand(7), "a tensor of shape (7,)"),
        (lambda loss: loss.item(), "float"),
        (lambda loss: "0.5", "str"),
        (lambda loss: (loss, loss, loss), "tuple"),
        (lambda loss: (loss.item(), torch.zeros(7, CLASSES)), "float"),
    ],
    ids=["None", "vector", "float", "string", "three", "float and logits"],
)
def test_a_step_that_returns_no_loss(returned: Callable[[Tensor], Any], described: str) -> None:
    def step(task: Task, batch: StepBatch) -> Any:
        batch.update(task.model.x)
        return returned(task.model.x)

    expected = "expected the mean loss, a scalar tensor, or (mean loss, logits)"
    assert refused(with_step(step)) == f"phase 0 of Mine: its step returned {described}, {expected}"


@pytest.mark.parametrize(
    ("logits", "described"), [(torch.zeros(3, CLASSES), f"a tensor of shape (3, {CLASSES})"), ("none", "str")]
)
def test_a_step_that_returns_logits_of_other_samples(logits: Any, described: str) -> None:
    def step(task: Task, batch: StepBatch) -> Any:
        batch.update(task.model.x)
        return task.model.x, logits

    expected = "expected one row per sample, (7, num_classes)"
    assert refused(with_step(step)) == f"phase 0 of Mine: its step returned {described} as logits, {expected}"


def test_a_step_that_never_updates() -> None:
    sentence = "phase 0 of Mine trains nothing: its step never calls `update` of the batch it is given"
    assert refused(with_step(lambda task, batch: task.model.x)) == sentence


# --- parameters that must not change ---------------------------------------------------------------------------


def in_place(model: Numbers) -> None:
    model.head.bias += 1


def through_data(model: Numbers) -> None:
    model.head.bias.data.add_(1)


def new_data(model: Numbers) -> None:
    model.head.bias.data = torch.ones(CLASSES)


def copied(model: Numbers) -> None:
    model.head.bias.copy_(torch.ones(CLASSES))


def swapped(model: Numbers) -> None:
    """Swap two values, which keeps the plain sum of all bits."""
    model.head.bias.data[0], model.head.bias.data[1] = 1.0, 0.0


def replaced(model: Numbers) -> None:
    model.head.bias = nn.Parameter(torch.zeros(CLASSES))


WRITES = {"in place": in_place, "copy_": copied, "new data": new_data}
"""Changes that are detected right after the function that makes them."""
LATE = {"through data": through_data, "swapped": swapped, "replaced": replaced}
"""Changes that are detected at the end of the phase."""


def sentence_on(function: str, number: int) -> str:
    return (
        f"phase {number} of Mine: its {function} changed 'head.bias', which the phase does not train; list it among "
        "its parameters, or keep it as a buffer"
    )


def before_task(self: OnNumbers, task: Task, samples: TaskSamples) -> None:
    """Make two values differ, so that swapping them is a change."""
    task.model.head.bias[1] = 1.0


@pytest.mark.parametrize("write", [*WRITES, *LATE])
def test_a_hook_that_changes_a_frozen_parameter(write: str) -> None:
    phases = with_hook(lambda task: (WRITES | LATE)[write](task.model))
    assert refused(phases, before_task=before_task) == sentence_on("after_step", 1)


@pytest.mark.parametrize("write", [*WRITES, *LATE])
def test_a_hook_before_the_step_that_changes_a_frozen_parameter(write: str) -> None:
    def phases(self: OnNumbers, task: Task) -> list[Phase]:
        def before_step(images: Tensor, step: int, steps: int) -> None:
            if step == 1:
                (WRITES | LATE)[write](task.model)

        return [self.phase([{"params": [task.model.x]}], values(task), before_step=before_step)]

    assert refused(phases, before_task=before_task) == sentence_on("before_step", 0)


@pytest.mark.parametrize("write", [*WRITES, *LATE])
def test_a_step_that_changes_a_frozen_parameter(write: str) -> None:
    def step(task: Task, batch: StepBatch) -> Tensor:
        batch.update(task.model.x)
        if batch.step == batch.steps:
            with torch.no_grad():
                (WRITES | LATE)[write](task.model)
        return task.model.x

    assert refused(with_step(step), before_task=before_task) == sentence_on("step", 0)


def test_what_is_put_back_has_not_been_changed() -> None:
    """Trained parameters and buffers may be written to in every way."""

    def hook(task: Task) -> None:
        model = task.model
        model.head.bias.data.add_(1)
        model.head.bias.data.sub_(1)
        model.decided.fill_(7)
        model.x.data = torch.tensor(1.0)

    strategy = learn(method(phases=with_hook(hook))(epochs=2, batch_size=7))
    assert (strategy.model.x.item(), float(strategy.model.decided)) == (1, 7)


def test_a_hook_that_replaces_what_is_trained() -> None:
    def hook(task: Task) -> None:
        task.model.x = nn.Parameter(torch.zeros(()))

    assert refused(with_hook(hook)) == (
        "phase 1 of Mine trains a tensor of shape () that is no parameter of the model or of task.scratch, or has been "
        "replaced: register it there, and change it in place"
    )


# --- Avalanche -------------------------------------------------------------------------------------------------


def honest(task: Task, batch: StepBatch) -> Tensor:
    batch.update(task.model.x)
    return task.model.x


def test_a_plugin_that_looks_into_steps_of_the_phases_own() -> None:
    assert refused(with_step(honest), EWCPlugin(0.1)) == (
        "EWCPlugin defines before_backward, which phase 0 of Mine never calls: it takes steps of its own; leave the "
        "plugin out, or use after_training_iteration"
    )


def test_training_metrics_need_logits() -> None:
    evaluator = EvaluationPlugin(accuracy_metrics(epoch=True), loggers=[BaseLogger()])
    assert refused(with_step(honest), evaluator=evaluator) == (
        "phase 0 of Mine: Avalanche's metrics need predictions; let its step return (mean loss, logits)"
    )


def test_training_metrics_see_the_logits_of_a_step() -> None:
    """All labels are predicted correctly, and the metric leaves out the padding of the last batch."""

    def step(task: Task, batch: StepBatch) -> tuple[Tensor, Tensor]:
        batch.update(task.model.x)
        return task.model.x, nn.functional.one_hot(batch.labels, CLASSES).float() * (batch.step < 6)

    evaluator = EvaluationPlugin(accuracy_metrics(epoch=True, minibatch=True), loggers=[BaseLogger()])
    learn(method(phases=with_step(step))(epochs=2, batch_size=7), evaluator=evaluator)
    metrics = evaluator.get_all_metrics()
    (accuracies,) = [v for name, v in metrics.items() if name.startswith("Top1_Acc_Epoch/train_phase")]
    assert accuracies[1][0] == 1 and 14 / 20 <= accuracies[1][1] < 1


# --- state in the model and elsewhere --------------------------------------------------------------------------


@pytest.mark.parametrize("thing", [[1.0], 0.5, None], ids=["list", "float", "None"])
@pytest.mark.parametrize("place", ["before_task", "after_phase", "after_task"])
def test_scratch_that_is_no_tensor(place: str, thing: Any) -> None:
    def function(self: OnNumbers, task: Task, samples: TaskSamples, *number: int) -> None:
        task.scratch["teacher"] = thing

    sentence = refused(lambda self, task: [self.phase([{"params": [task.model.x]}], values(task))], **{place: function})
    kind = type(thing).__name__
    expected = f"task.scratch['teacher'] was given {kind}, expected a tensor: only these are in checkpoints"
    assert sentence == f"Mine.{place}, task 0: {expected}"


def test_scratch_that_is_no_tensor_in_a_step() -> None:
    def step(task: Task, batch: StepBatch) -> Tensor:
        task.scratch["loss"] = 0.5  # type: ignore[assignment]
        return honest(task, batch)

    assert refused(with_step(step)) == (
        "phase 0 of Mine: task.scratch['loss'] was given float, expected a tensor: only these are in checkpoints"
    )


def test_a_decision_that_does_not_lie_in_the_model(tmp_path: Path) -> None:
    """A run that is resumed in the second phase, where it took a step, finds only one phase."""
    decided: list[int] = []

    def before_training(self: OnNumbers, strategy: Any, **kwargs: Any) -> None:
        decided.clear()

    def phases(self: OnNumbers, task: Task) -> list[Phase]:
        return [self.phase([{"params": [task.model.x]}], values(task))] * (1 + len(decided))

    def after_phase(self: OnNumbers, task: Task, samples: TaskSamples, number: int) -> None:
        decided[:] = [number]

    kind = method(phases=phases, after_phase=after_phase, before_training=before_training)
    with pytest.raises(UserError) as error:
        carry_out(kind, tmp_path / "checkpoint", steps=4, epochs=1, batch_size=5)
    assert str(error.value) == (
        "Mine was in phase 1 of task 0 and lists 1 now: what after_phase decides must be stored in the model"
    )


def test_a_model_whose_state_does_not_restore(tmp_path: Path) -> None:
    """The fault is found after the first task, before hours are lost."""

    class Stacked(Numbers):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            self.adapters = nn.ModuleList()

    def before_task(self: OnNumbers, task: Task, samples: TaskSamples) -> None:
        task.model.adapters.append(nn.Linear(2, 1, bias=False))

    def phases(self: OnNumbers, task: Task) -> list[Phase]:
        adapter = task.model.adapters[-1].weight
        return [self.phase([{"params": [adapter]}], lambda outputs, labels: adapter.sum().expand(len(labels)))]

    kind = method(build=lambda self, *given: Stacked(*given), before_task=before_task, phases=phases)
    with pytest.raises(UserError) as error:
        carry_out(kind, tmp_path / "checkpoint", epochs=1, batch_size=5)
    assert str(error.value) == (
        "the model of Mine cannot load its own state: a fresh one lacks adapters.0.weight; put modules that grow into "
        "a GrowingModules, a ParameterList or a buffer of the model, not into an nn.ModuleList; if this run were "
        "killed, it could not resume"
    )


def test_a_model_that_is_none() -> None:
    plugin = method(build=lambda self, backbone, num_classes: nn.Sequential(backbone, nn.Linear(32, num_classes)))()
    with pytest.raises(UserError) as error:
        build_model(plugin, tiny_vit(), CLASSES)
    assert str(error.value) == (
        "Mine.build returned Sequential, expected a FeatureModel: derive it from cl_bench.FeatureModel, which calls "
        "the backbone for you (see docs/add-a-method.md)"
    )


# --- on the command line ---------------------------------------------------------------------------------------

FILE = """
from dataclasses import dataclass

from cl_bench.contract.gradient import GradientMethod
from cl_bench.models.heads import Classifier


@dataclass(frozen=True, kw_only=True, eq=False)
class Mine(GradientMethod):
    '''The head's weight, and its bias as it is.'''

    epochs: int = 1

    def build(self, backbone, num_classes):
        return Classifier(backbone.requires_grad_(False), num_classes)

    def phases(self, task):
        head = task.model.head
        return [self.phase([{"params": [head.weight]}], **self.rest(head, self.cross_entropy(task)))]

    def rest(self, head, loss):
        return {"loss": loss}
"""
REST = 'return {"loss": loss}'
RUN = ("run", "--method-file", "mine.py", "--methods", "mine", *TRIAL)


@pytest.mark.parametrize(
    ("new", "sentence"),
    [
        (
            "return {'loss': loss, 'after_step': lambda step, steps: head.bias.data.add_(1)}",
            "mine seed 0 failed: phase 0 of Mine: its after_step changed 'head.bias', which the phase does not train; "
            "list it among its parameters, or keep it as a buffer",
        ),
        (
            "return {'step': lambda batch: batch.update(head.weight.sum())}",
            "mine seed 0 failed: phase 0 of Mine: its step returned NoneType, expected the mean loss, a scalar tensor, "
            "or (mean loss, logits)",
        ),
        (
            "return {'loss': loss, 'others': {'bias': self.optimization([])}}",
            "mine seed 0 failed: Mine.phases, task 0: a phase uses other optimisers (bias) only in a `step` of its own",
        ),
    ],
    ids=["hook", "step", "phase"],
)
def test_a_run_of_a_method_file_ends_in_the_sentence(cl_bench: Cli, new: str, sentence: str) -> None:
    Path("mine.py").write_text(FILE.replace(REST, new))
    outcome = cl_bench(*RUN)
    assert outcome.code == 2
    assert outcome.out == ""
    assert outcome.err.splitlines()[-1] == f"error: {sentence}"
    assert "0 run(s) computed" in outcome.err and "Traceback" not in outcome.err
    assert not [path for path in RUNS.rglob("*") if path.is_file()]


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        (
            "    epochs",
            "    forward_passes = 'one per task'\n    epochs",
            "Mine.forward_passes is in words ('one per task'): define Mine.passes(tasks)",
        ),
        (
            "return Classifier(backbone.requires_grad_(False), num_classes)",
            "return backbone",
            "Mine.build returned VisionTransformer, expected a FeatureModel",
        ),
    ],
    ids=["passes", "build"],
)
def test_what_is_known_to_be_wrong_before_the_run(cl_bench: Cli, old: str, new: str, sentence: str) -> None:
    Path("mine.py").write_text(FILE.replace(old, new, 1))
    assert_refused(cl_bench(*RUN), sentence)
    assert not RUNS.exists() or not [path for path in RUNS.rglob("*") if path.is_file()]


def test_the_same_file_runs_where_nothing_is_wrong(cl_bench: Cli) -> None:
    Path("mine.py").write_text(FILE)
    assert cl_bench(*RUN).code == 0
