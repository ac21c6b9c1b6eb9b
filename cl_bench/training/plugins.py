"""Avalanche's plugins in the loop of this package: which are honoured, and which are refused and why."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from avalanche.benchmarks.utils.data_loader import ReplayDataLoader
from avalanche.core import SupervisedPlugin
from avalanche.logging import BaseLogger
from avalanche.training.plugins import EvaluationPlugin
from avalanche.training.templates.base_sgd import PeriodicEval

from cl_bench.contract.method import Method
from cl_bench.data.samples import Samples, samples_of
from cl_bench.errors import UserError
from cl_bench.training import step_graph

_OWN_MODEL = "it changes a model that it is given when it is made, but a strategy builds its model from the method"
_NEAREST_MEAN = (
    "it needs Avalanche's NCMClassifier or FeCAMClassifier as the model's `eval_classifier`; methods with class means "
    "keep them by themselves"
)
REFUSED: Mapping[str, str] = {
    "BiCPlugin": (
        "it takes images for validation out of the experience itself, and corrects predictions by a layer of its own, "
        "which counts, checkpoints and the audit do not see"
    ),
    "CWRStarPlugin": _OWN_MODEL,
    "CoPEPlugin": "it replaces the method's loss by PPPloss on features, and predictions by prototypes of its own",
    "CurrentDataFeCAMUpdate": _NEAREST_MEAN,
    "CurrentDataNCMUpdate": _NEAREST_MEAN,
    "FeCAMOracle": _NEAREST_MEAN,
    "FeatureDistillationPlugin": (
        "it reads the features of the last batch from `model.features`, which is a function here; "
        "LwFPlugin distils logits"
    ),
    "LFLPlugin": (
        "it needs Avalanche's BaseModel with get_features, and freezes the last layer, which each phase trains or not, "
        "as the method says"
    ),
    "LRSchedulerPlugin": (
        "every phase has fresh optimisers, so its scheduler would change one that no phase uses; "
        "set the method's schedule"
    ),
    "MemoryFeCAMUpdate": _NEAREST_MEAN,
    "MemoryNCMUpdate": _NEAREST_MEAN,
    "NCMOracle": _NEAREST_MEAN,
}
"""Plugins of Avalanche that cannot have their effect here, by the name of their class, with the reason."""
REFUSED_ON_CPU: Mapping[str, str] = {
    "SynapticIntelligencePlugin": (
        "on a CPU, Avalanche 0.6 keeps views of the weights in place of copies, so that the penalty is always 0; take "
        "EWCPlugin, MASPlugin or RWalkPlugin"
    ),
}
"""Plugins of Avalanche that have no effect on a CPU, also in Avalanche's own strategies."""

HOOKS = frozenset(name for name in dir(SupervisedPlugin) if name.startswith(("before_", "after_")))
"""Hooks that the loop calls."""
INSIDE_A_STEP = (
    "before_forward", "after_forward", "before_backward", "after_backward", "before_update", "after_update",
)  # fmt: skip
"""Hooks inside an optimiser step, which a phase with a step of its own does not have."""
CHANGES_BATCHES = ("before_training_iteration", "before_forward", "after_forward")
"""Hooks in which a plugin may change the samples of a step."""
CHANGES_PREDICTIONS = ("before_eval_iteration", "before_eval_forward", "after_eval_forward")
"""Hooks in which a plugin may change predictions."""


def defines(plugin: object, hook: str) -> bool:
    """Whether a plugin does something in a hook."""
    function = getattr(plugin, hook, None)
    return function is not None and getattr(function, "__func__", function) is not getattr(SupervisedPlugin, hook, None)


def others(strategy: Any) -> Iterator[Any]:
    """The plugins that are neither the method nor Avalanche's own: evaluator, clock and periodic evaluation."""
    own = (strategy.method, strategy.evaluator, strategy.clock)
    for plugin in strategy.plugins:
        if not any(plugin is one for one in own) and not isinstance(plugin, PeriodicEval | BaseLogger):
            yield plugin


