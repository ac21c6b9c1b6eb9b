"""What is optimised while a task is learned, and how."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from cl_bench.errors import Diverged, UserError
from cl_bench.randomness import Key, generator

ParameterGroup = dict[str, Any]
Loss = Callable[[Any, Tensor], Tensor]
Batch = tuple[Tensor, Tensor, int]


@dataclass(frozen=True, kw_only=True)
class Optimization:
    """An optimiser and what it trains.

    Attributes:
        parameters: torch optimiser groups, `{"params": parameters}`; a group may set its own `lr` or `weight_decay`.
        optimizer: made from the groups, anew for every phase.
        schedule: factor on the learning rate of every group, from (epoch, epochs).
        clip_norm: bound on the norm of the whole gradient, or None.
    """

    parameters: Sequence[ParameterGroup]
    optimizer: Callable[[Sequence[ParameterGroup]], torch.optim.Optimizer]
    schedule: Callable[[int, int], float]
    clip_norm: float | None = None

    def __post_init__(self) -> None:
        if not all(isinstance(group, Mapping) and "params" in group for group in self.parameters):
            raise UserError("`parameters` are a list of groups: write [{'params': [...]}]")
        # An iterator, such as `module.parameters()`, could be read only once.
        groups = [{**group, "params": _listed(group["params"])} for group in self.parameters]
        object.__setattr__(self, "parameters", groups)

    def trainable(self) -> list[nn.Parameter]:
        """All parameters of all groups."""
        return [parameter for group in self.parameters for parameter in group["params"]]


@dataclass(frozen=True, kw_only=True)
class Phase(Optimization):
    """One optimisation inside a task, with a fresh optimiser.

    A step is: outputs of `forward`, `loss`, its mean's gradient, clipped; the optimiser's step; `after_step`. Or all
    but the last is a function of the phase's own, `step`.

    Attributes:
        epochs: passes over the task's samples, or over `batches`.
        batch_size: samples per step; the last step of an epoch may have fewer.
        loss: from (outputs of `forward`, labels [B]), both of real samples only: per-sample losses [B], or a scalar for
            losses that couple the samples of a batch.
        forward: the training forward pass, to logits [B, num_classes] or to a tuple that begins with them and goes on
            with whatever else [B, ...] the loss needs; None: the model itself. It also sees samples that only fill up
            the last batch, so it must treat each sample alone.
        batches: (inputs, labels, how many of them count) of an epoch, as many in each; None: the task's samples.
        after_step: called without gradients after every step with (steps done in this phase, counted from 1; steps of
            the phase). It may change what the phase trains, and buffers.
        step: instead of `forward` and `loss`: from a `StepBatch` to the step's mean loss, or to (mean loss, logits) if
            Avalanche metrics are to see predictions. It calls `StepBatch.update`, as often as it needs.
        others: further optimisers by name, for `step`.
    """

    epochs: int
    batch_size: int
    loss: Loss | None = None
    forward: Callable[[Tensor], Any] | None = None
    batches: Callable[[int], Iterable[Batch]] | None = None
    after_step: Callable[[int, int], None] | None = None
    step: Callable[[StepBatch], Tensor | tuple[Tensor, Tensor]] | None = None
    others: Mapping[str, Optimization] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.loss is None) == (self.step is None):
            raise UserError("a phase takes its steps by `loss`, or by a `step` of its own: give one of them")
        if self.step is not None and self.forward is not None:
            raise UserError("a phase with a `step` of its own has no `forward`: make the passes in the step")
        if self.others and self.step is None:
            raise UserError(f"a phase uses other optimisers ({', '.join(self.others)}) only in a `step` of its own")
        if "" in self.others:
            raise UserError("one of the other optimisers of a phase has an empty name, which is its own optimiser's")

    def optimizations(self) -> dict[str, Optimization]:
        """This and the others by name; its own is the empty one."""
        return {"": self, **self.others}

    def trained(self) -> list[nn.Parameter]:
        """What it trains, with any of its optimisers."""
        return [parameter for each in self.optimizations().values() for parameter in each.trainable()]


@dataclass(frozen=True, kw_only=True)
class StepBatch:
    """The samples of a step of the phase's own: real ones only, so that the last batch may be smaller.

    Attributes:
        inputs: [B, C, H, W].
        labels: [B].
        step, steps: which step of the phase this is, counted from 1, and how many it has.
        key: of all random draws in this step.
        optimizers: of the phase, by name, each with what it was made from.
    """

    inputs: Tensor
    labels: Tensor
    step: int
    steps: int
    key: Key
    optimizers: Mapping[str, tuple[Optimization, torch.optim.Optimizer]]
    updates: list[str] = field(default_factory=list)

    def generator(self, purpose: str) -> torch.Generator:
        """A CPU generator for one purpose in this step, the same whenever and wherever it is asked for."""
        return generator((*self.key, purpose))

    def update(self, loss: Tensor, optimizer: str = "", adjust: Callable[[], None] | None = None) -> None:
        """Take an optimiser's step on a loss: gradients of nothing but this loss, `adjust`, clip, step.

        Args:
            loss: scalar.
            optimizer: which of the phase's `others`; empty: its own.
            adjust: called without gradients when they are there, to change them.

        Raises:
            UserError: no such optimiser, a loss that is no scalar or depends on nothing that the optimiser trains.
        """
        if optimizer not in self.optimizers:
            raise UserError(f"this phase has no optimiser '{optimizer}'; name it in `others`")
        if not isinstance(loss, Tensor) or loss.ndim:
            raise UserError(f"`update` was given {described(loss)}, expected a loss, a scalar tensor")
        optimization, chosen = self.optimizers[optimizer]
        for _, each in self.optimizers.values():
            each.zero_grad()
        backward(loss, optimization, f"optimiser '{optimizer}'" if optimizer else "phase")
        if adjust is not None:
            with torch.no_grad():
                adjust()
        take_step(optimization, chosen)
        self.updates.append(optimizer)


def backward(loss: Tensor, optimization: Optimization, name: str = "phase") -> None:
    """Gradients of a scalar loss.

    Args:
        optimization: whose step they are for.
        name: of that, for the message.

    Raises:
        UserError: the loss depends on no parameter that this trains.
    """
    if loss.requires_grad:
        loss.backward()
    if all(parameter.grad is None for parameter in optimization.trainable()):
        raise UserError(
            f"the loss depends on nothing that the {name} trains; list the parameters that it comes from, and look for "
            "a detach() on the way"
        )


def take_step(optimization: Optimization, optimizer: torch.optim.Optimizer) -> None:
    """Clip the gradient, if the optimiser asks for that, and take its step.

    Raises:
        Diverged: the step is too large for a number of this type.
    """
    if optimization.clip_norm is not None:
        nn.utils.clip_grad_norm_(optimization.trainable(), optimization.clip_norm)
    try:
        optimizer.step()
    except RuntimeError as error:
        # The type that torch raises for that, too.
        if "without overflow" not in str(error):
            raise
        raise Diverged("a step is too large for a floating-point number; lower the learning rate") from error


def described(found: object) -> str:
    """What stands where a tensor of a certain shape is expected, for messages."""
    return f"a tensor of shape {tuple(found.shape)}" if isinstance(found, Tensor) else type(found).__name__


def _listed(parameters: Any) -> list[Any]:
    return [parameters] if isinstance(parameters, Tensor) else list(parameters)
