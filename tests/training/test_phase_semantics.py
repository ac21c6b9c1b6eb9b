"""What a phase promises to the author of a method, tested against hand-computed numbers or plain loops."""

from __future__ import annotations

import copy
import math
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cl_bench.contract import schedules
from cl_bench.contract.losses import masked_cross_entropy
from cl_bench.contract.phase import Optimization, Phase, StepBatch
from cl_bench.contract.task import Scratch, Task
from cl_bench.data.samples import TaskSamples
from cl_bench.errors import UserError
from tests.helpers.phases import Numbers, OnNumbers, always, carry_out, features, learn, method
from tests.helpers.tiny import CLASSES, cut, tiny_vit
from tests.helpers.training import Spy, images_of, same, snapshot, strategy_of

pytestmark = pytest.mark.usefixtures("one_thread")

ONE = [torch.ones(1)]
"""The inputs of an epoch of one step."""


def sgd(lr: float, momentum: float = 0.0, weight_decay: float = 0.0) -> Callable[[Any], torch.optim.Optimizer]:
    return lambda groups: torch.optim.SGD(groups, lr=lr, momentum=momentum, weight_decay=weight_decay)


def optimization(parameters: list[Any], optimizer: Any, **more: Any) -> Optimization:
    return Optimization(
        **{
            "parameters": [{"params": parameters}],
            "optimizer": optimizer,
            "schedule": lambda epoch, epochs: 1.0,
            **more,
        }
    )


def losses(strategy: Any) -> list[float]:
    return [row["loss"] for row in strategy.traces["loss"]]


def heads(strategy: Any) -> nn.Linear:
    """A copy of the head with which this strategy starts, for a plain loop."""
    return copy.deepcopy(strategy_of(type(strategy.method)()).model.head)


# --- the order within a step -----------------------------------------------------------------------------------


def test_forward_loss_backward_clip_step_hook() -> None:
    """The loss x^2/2, whose gradient is x: with rate 1/2, momentum 1/2 and gradients clipped to 2, from x = 4."""
    seen: list[tuple[str, float]] = []

    def phases(self: OnNumbers, task: Task) -> list[Phase]:
        model = task.model

        def forward(inputs: Tensor) -> Tensor:
            seen.append(("forward", model.x.item()))
            return model.x * inputs

        def loss(outputs: Tensor, labels: Tensor) -> Tensor:
            seen.append(("loss", outputs.item()))
            return outputs.square() / 2

        def before(images: Tensor, step: int, steps: int) -> None:
            seen.append(("before", model.x.item()))

        def after(step: int, steps: int) -> None:
            seen.append(("after", model.x.item()))
            model.x -= 4

        hooks = {"before_step": before, "after_step": after}
        return [self.phase([{"params": [model.x]}], loss, forward, **hooks, batches=always(ONE))]

    strategy = learn(method(phases=phases)(epochs=3, lr=0.5, momentum=0.5, clip_norm=2.0))
    # Gradients 4, -1, -5, clipped to 2, -1, -2; momentum 2, 0, -2, which the hook's -4 is no part of.
    expected = [
        *(("before", 4), ("forward", 4), ("loss", 4), ("after", 3)),
        *(("before", -1), ("forward", -1), ("loss", -1), ("after", -1)),
        *(("before", -5), ("forward", -5), ("loss", -5), ("after", -4)),
    ]
    assert [name for name, _ in seen] == [name for name, _ in expected]
    assert [value for _, value in seen] == pytest.approx([value for _, value in expected], abs=1e-5)
    assert strategy.model.x.item() == pytest.approx(-8, abs=1e-5)
    assert losses(strategy) == pytest.approx([8, 0.5, 12.5], abs=1e-4)


def test_the_norm_of_all_groups_together_is_clipped() -> None:
    """The gradient (12, 3, -4) has norm 13 and is cut to a hundredth; weight decay comes after, by the optimiser."""

    def phases(self: OnNumbers, task: Task) -> list[Phase]:
        model = task.model
        groups = [{"params": [model.x], "lr": 1.0}, {"params": [model.y], "weight_decay": 0.5}]

        def loss(outputs: Tensor, labels: Tensor) -> Tensor:
            return outputs + 3 * model.x + model.y.square().sum() / 2

        return [self.phase(groups, loss, lambda inputs: 9 * model.x * inputs, batches=always(ONE))]

    strategy = learn(method(phases=phases)(epochs=1, lr=0.1, momentum=0.0, clip_norm=0.13))
    assert strategy.model.x.item() == pytest.approx(4 - 1.0 * 0.12, abs=1e-6)
    y = [3 - 0.1 * (0.03 + 0.5 * 3), -4 - 0.1 * (-0.04 - 0.5 * 4)]
    assert strategy.model.y.tolist() == pytest.approx(y, abs=1e-6)


