"""Checks before any run is planned or starts: the number of runs, and losses that are constant."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from cl_bench.contract.gradient import Descent
from cl_bench.contract.method import Method
from cl_bench.errors import UserError, counted
from cl_bench.grammar import check_rows
from cl_bench.options import RunOptions

MAX_RUNS = 20_000
"""Maximum number of runs of one command; all of them are planned before the first starts."""


def check_extent(wanted: Sequence[RunOptions]) -> None:
    """Raise `UserError` if the options ask for more rows or runs than one command accepts; nothing is planned."""
    rows = runs = 0
    for options in wanted:
        cells = len(options.benchmark) * max(1, len(options.backbone)) * max(1, len(options.tasks))
        rows += cells * len(options.methods)
        runs += cells * len(options.methods) * len(options.seeds)
    check_rows(rows, "this command")
    if runs > MAX_RUNS:
        raise UserError(
            f"this command asks for {runs:,} runs, but a command takes at most {MAX_RUNS:,}; name fewer seeds"
        )


def constant_loss(name: str, method: Method, model: nn.Module, sizes: Sequence[int]) -> list[str]:
    """A remark if a task has one class and the loss compares only the classes of that task; else no remark.

    Args:
        name: name of the method.
        model: the model that the method builds. If its head has no parameters, predictions come
            from prototypes, and there is no remark.
        sizes: number of classes of each task.
    """
    alone = list(sizes).count(1)
    if not alone or method.trains_on == "stream" or not isinstance(method, Descent) or method.loss != "masked":
        return []
    head = getattr(model, "head", None)
    if isinstance(head, nn.Module) and not list(head.parameters()):
        return []
    return [
        f"{name} lets only a task's own classes compete in its loss, which is constant in {counted(alone, 'task')} of "
        f"one class: nothing is learned there; take larger tasks with --tasks, or --set {name}.loss=all"
    ]
