"""Every plugin of Avalanche on the tiny stream: how it is made, and what is seen of it where it has its effect."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from avalanche.evaluation.metrics import accuracy_metrics
from avalanche.logging import BaseLogger
from avalanche.training import plugins as avalanche_plugins
from avalanche.training.plugins import EvaluationPlugin, SupervisedPlugin
from torch import Tensor

from cl_bench.training.plugins import REFUSED, REFUSED_ON_CPU
from cl_bench.training.strategy import ContinualStrategy
from tests.helpers.rows import small
from tests.helpers.tiny import cut
from tests.helpers.training import Spy, strategy_of


@dataclass
class Watched:
    """What was seen of a plugin in two tasks of fine-tuning; a list per task.

    Attributes:
        added: what the plugin adds to the loss in `before_backward`, per step.
        turned: whether the plugin changes gradients in `after_backward`, per step.
        labels: labels of each batch that the loss sees.
        epochs: number of epochs.
        first: weights of the head before the first step of each task.
    """

    strategy: ContinualStrategy
    added: list[list[float]] = field(default_factory=list)
    turned: list[list[bool]] = field(default_factory=list)
    labels: list[list[Tensor]] = field(default_factory=list)
    epochs: list[int] = field(default_factory=list)
    first: list[Tensor] = field(default_factory=list)


def watch(*made: SupervisedPlugin, epochs: int = 2, lr: float = 0.05, **arguments: Any) -> Watched:
    """Fine-tune on two tasks with these plugins, and watch them."""
    before: dict[str, Any] = {}

    def gradients(strategy: Any) -> list[Tensor | None]:
        return [None if p.grad is None else p.grad.clone() for p in strategy.model.parameters()]

    def begin(strategy: Any) -> None:
        for seen in (watched.added, watched.turned, watched.labels):
            seen.append([])
        watched.epochs.append(0)

    def first(strategy: Any) -> None:
        if len(watched.first) < len(watched.epochs):
            watched.first.append(strategy.model.head.weight.detach().clone())

    def count(strategy: Any) -> None:
        watched.epochs[-1] += 1

    def added(strategy: Any) -> None:
        watched.added[-1].append(float(strategy.loss.detach() - before["loss"]))
        watched.labels[-1].append(strategy.mb_y.clone())

    def turned(strategy: Any) -> None:
        pairs = zip(before["gradients"], gradients(strategy), strict=True)
        watched.turned[-1].append(any(a is not None and b is not None and not torch.equal(a, b) for a, b in pairs))

    ahead = Spy(
        before_training_exp=begin,
        before_backward=lambda s: before.update(loss=s.loss.detach().clone()),
        after_backward=lambda s: before.update(gradients=gradients(s)),
    )
    behind = Spy(
        after_training_epoch=count, before_backward=added, after_backward=turned, before_training_iteration=first
    )
    method = small("finetune", epochs=epochs, lr=lr)
    strategy = strategy_of(method, ahead, *made, behind, **arguments)
    watched = Watched(strategy)
    streams = [cut().test[:1]] if "eval_every" in arguments else []
    for experience in cut().train[:2]:
        strategy.train(experience, eval_streams=streams)
    return watched


def penalises(seen: Watched) -> bool:
    """The loss is that of the method in the first task, and larger in the second."""
    return not any(seen.added[0]) and sum(seen.added[1]) > 0


def replays(seen: Watched) -> bool:
    """The first task's batches are the method's; all of the second's hold samples of both tasks."""
    first, second = (set(own) for own in cut().tasks[:2])
    old = all(set(labels.tolist()) <= first for labels in seen.labels[0])
    return old and all(first & set(labels.tolist()) and second & set(labels.tolist()) for labels in seen.labels[1])


def projects(seen: Watched) -> bool:
    """Gradients are those of the loss in the first task, and some are others in the second."""
    return not any(seen.turned[0]) and any(seen.turned[1])


class Generator(torch.nn.Module):
    """A generator of grey images."""

    def generate(self, number: int) -> Tensor:
        """A number of images [number, 1, 32, 32]."""
        return torch.zeros(number, 1, 32, 32)


class GeneratorTraining:
    """Counts the experiences on which a generator is trained."""

    def __init__(self) -> None:
        self.model = Generator()
        self.trained = 0

    def train(self, experience: Any, **kwargs: Any) -> None:
        """Count an experience."""
        self.trained += 1


def plugin(name: str, *values: Any, **options: Any) -> Any:
    """A plugin of Avalanche by the name of its class."""
    return getattr(avalanche_plugins, name)(*values, **options)


def simple(name: str, effect: Callable[[Watched], bool], *values: Any, **options: Any) -> Callable[[], bool]:
    """A check of one plugin in an ordinary run."""
    return lambda: effect(watch(plugin(name, *values, **options)))


def chooses() -> bool:
    """The memory, filled in three epochs of the first task, is replayed in the second."""
    return replays(watch(plugin("GSS_greedyPlugin", mem_size=60, mem_strength=1, input_size=[1, 32, 32]), epochs=3))