@pytest.mark.parametrize(
    ("batch_size", "batches", "epochs", "steps"),
    [(7, None, 2, 6), (20, None, 3, 3), (64, None, 2, 2), (6, 2, 3, 6)],
    ids=["partial last batch", "one batch", "less than a batch", "batches"],
)
@pytest.mark.parametrize("own", [False, True], ids=["loss", "step"])
def test_steps_are_counted_from_1_over_the_phase(
    batch_size: int, batches: int | None, epochs: int, steps: int, own: bool
) -> None:
    counted: list[tuple[int, int, int]] = []
    begun: list[tuple[int, int]] = []
    seen = [0, 0]

    def phases(self: OnNumbers, task: Task) -> list[Phase]:
        def step(batch: StepBatch) -> Tensor:
            begun.append((batch.step, batch.steps))
            loss = task.model.x.square()
            batch.update(loss)
            return loss

        def phase(number: int) -> Phase:
            def hook(step: int, steps: int) -> None:
                assert not torch.is_grad_enabled()
                counted.append((number, step, steps))

            def before(images: Tensor, step: int, steps: int) -> None:
                assert not torch.is_grad_enabled()
                counted.append((number, step, steps))
                seen[0] += len(images)

            def loss(outputs: Tensor, labels: Tensor) -> Tensor:
                seen[1] += len(labels)
                return task.model.x.expand(len(labels))

            more = {"step": step} if own else {"loss": loss, "before_step": before}
            return self.phase(
                [{"params": [task.model.x]}],
                **more,
                after_step=hook,
                batches=None if batches is None else always(features(batches)),
                forward=None if own or batches is None else task.model.head,
            )

        return [phase(0), phase(1)]

    learn(method(phases=phases)(batch_size=batch_size, epochs=epochs))
    times = 1 if own else 2
    assert counted == [
        (number, step, steps) for number in range(2) for step in range(1, steps + 1) for _ in range(times)
    ]
    # Padding reaches neither the hook nor the loss.
    assert seen[0] == seen[1] and (seen[0] > 0) != own
    assert begun == own * [(step, steps) for step in range(1, steps + 1)] * 2


# --- losses ----------------------------------------------------------------------------------------------------


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    return nn.functional.cross_entropy(logits, labels, reduction="none")


def coupled(logits: Tensor, labels: Tensor) -> Tensor:
    """A loss that compares every sample with the mean of the batch."""
    return (logits - logits.mean(dim=0)).square().mean() + cross_entropy(logits, labels).max()


LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "per sample": cross_entropy,
    "mean": lambda logits, labels: cross_entropy(logits, labels).mean(),
    "coupled": coupled,
}


