"""Phases: what is optimised while a task is learned, and how."""

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
    """An optimiser and the parameters that it trains.

    Attributes:
        parameters: torch optimiser groups, `{"params": parameters}`; a group may set its own `lr` or `weight_decay`.
        optimizer: makes the torch optimiser from the groups, once per phase.
        schedule: maps (epoch from 0, number of epochs) to the factor on the learning rate of every group.
        clip_norm: bound on the norm of the whole gradient; None: no bound.

    Raises:
        UserError: `parameters` is not a list of groups.
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

    A step calls `before_step`, computes the outputs of `forward`, the `loss`, and the gradient of the loss's mean,
    clips the gradient, takes the optimiser's step and calls `after_step`. A phase with a `step` function of its own
    replaces everything but `after_step`. On a GPU, forward pass, loss and gradients may be replayed from a CUDA graph:
    from step to step only the values of tensors may change in them, and these in place.

    Attributes:
        epochs: passes over the task's samples, or over `batches`.
        batch_size: samples per step; the last step of an epoch may have fewer.
        loss: maps (outputs of `forward`, labels [B]) to per-sample losses [B], or to a scalar for losses that couple
            the samples of a batch. Outputs and labels belong to real samples only.
        forward: training forward pass from images [B, C, H, W] to logits [B, num_classes], or to a tuple of these
            logits and whatever else [B, ...] the loss needs; None: the model itself. Padding may fill up the last
            batch, so the pass must treat each sample alone.
        batches: maps an epoch to its batches (inputs, labels, number of leading samples that count); every epoch has
            equally many. None: the task's samples.
        before_step: called without gradients before every step with (images [B, C, H, W] of real samples, number of the
            step in this phase from 1, steps of the whole phase): masks for the step, statistics of its images. It may
            change buffers, tensors of the scratch and the parameters that the phase trains, all in place.
        after_step: called without gradients after every step with (steps done in this phase, steps of the whole phase).
            It may change what `before_step` may.
        step: replaces `forward` and `loss`: maps a `StepBatch` to the step's mean loss, or to (mean loss, logits) if
            Avalanche metrics need predictions. It calls `StepBatch.update` as often as it needs.
        others: further optimisers by name, for `step`.
        exemplars: number of exemplars from the model's memory that precede the task's samples in every batch; none
            while the memory is empty (see `cl_bench.contract.rehearsal`).

    Raises:
        UserError: not exactly one of `loss` and `step` is given, `forward`, `before_step`, `others` or `exemplars` do
            not fit the rest, or one of the `others` has an empty name.
    """

    epochs: int
    batch_size: int
    loss: Loss | None = None
    forward: Callable[[Tensor], Any] | None = None
    batches: Callable[[int], Iterable[Batch]] | None = None
    before_step: Callable[[Tensor, int, int], None] | None = None
    after_step: Callable[[int, int], None] | None = None
    step: Callable[[StepBatch], Tensor | tuple[Tensor, Tensor]] | None = None
    others: Mapping[str, Optimization] = field(default_factory=dict)
    exemplars: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.loss is None) == (self.step is None):
            raise UserError("a phase takes its steps by `loss`, or by a `step` of its own: give one of them")
        if self.step is not None and self.forward is not None:
            raise UserError("a phase with a `step` of its own has no `forward`: make the passes in the step")
        if self.step is not None and self.before_step is not None:
            raise UserError("a phase with a `step` of its own has no `before_step`: do the work in the step")
        if self.others and self.step is None:
            raise UserError(f"a phase uses other optimisers ({', '.join(self.others)}) only in a `step` of its own")
        if self.exemplars and self.batches is not None:
            raise UserError("a phase with `batches` of its own gets no `exemplars`: mix them in there")
        if "" in self.others:
            raise UserError("one of the other optimisers of a phase has an empty name, which is its own optimiser's")

    def optimizations(self) -> dict[str, Optimization]:
        """All optimisers by name; the phase's own has the empty name."""
        return {"": self, **self.others}

    def trained(self) -> list[nn.Parameter]:
        """All parameters that any of the phase's optimisers trains."""
        return [parameter for each in self.optimizations().values() for parameter in each.trainable()]


