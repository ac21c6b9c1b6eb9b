"""Chains of phases: the epochs of a task divided among links, schedules over all of them, optimisers that go on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import accumulate, pairwise

import torch
from torch import Tensor

from cl_bench.contract.phase import ParameterGroup, Phase, ReachableOptimizer
from cl_bench.contract.task import Scratch

_MOMENTS = "moments."


def divided(epochs: int, links: int) -> list[int]:
    """Epochs of each link: as even as possible, the first ones get the rest.

    Args:
        epochs: number of epochs of the task.
        links: number of links, at most `epochs`.
    """
    each, rest = divmod(epochs, links)
    return [each + (link < rest) for link in range(links)]


def scheduled_over_all(phases: Sequence[Phase]) -> list[Phase]:
    """The phases with a schedule that goes on from one to the next, as if they were one."""
    starts = [*accumulate((phase.epochs for phase in phases), initial=0)]

    def shifted(phase: Phase, start: int) -> Callable[[int, int], float]:
        return lambda epoch, _: phase.schedule(start + epoch, starts[-1])

    return [
        replace(each, schedule=shifted(each, start)) for each, (start, _) in zip(phases, pairwise(starts), strict=True)
    ]


def with_one_optimizer(phases: Sequence[Phase], scratch: Scratch) -> list[Phase]:
    """The phases with optimisers that begin in the state in which that of the phase before has ended.

    The n-th parameter of a phase takes over the state (moments, number of steps) of the n-th parameter before.

    Args:
        phases: phases that train equally many parameters, of equal shapes, without an `after_step` of their own.
        scratch: the task's tensors, which keep the state between two phases.
    """
    return [_going_on(phase, scratch, number) for number, phase in enumerate(phases)]


def _going_on(phase: Phase, scratch: Scratch, number: int) -> Phase:
    def optimizer(groups: Sequence[ParameterGroup]) -> torch.optim.Optimizer:
        new = phase.optimizer(groups)
        states: dict[int, dict[str, Tensor]] = {}
        for name, tensor in scratch.items():
            if number and name.startswith(_MOMENTS):
                index, _, rest = name.removeprefix(_MOMENTS).partition(".")
                # Adam counts its steps on the host.
                states.setdefault(int(index), {})[rest] = tensor if tensor.ndim else tensor.cpu()
        new.load_state_dict({**new.state_dict(), "state": states})
        return new

    made = ReachableOptimizer(optimizer)

    def keep(step: int, steps: int) -> None:
        if step == steps:
            for index, values in made.optimizer.state_dict()["state"].items():
                scratch.update(
                    {f"{_MOMENTS}{index}.{name}": value for name, value in values.items() if isinstance(value, Tensor)}
                )

    return replace(phase, optimizer=made, after_step=keep)