@pytest.mark.parametrize("name", list(LOSSES))
@pytest.mark.parametrize("own", [False, True], ids=["loss", "step"])
def test_only_real_samples_train_and_are_traced(name: str, own: bool) -> None:
    """20 images in batches of 7: the last batch is padded with one of its own images, which plugins do not see."""
    loss = LOSSES[name]
    sizes: list[tuple[int, int]] = []
    given: list[tuple[Tensor, Tensor]] = []

    def look(strategy: Any) -> None:
        assert len(strategy.mb_x) == len(strategy.mb_y) == strategy.valid
        given.append((strategy.mb_x.clone(), strategy.mb_y.clone()))

    def phases(self: OnNumbers, task: Task) -> list[Phase]:
        def counting(logits: Tensor, labels: Tensor) -> Tensor:
            sizes.append((len(logits), len(labels)))
            return loss(logits, labels)

        def step(batch: StepBatch) -> tuple[Tensor, Tensor]:
            logits = task.model(batch.inputs)
            found = counting(logits, batch.labels).mean()
            batch.update(found)
            return found, logits

        parameters = [{"params": list(task.model.head.parameters())}]
        return [self.phase(parameters, step=step) if own else self.phase(parameters, counting)]

    strategy = learn(method(phases=phases)(epochs=2, batch_size=7, lr=0.25), Spy(before_training_iteration=look))
    assert sizes == [(7, 7), (7, 7), (6, 6)] * 2
    assert sorted(torch.cat([labels for _, labels in given[:3]]).tolist()) == sorted(images_of(cut().train[0])[1])

    backbone, head = tiny_vit().eval(), heads(strategy)
    optimizer = torch.optim.SGD(head.parameters(), lr=0.25, momentum=0.9)
    trace: list[float] = []
    for epoch in range(2):
        total = 0.0
        for images, labels in given[3 * epoch : 3 * epoch + 3]:
            with torch.no_grad():
                outputs = backbone(images)
            mean = loss(head(outputs), labels).mean()
            optimizer.zero_grad()
            mean.backward()
            optimizer.step()
            total += mean.item() * len(labels)
        trace.append(total / 20)
    for parameter, wanted in zip(strategy.model.head.parameters(), head.parameters(), strict=True):
        torch.testing.assert_close(parameter, wanted, rtol=1e-5, atol=1e-6)
    assert losses(strategy) == pytest.approx(trace, rel=1e-5)
    assert [(row["phase"], row["epoch"]) for row in strategy.traces["loss"]] == [(0, 0), (0, 1)]


def test_a_mean_trains_to_the_same_bits_as_its_values() -> None:
    def phases_with(loss: Any) -> Any:
        return lambda self, task: [self.phase([{"params": list(task.model.head.parameters())}], loss)]

    one, other = (
        learn(method(phases=phases_with(LOSSES[name]))(epochs=2, batch_size=7, lr=0.25))
        for name in ("per sample", "mean")
    )
    for left, right in zip(one.model.head.parameters(), other.model.head.parameters(), strict=True):
        assert torch.equal(left, right)
    assert losses(one) == pytest.approx(losses(other), rel=1e-6)


# --- steps of the phase's own ----------------------------------------------------------------------------------


def test_two_optimisers_each_with_its_own_rates_schedule_momentum_and_clipping() -> None:
    """The head's weight by SGD, and its bias with `x` by Adam, against a plain loop."""
    inputs, epochs, classes = features(3), 4, range(4)
    rate = [1.0, 1.0, 0.25, 0.25]

    def objective(head: nn.Linear, x: Tensor, batch: Tensor, labels: Tensor) -> Tensor:
        return masked_cross_entropy(classes, CLASSES)(x * head(batch), labels).mean()

    def phases(self: OnNumbers, task: Task) -> list[Phase]:
        model = task.model

        def step(batch: StepBatch) -> Tensor:
            first = objective(model.head, model.x, batch.inputs, batch.labels)
            batch.update(first)
            second = objective(model.head, model.x, batch.inputs, batch.labels) + model.x.square()
            batch.update(second, "bias")
            return second

        groups = [{"params": [model.head.weight], "weight_decay": 0.5}, {"params": [model.y], "lr": 8.0}]
        bias = Optimization(
            parameters=[{"params": [model.head.bias]}, {"params": [model.x], "lr": 0.5}],
            optimizer=lambda groups: torch.optim.Adam(groups, lr=0.125),
            schedule=lambda epoch, epochs: rate[epoch],
            clip_norm=0.25,
        )
        return [self.phase(groups, step=step, others={"bias": bias}, batches=always(inputs), epochs=epochs)]

    strategy = learn(method(phases=phases)(schedule="cosine", lr=0.5, clip_norm=1.5, momentum=0.75))

    model = Numbers(tiny_vit(), CLASSES)
    model.head.load_state_dict(heads(strategy).state_dict())
    head, x = model.head, model.x
    sgd = torch.optim.SGD([{"params": [head.weight], "weight_decay": 0.5}], lr=0.5, momentum=0.75)
    adam = torch.optim.Adam([{"params": [head.bias], "lr": 0.125}, {"params": [x], "lr": 0.5}])
    trained = [head.weight, head.bias, x]
    trace = []
    for epoch in range(epochs):
        sgd.param_groups[0]["lr"] = 0.5 * (1 + math.cos(math.pi * epoch / epochs)) / 2
        adam.param_groups[0]["lr"], adam.param_groups[1]["lr"] = 0.125 * rate[epoch], 0.5 * rate[epoch]
        total = 0.0
        for batch in inputs:
            labels = torch.arange(len(batch)) % 4
            first = objective(head, x, batch, labels)
            (head.weight.grad,) = torch.autograd.grad(first, [head.weight])
            nn.utils.clip_grad_norm_([head.weight], 1.5)
            sgd.step()
            second = objective(head, x, batch, labels) + x.square()
            for parameter, gradient in zip(trained, torch.autograd.grad(second, trained), strict=True):
                parameter.grad = gradient
            nn.utils.clip_grad_norm_([head.bias, x], 0.25)
            adam.step()
            total += second.item()
        trace.append(total / len(inputs))
    for parameter, wanted in zip(
        [strategy.model.head.weight, strategy.model.head.bias, strategy.model.x], trained, strict=True
    ):
        torch.testing.assert_close(parameter, wanted, rtol=1e-5, atol=1e-6)
    # No loss depends on it, so that no optimiser touches it, momentum or not.
    assert strategy.model.y.tolist() == [3.0, -4.0]
    assert losses(strategy) == pytest.approx(trace, rel=1e-5)
    assert strategy.model.x.item() != 4