class ReachableOptimizer:
    """Makes a phase's optimiser and keeps hold of it, so that `after_step` can reach its moments and learning rates.

    Args:
        make: makes the optimiser, see `Optimization`.

    Attributes:
        optimizer: the optimiser of the phase, once it has been made.
    """

    optimizer: torch.optim.Optimizer

    def __init__(self, make: Callable[[Sequence[ParameterGroup]], torch.optim.Optimizer]) -> None:
        self.make = make

    def __call__(self, groups: Sequence[ParameterGroup]) -> torch.optim.Optimizer:
        self.optimizer = self.make(groups)
        return self.optimizer

    def moments(self, parameter: nn.Parameter) -> dict[str, Tensor]:
        """Moments of a parameter by their names in torch, in its shape; none before the first step, or without any."""
        state = self.optimizer.state.get(parameter, {})
        return {name: t for name, t in state.items() if isinstance(t, Tensor) and t.shape == parameter.shape}


@dataclass(frozen=True, kw_only=True)
class StepBatch:
    """The samples of one step, for phases with a `step` function of their own.

    It holds real samples only, without padding, so the last batch of an epoch may be smaller.

    Attributes:
        inputs: images [B, C, H, W].
        labels: labels [B].
        step: number of this step in the phase, from 1.
        steps: number of steps of the whole phase.
        key: key of all random draws in this step.
        optimizers: the phase's optimisers by name, each with the `Optimization` that it was made from.
        updates: names of the optimisers whose steps have been taken, in order.
    """

    inputs: Tensor
    labels: Tensor
    step: int
    steps: int
    key: Key
    optimizers: Mapping[str, tuple[Optimization, torch.optim.Optimizer]]
    updates: list[str] = field(default_factory=list)

    def generator(self, purpose: str) -> torch.Generator:
        """Make a CPU generator for one purpose in this step; equal purposes give equal draws, on any machine."""
        return generator((*self.key, purpose))

    def update(self, loss: Tensor, optimizer: str = "", adjust: Callable[[], None] | None = None) -> None:
        """Take an optimiser step on a loss: clear all gradients, backpropagate, call `adjust`, clip, step.

        Args:
            loss: scalar tensor.
            optimizer: name of one of the phase's `others`; empty: the phase's own optimiser.
            adjust: changes the gradients in place before they are clipped; called without gradient tracking.

        Raises:
            UserError: the phase has no such optimiser, the loss is no scalar, or it depends on no parameter that the
                optimiser trains.
            Diverged: the step is too large for a floating-point number.
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
    """Backpropagate a scalar loss.

    Args:
        loss: scalar tensor.
        optimization: the optimiser whose parameters get the gradients.
        name: what the message calls that optimiser.

    Raises:
        UserError: the loss depends on no parameter that the optimiser trains.
    """
    if loss.requires_grad:
        loss.backward()
    if all(parameter.grad is None for parameter in optimization.trainable()):
        raise UserError(
            f"the loss depends on nothing that the {name} trains; list the parameters that it comes from, and look for "
            "a detach() on the way"
        )


def take_step(optimization: Optimization, optimizer: torch.optim.Optimizer) -> None:
    """Clip the gradient if `clip_norm` is set, and take the optimiser's step.

    Raises:
        Diverged: the step is too large for a number of the parameters' type.
    """
    if optimization.clip_norm is not None:
        nn.utils.clip_grad_norm_(optimization.trainable(), optimization.clip_norm)
    try:
        optimizer.step()
    except RuntimeError as error:
        # torch raises RuntimeError for an overflow as for other faults.
        if "without overflow" not in str(error):
            raise
        raise Diverged("a step is too large for a floating-point number; lower the learning rate") from error


def described(value: object) -> str:
    """Describe an object in a message that expected a tensor of a certain shape."""
    return f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__


def _listed(parameters: Any) -> list[Any]:
    return [parameters] if isinstance(parameters, Tensor) else list(parameters)