def stops_early() -> bool:
    """Accuracy does not improve at a learning rate of nearly 0, so that training stops before the tenth epoch."""
    evaluator = EvaluationPlugin(accuracy_metrics(stream=True), loggers=[BaseLogger()])
    stopping = plugin("EarlyStoppingPlugin", 1, "test_stream")
    seen = watch(stopping, epochs=10, lr=1e-9, evaluator=evaluator, eval_every=1)
    return max(seen.epochs) < 10


def starts_again() -> bool:
    """The second task begins with the weights with which the first one began."""
    seen = watch(plugin("FromScratchTrainingPlugin", reset_optimizer=False))
    return torch.equal(*seen.first)


def starts_again_on_the_memory() -> bool:
    """Each task trains the initial weights on the memory of all classes so far."""
    seen = watch(plugin("GDumbPlugin", mem_size=16))
    labels = [torch.cat(task[: len(task) // 2]).unique(return_counts=True) for task in seen.labels]
    tasks = [set(own) for own in cut().tasks[:2]]
    balanced = [set(values.tolist()) for values, _ in labels] == [tasks[0], tasks[0] | tasks[1]]
    return balanced and labels[1][1].tolist() == [2] * 8 and torch.equal(*seen.first)


def generates() -> bool:
    """Batches of the second task grow by as many generated images, and each task trains the generator."""
    training = GeneratorTraining()
    seen = watch(plugin("GenerativeReplayPlugin", generator_strategy=training), plugin("TrainGeneratorAfterExpPlugin"))
    sizes = [[len(labels) for labels in task] for task in seen.labels]
    return sizes == [[16, 4] * 2, [32, 8] * 2] and training.trained == 2


WORKS: dict[str, tuple[str, Callable[[], bool]]] = {
    "AGEMPlugin": ("changes gradients that oppose those of its memory", simple("AGEMPlugin", projects, 8, 8)),
    "EWCPlugin": ("adds its penalty to the loss from the second task on", simple("EWCPlugin", penalises, 10.0)),
    "EarlyStoppingPlugin": ("ends a phase; needs metrics, and `eval_every` of the strategy", stops_early),
    "FromScratchTrainingPlugin": ("each task begins with the initial weights", starts_again),
    "GDumbPlugin": ("trains the initial weights on its balanced memory", starts_again_on_the_memory),
    "GEMPlugin": (
        "changes gradients that oppose those of its memories; needs `pip install quadprog`",
        simple("GEMPlugin", projects, 8, 0.5),
    ),
    "GSS_greedyPlugin": (
        "replays the images that it chose, in the views that it saw; its memory must exceed a batch with old images",
        chooses,
    ),
    "GenerativeReplayPlugin": ("its generated images become part of the batches", generates),
    "LwFPlugin": ("adds its distillation loss from the second task on", simple("LwFPlugin", penalises)),
    "MASPlugin": ("adds its penalty to the loss from the second task on", simple("MASPlugin", penalises)),
    "MIRPlugin": (
        "adds the loss of images of its memory from the second task on",
        simple("MIRPlugin", penalises, batch_size_mem=4, mem_size=20, subsample=8),
    ),
    "RARPlugin": (
        "replays with `use_adversarial_replay=False`; otherwise torchvision cannot trace the ViT and says so",
        simple("RARPlugin", replays, 16, mem_size=20, use_adversarial_replay=False),
    ),
    "RWalkPlugin": (
        "adds its penalty to the loss from the second task on; a task needs at least `delta_t` steps",
        simple("RWalkPlugin", penalises, 10.0, delta_t=1),
    ),
    "ReplayPlugin": ("images of old tasks in every batch, augmented", simple("ReplayPlugin", replays, mem_size=20)),
    "TrainGeneratorAfterExpPlugin": ("trains the generator of GenerativeReplayPlugin after each task", generates),
}
"""Plugins that have their effect: what is seen of them, and the check that sees it."""


def instance(name: str) -> Any:
    """A plugin that is refused, made as a user would."""
    model = copy.deepcopy(strategy_of(small("finetune")).model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    values: dict[str, tuple[Any, ...]] = {
        "CWRStarPlugin": (model,),
        "CoPEPlugin": (20, 4),
        "LFLPlugin": (1.0,),
        "SynapticIntelligencePlugin": (1.0,),
        "LRSchedulerPlugin": (torch.optim.lr_scheduler.StepLR(optimizer, 1),),
    }
    return plugin(name, *values.get(name, ()))


NO_PLUGINS = {"EvaluationPlugin", "PPPloss", "SupervisedPlugin"}
"""Names beside the plugins: the evaluator, which is an argument of its own, a loss, and the base class."""


def table() -> str:
    """The table of the documentation, in Markdown."""
    rows = [(name, "works", seen) for name, (seen, _) in WORKS.items()]
    rows += [(name, "refused", reason) for name, reason in REFUSED.items()]
    rows += [(name, "refused on a CPU", reason) for name, reason in REFUSED_ON_CPU.items()]
    lines = ["| plugin | | what is seen, or why |", "| --- | --- | --- |"]
    lines += [f"| `{name}` | {verdict} | {text} |" for name, verdict, text in sorted(rows, key=lambda r: r[0].lower())]
    return "\n".join(lines)