def test_update_starts_from_no_gradients_of_any_optimiser() -> None:
    """Gradients: 1 for x and 2 for y from the first loss, 10 for y from the second; arbitrary values before."""
    found: list[float] = []

    def phases(self: OnNumbers, task: Task) -> list[Phase]:
        x, y = task.model.x, task.model.y

        def step(batch: StepBatch) -> Tensor:
            x.grad, y.grad = torch.tensor(100.0), torch.full((2,), 100.0)
            batch.update(x + 2 * y.sum())
            batch.update(10 * y.sum(), "y")
            x.grad = torch.tensor(100.0)
            batch.update(x + y.sum(), "y", adjust=lambda: found.append(x.grad.item()))
            return x.detach()

        others = {"y": optimization([y], sgd(1.0))}
        return [self.phase([{"params": [x]}], step=step, others=others, batches=always(ONE))]

    strategy = learn(method(phases=phases)(epochs=1, lr=1.0, momentum=0.0))
    assert strategy.model.x.item() == 3
    assert strategy.model.y.tolist() == [3 - 11, -4 - 11]
    assert found == [1]


def test_gradients_are_adjusted_before_they_are_clipped() -> None:
    """The gradient of x^2/2 at 4, times 3, is clipped to 2; then at 2, divided by 4, it is 0.5 and not clipped."""
    seen: list[tuple[float, bool]] = []

    def phases(self: OnNumbers, task: Task) -> list[Phase]:
        x = task.model.x

        def step(batch: StepBatch) -> Tensor:
            def adjust() -> None:
                seen.append((float(x.grad), torch.is_grad_enabled()))
                x.grad.mul_(3 if batch.step == 1 else 0.25)

            loss = x.square() / 2
            batch.update(loss, adjust=adjust)
            return loss

        return [self.phase([{"params": [x]}], step=step, batches=always(ONE))]

    strategy = learn(method(phases=phases)(epochs=2, lr=1.0, momentum=0.0, clip_norm=2.0))
    assert [gradient for gradient, _ in seen] == pytest.approx([4, 2], abs=1e-5)
    assert not any(enabled for _, enabled in seen)
    assert strategy.model.x.item() == pytest.approx(1.5, abs=1e-5)