def check(plugins: Iterable[Any], device: torch.device) -> None:
    """Refuse plugins that would silently do nothing.

    Raises:
        UserError: a plugin is one of `REFUSED`, or of `REFUSED_ON_CPU` on such a device, defines a hook that is never
            called, or holds a scheduler of an optimiser that no phase uses.
    """
    refused = {**REFUSED, **REFUSED_ON_CPU} if device.type == "cpu" else REFUSED
    for plugin in plugins:
        if isinstance(plugin, Method | EvaluationPlugin):
            continue
        name = type(plugin).__name__
        for base in type(plugin).__mro__:
            if base.__name__ in refused and base.__module__.startswith("avalanche."):
                raise UserError(f"{name} has no effect here: {refused[base.__name__]}")
        unknown = sorted(hook for hook in dir(plugin) if hook.startswith(("before_", "after_")) and hook not in HOOKS)
        if called := [hook for hook in unknown if callable(getattr(plugin, hook))]:
            raise UserError(
                f"{name} defines {called[0]}, which the loop never calls; expected hooks of SupervisedPlugin"
            )
        if any(isinstance(held, torch.optim.lr_scheduler.LRScheduler) for held in vars(plugin).values()):
            raise UserError(f"{name} holds a scheduler and has no effect here: {REFUSED['LRSchedulerPlugin']}")


def check_step(strategy: Any, name: str) -> None:
    """Raise `UserError` if a plugin defines a hook inside steps that the phase of this name takes by itself."""
    for plugin in others(strategy):
        for hook in INSIDE_A_STEP:
            if defines(plugin, hook):
                raise UserError(
                    f"{type(plugin).__name__} defines {hook}, which {name} never calls: it takes steps of its own; "
                    "leave the plugin out, or use after_training_iteration"
                )


def check_steps(strategy: Any, index: int) -> None:
    """Refuse plugins whose hooks inside a step are not called because a method learns a task without steps.

    Raises:
        UserError: it is the first task; for a later one, a warning is enough, as the plugin had its effect before.
    """
    for plugin in others(strategy):
        for hook in INSIDE_A_STEP:
            if defines(plugin, hook):
                message = (
                    f"{type(plugin).__name__} defines {hook}, which is never called: "
                    f"{type(strategy.method).__name__} learns task {index} without gradient steps"
                )
                if not index:
                    raise UserError(f"{message}; leave the plugin out")
                warnings.warn(message, stacklevel=2)


def check_counts(strategy: Any) -> None:
    """Raise `UserError` if a plugin changes the predictions of `eval`, of which `count_matrix` knows nothing."""
    for plugin in others(strategy):
        for hook in CHANGES_PREDICTIONS:
            if defines(plugin, hook):
                raise UserError(
                    f"{type(plugin).__name__} defines {hook}, which count_matrix never calls; use eval, or leave the "
                    "plugin out"
                )


def change_batches(strategy: Any) -> bool:
    """Whether a plugin may change the samples of a step, so that padding must be left out."""
    return any(defines(plugin, hook) for plugin in others(strategy) for hook in CHANGES_BATCHES)


def refuse_graphs(strategy: Any) -> str:
    """Why steps may not be replayed from a CUDA graph, which computes loss and gradients at once; empty if they may."""
    if not step_graph.Captured.supports(strategy.device):
        return "only a GPU has them"
    if not strategy.model.vit.execution.graphs:
        return "they are switched off"
    for plugin in (strategy.method, *others(strategy)):
        for hook in ("before_training_iteration", *INSIDE_A_STEP):
            if defines(plugin, hook):
                return f"{type(plugin).__name__} defines {hook}"
    return ""


def replayed(strategy: Any, batch_size: int) -> tuple[Samples, int] | None:
    """What a plugin wants to be mixed into each batch by its `ReplayDataLoader`; None if no plugin made a loader.

    Args:
        batch_size: batch size of the method.

    Returns:
        The memory, and the number of its samples per batch.

    Raises:
        UserError: the loader is of another kind, or has several memories, another batch size or other data.
    """
    loader = strategy.dataloader
    if isinstance(loader, list):
        return None
    wanted = ", ".join(type(plugin).__name__ for plugin in others(strategy) if defines(plugin, "before_training_exp"))
    culprit = f"a plugin with before_training_exp ({wanted}) replaces the dataloader"
    if not isinstance(loader, ReplayDataLoader):
        raise UserError(
            f"{culprit} by {type(loader).__name__}, but the loop makes its own batches; "
            "only ReplayDataLoader is honoured"
        )
    if getattr(strategy.method, "loss", "all") == "masked":
        raise UserError(f"{culprit} to replay old classes, which loss=masked leaves out; set loss=all")
    if len(loader.datasets) != 2 or loader.datasets[0] is not strategy.adapted_dataset:
        raise UserError(f"{culprit} with {len(loader.datasets) - 1} memories, expected the task's data and one memory")
    own, size = loader.batch_sizes
    if own != batch_size:
        raise UserError(
            f"{culprit} and asks for {own} samples of the task per batch, but the method's batch_size is {batch_size}; "
            "leave the plugin's own batch size out"
        )
    return samples_of(loader.datasets[1]), size