def test_a_step_at_shifted_parameters_and_on_parts_of_the_batch() -> None:
    """Sharpness-aware minimisation, of a loss on the first samples and one on the others (Foret et al., ICLR 2021)."""
    inputs, radius = features(4, size=5), 0.5

    def phases(self: OnNumbers, task: Task) -> list[Phase]:
        head = task.model.head
        parameters = list(head.parameters())

        def part(batch: StepBatch, chosen: slice) -> Tensor:
            return nn.functional.cross_entropy(head(batch.inputs[chosen]), batch.labels[chosen])

        def step(batch: StepBatch) -> Tensor:
            first = part(batch, slice(2)) + 0.25 * part(batch, slice(2, None))
            gradients = torch.autograd.grad(first, parameters)
            norm = torch.stack([gradient.norm() for gradient in gradients]).norm()
            with torch.no_grad():
                for parameter, gradient in zip(parameters, gradients, strict=True):
                    parameter += radius * gradient / norm

            def go_back() -> None:
                for parameter, gradient in zip(parameters, gradients, strict=True):
                    parameter.sub_(radius * gradient / norm)

            batch.update(part(batch, slice(2)) + 0.25 * part(batch, slice(2, None)), adjust=go_back)
            return first

        return [self.phase([{"params": parameters}], step=step, batches=always(inputs), epochs=2)]

    strategy = learn(method(phases=phases)(lr=0.25))

    head = heads(strategy)
    velocity = [torch.zeros_like(parameter) for parameter in head.parameters()]

    def gradients_at(weight: Tensor, bias: Tensor, batch: Tensor) -> tuple[Tensor, ...]:
        labels = torch.arange(5) % 4
        logits = batch @ weight.T + bias
        chosen = (logits.logsumexp(dim=1) - logits[range(5), labels]) * torch.tensor([1, 1, 0.25, 0.25, 0.25])
        return torch.autograd.grad(chosen[:2].sum() / 2 + chosen[2:].sum() / 3, [weight, bias])

    weight, bias = (parameter.detach().clone().requires_grad_() for parameter in head.parameters())
    for batch in inputs * 2:
        up = gradients_at(weight, bias, batch)
        length = math.sqrt(sum(float(each.square().sum()) for each in up))
        shifted = [
            (parameter + radius * each / length).detach().requires_grad_()
            for parameter, each in zip((weight, bias), up, strict=True)
        ]
        velocity = [0.9 * v + g for v, g in zip(velocity, gradients_at(shifted[0], shifted[1], batch), strict=True)]
        weight, bias = (
            (parameter - 0.25 * v).detach().requires_grad_()
            for parameter, v in zip((weight, bias), velocity, strict=True)
        )
    torch.testing.assert_close(strategy.model.head.weight, weight, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(strategy.model.head.bias, bias, rtol=1e-4, atol=1e-5)


def test_draws_of_a_step_belong_to_it_alone() -> None:
    """Each step and purpose has its own draws, independent of the global generators, which stay unchanged."""

    def draws(machine: int) -> list[float]:
        found: list[float] = []

        def phases(self: OnNumbers, task: Task) -> list[Phase]:
            def step(batch: StepBatch) -> Tensor:
                for purpose in ("noise", "mask", "noise"):
                    found.append(float(torch.rand((), generator=batch.generator(purpose))))
                batch.update(task.model.x.square())
                return task.model.x.detach()

            phase = self.phase([{"params": [task.model.x]}], step=step, batches=always(ONE * 2), epochs=2)
            return [phase, phase]

        torch.manual_seed(machine)
        learn(method(phases=phases)(), stages=2)
        assert torch.initial_seed() == machine
        return found

    one = draws(1)
    assert one == draws(2)
    noise, mask, again = one[::3], one[1::3], one[2::3]
    # Two tasks, two phases, two epochs, two steps.
    assert noise == again and len(set(noise + mask)) == 2 * len(noise) == 2 * 2**4


# --- schedules -------------------------------------------------------------------------------------------------


@schedules.register("halving-by-hand")
def halving(method: Any, epoch: int, epochs: int) -> float:
    return float(0.5**epoch * method.decay)


def test_a_method_brings_its_schedule() -> None:
    """Rate 1/2, halved after each of three epochs, times the hyper-parameter 1/4, on the gradient 1."""

    def phases(self: OnNumbers, task: Task) -> list[Phase]:
        loss = task.model.x.expand
        return [self.phase([{"params": [task.model.x]}], lambda o, labels: loss(len(labels)))]

    plugin = method(phases=phases)(
        schedule="halving-by-hand", decay=0.25, epochs=3, batch_size=20, lr=0.5, momentum=0.0
    )
    assert learn(plugin).model.x.item() == pytest.approx(4 - 0.5 * 0.25 * 1.75)


def test_the_name_of_a_schedule_is_taken_once() -> None:
    factor = types.FunctionType(halving.__code__, {"__name__": "a_file_of_mine"})
    with pytest.raises(UserError) as refused:
        schedules.register("cosine")(factor)
    assert str(refused.value) == (
        "schedule 'cosine' of a_file_of_mine has the name of one in cl_bench.contract.schedules; choose another"
    )
    assert schedules.find("cosine") is schedules.cosine
    # The same file, imported once more.
    assert schedules.register("halving-by-hand")(halving) is halving


def test_an_unknown_schedule_is_refused_with_all_names() -> None:
    with pytest.raises(UserError) as refused:
        method()(schedule="cosin")
    sentence = str(refused.value)
    assert sentence.startswith("Mine.schedule = 'cosin' is not valid: input should be '")
    names = sentence.split("input should be ")[1].replace(" or ", ", ").split(", ")
    assert names == sorted(names) and {"'coda'", "'constant'", "'cosine'", "'halving-by-hand'", "'steps'"} <= set(names)


# --- phases ----------------------------------------------------------------------------------------------------


def test_a_phase_has_its_own_epochs_and_batch_size() -> None:
    """A phase without its own values uses the method's; each starts with the parameters of the previous one."""
    sizes: list[tuple[int, int, int]] = []
    starts: list[float] = []

    def phases(self: OnNumbers, task: Task) -> list[Phase]:
        x = task.model.x

        def phase(**more: Any) -> Phase:
            def loss(outputs: Tensor, labels: Tensor) -> Tensor:
                starts.append(x.item())
                return x.expand(len(labels))

            return self.phase([{"params": [x]}], loss, **more)

        return [phase(), phase(epochs=1), phase(batch_size=20, epochs=3)]

    def look(strategy: Any) -> None:
        position = strategy.position
        sizes.append((position.phase, position.epoch, len(strategy.mb_y)))

    learn(method(phases=phases)(epochs=2, batch_size=8, lr=1.0, momentum=0.0), Spy(after_training_iteration=look))
    cut_up = [8, 8, 4]
    assert sizes == [
        *((0, epoch, size) for epoch in range(2) for size in cut_up),
        *((1, 0, size) for size in cut_up),
        *((2, epoch, 20) for epoch in range(3)),
    ]
    assert starts == [4 - step for step in range(12)]


@pytest.mark.parametrize("further", [0, 2])
def test_what_follows_is_decided_after_a_phase(further: int) -> None:
    """`after_phase` decides without gradients, on the current task's samples; then `phases` is called again."""
    calls: list[int] = []
    decisions: list[tuple[int, float]] = []

    def phases(self: OnNumbers, task: Task) -> list[Phase]:
        calls.append(task.index)
        one = self.phase([{"params": [task.model.x]}], lambda o, labels: task.model.x.expand(len(labels)))
        return [one] * (1 + int(task.model.decided))

    def after_phase(self: OnNumbers, task: Task, samples: TaskSamples, number: int) -> None:
        assert not torch.is_grad_enabled() and not task.model.training and len(samples) == 20
        assert sorted(set(task.classes)) == sorted({int(label) for _, labels in samples.batches() for label in labels})
        decisions.append((number, task.model.x.item()))
        task.model.decided.fill_(min(number + 1, further))

    def before_task(self: OnNumbers, task: Task, samples: TaskSamples) -> None:
        task.model.decided.zero_()

    functions = {"phases": phases, "after_phase": after_phase, "before_task": before_task}
    strategy = learn(method(**functions)(epochs=1, batch_size=20, lr=0.5, momentum=0.0), stages=2)
    numbers = list(range(further + 1))
    assert [number for number, _ in decisions] == numbers * 2
    assert [x for _, x in decisions] == pytest.approx([4 - 0.5 * (1 + n) for n in range(len(decisions))])
    assert calls == [task for task in range(2) for _ in range(2 + further)]
    assert [row["phase"] for row in strategy.traces["loss"]] == numbers * 2


def test_phases_are_asked_for_once_where_nothing_is_decided() -> None:
    calls: list[int] = []

    def phases(self: OnNumbers, task: Task) -> list[Phase]:
        calls.append(task.index)
        return [self.phase([{"params": [task.model.x]}], lambda o, labels: task.model.x.expand(len(labels)))] * 3

    learn(method(phases=phases)(epochs=1, batch_size=20), stages=2)
    assert calls == [0, 1]


# --- scratch ---------------------------------------------------------------------------------------------------


def test_a_kept_module_answers_as_it_was() -> None:
    scratch = Scratch()
    module = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)).eval()
    module[1].register_buffer("shift", torch.ones(2), persistent=False)
    inputs = torch.randn(4, 3, requires_grad=True)
    wanted = module(inputs).detach()
    scratch.keep("teacher", module)
    with torch.no_grad():
        module[0].weight.zero_()
        module[1].running_mean += 1
    found = scratch.call("teacher", module, inputs)
    assert torch.equal(found, wanted) and not found.requires_grad
    assert not torch.equal(module(inputs), wanted)
    assert not module[0].weight.any()


def test_another_function_of_a_kept_model_can_be_called() -> None:
    scratch, model = Scratch(), Numbers(tiny_vit(), CLASSES).eval()
    images = torch.randn(3, 1, 32, 32)
    wanted = model.features(images)
    scratch.keep("teacher", model)
    with torch.no_grad():
        model.backbone.norm.bias += 1
    assert torch.equal(scratch.call("teacher", model, images, method="features"), wanted)
    assert not torch.equal(model.features(images), wanted)


def test_scratch_copies_what_it_is_given() -> None:
    """A view of a tensor that changes later would have another value after a resume."""
    scratch, weight = Scratch(), nn.Parameter(torch.arange(6.0).reshape(2, 3))
    scratch["old"] = weight.T
    with torch.no_grad():
        weight.zero_()
    assert torch.equal(scratch["old"], torch.tensor([[0.0, 3], [1, 4], [2, 5]]))
    assert scratch["old"].is_contiguous() and not scratch["old"].requires_grad


def test_a_module_in_scratch_trains_like_any_other() -> None:
    torch.manual_seed(0)
    inputs, plain, structure = torch.randn(6, 4), nn.Linear(4, 3), nn.Linear(4, 3)
    scratch = Scratch()
    scratch.keep("head", plain)
    parameters = scratch.trainables("head", structure)
    assert all(one is other for one, other in zip(parameters, scratch.trainables("head", structure), strict=True))
    ours, theirs = torch.optim.SGD(parameters, lr=0.1), torch.optim.SGD(plain.parameters(), lr=0.1)
    before = snapshot(structure)
    for _ in range(3):
        for optimizer in (ours, theirs):
            optimizer.zero_grad()
        scratch.call("head", structure, inputs, gradients=True).square().sum().backward()
        plain(inputs).square().sum().backward()
        ours.step()
        theirs.step()
    assert torch.equal(scratch["head.weight"], plain.weight) and torch.equal(scratch["head.bias"], plain.bias)
    assert same(structure.state_dict(), before)
    assert not scratch.call("head", structure, inputs).requires_grad


def test_trainable_scratch_trains_counts_and_ends_with_the_task() -> None:
    """With gradient 1 and rate 1/2, `probe` starts at 1 and decreases by 1/2 in each of its steps."""
    found: list[list[float]] = []

    def before_task(self: OnNumbers, task: Task, samples: TaskSamples) -> None:
        assert not len(task.scratch)
        task.scratch["probe"] = torch.ones(7)

    def phases(self: OnNumbers, task: Task) -> list[Phase]:
        probe = task.scratch.trainable("probe")
        assert probe is task.scratch.trainable("probe") is task.scratch["probe"]

        def loss(outputs: Tensor, labels: Tensor) -> Tensor:
            return probe.sum().expand(len(labels))

        return [self.phase([{"params": [probe]}], loss), self.phase([{"params": [task.model.x, probe]}], loss)]

    def after_task(self: OnNumbers, task: Task, samples: TaskSamples) -> None:
        found.append(task.scratch["probe"].tolist())

    functions = {"before_task": before_task, "phases": phases, "after_task": after_task}
    start = strategy_of(method(**functions)()).stored_numbers()
    strategy = learn(method(**functions)(epochs=2, batch_size=20, lr=0.5, momentum=0.0), stages=2)
    assert [value for values in found for value in values] == pytest.approx([-1] * 14)
    assert strategy.trainable == 7 + 1
    assert strategy.stored_numbers() == start == CLASSES * 33 + 1 + 2 + 1
    assert not len(strategy.task.scratch)


# --- resuming from a checkpoint --------------------------------------------------------------------------------


Log = list[tuple[str, int, int, float]]


def rich(log: Log) -> type[OnNumbers]:
    """A method that uses everything: two optimisers, a hook, a teacher, scratch, decided phases, random draws.

    Args:
        log: filled with events: name, task, step, value.
    """

    def before_task(self: OnNumbers, task: Task, samples: TaskSamples) -> None:
        task.model.decided.zero_()
        task.scratch.keep("teacher", task.model.head)
        task.scratch["critic"] = 0.1 * torch.randn(CLASSES, task.model.head.in_features).T
        task.scratch["mean"] = torch.zeros(task.model.head.in_features)

    def phases(self: OnNumbers, task: Task) -> list[Phase]:
        model, scratch = task.model, task.scratch
        head, critic = model.head, scratch.trainable("critic")

        def step(batch: StepBatch) -> Tensor:
            with torch.no_grad():
                found = model.features(batch.inputs)
            scratch["mean"] = 0.5 * scratch["mean"] + found.mean(dim=0)
            noise = torch.rand(found.shape, generator=batch.generator("noise"))
            log.append(("draw", task.index, batch.step, float(noise[0, 0])))
            logits = head(found * noise)
            distance = (logits - scratch.call("teacher", head, found)).square().mean()
            loss = self.cross_entropy(task)(logits, batch.labels).mean() + distance
            batch.update(loss)
            batch.update(
                (found @ critic - logits.detach()).square().mean() + (scratch["mean"] @ critic).sum(), "critic"
            )
            return loss + (found @ critic).mean()

        def hook(step: int, steps: int) -> None:
            log.append(("hook", task.index, step, steps))
            head.bias.mul_(1 - 0.5 * step / steps)

        adamw = optimization(
            [critic],
            lambda groups: torch.optim.AdamW(groups, lr=0.05),
            schedule=lambda epoch, epochs: 1 - epoch / epochs,
        )
        first = self.phase([{"params": list(head.parameters())}], step=step, others={"critic": adamw}, after_step=hook)

        def loss(logits: Tensor, labels: Tensor) -> Tensor:
            return self.cross_entropy(task)(logits, labels) * model.x

        second = self.phase([{"params": [model.x, head.weight]}], loss, optimizer=sgd(0.01), epochs=1)
        return [first, second, second][: 1 + int(model.decided)]

    def after_phase(self: OnNumbers, task: Task, samples: TaskSamples, number: int) -> None:
        head = task.model.head
        if number < 2:
            task.model.decided += 1
            # Another memory layout of a parameter that the next phase trains; checkpoints do not store layouts.
            head.weight.data = (head.weight + torch.randn(head.weight.shape)).T.contiguous().T

    return method(before_task=before_task, phases=phases, after_phase=after_phase)


def test_a_run_that_is_killed_after_every_step_ends_with_the_same_bits(tmp_path: Path) -> None:
    once: Log = []
    again: Log = []
    changes: dict[str, Any] = {"epochs": 2, "batch_size": 5, "lr": 0.02, "schedule": "cosine"}
    whole = carry_out(rich(once), tmp_path / "whole", **changes)
    killed = carry_out(rich(again), tmp_path / "killed", steps=1, **changes)
    # Two tasks of two epochs of three steps, and two more epochs.
    assert (whole.sessions, killed.sessions) == (whole.record.sessions, killed.record.sessions) == (1, 24)
    assert list(dict.fromkeys(again)) == once
    assert [entry for entry in once if entry[0] == "hook"] == [
        ("hook", task, step, 6) for task in range(2) for step in range(1, 7)
    ]
    assert whole.model.keys() == killed.model.keys()
    for name, tensor in whole.model.items():
        assert torch.equal(killed.model[name], tensor), name
    assert killed.record.traces == whole.record.traces
    assert [(row["stage"], row["phase"], row["epoch"]) for row in whole.record.traces["loss"]] == [
        (stage, phase, epoch) for stage in range(2) for phase, epoch in ((0, 0), (0, 1), (1, 0), (2, 0))
    ]
    for name in ("correct", "correct_task_aware", "trainable", "stored", "train_samples"):
        assert getattr(killed.record, name) == getattr(whole.record, name), name
