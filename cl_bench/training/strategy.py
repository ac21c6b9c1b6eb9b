"""The Avalanche strategy of all methods: carries out a method's phases, and counts hits on all tasks in one pass."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from avalanche.core import SupervisedPlugin
from avalanche.logging import BaseLogger
from avalanche.training.plugins import EvaluationPlugin
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from cl_bench import backbones
from cl_bench.backbones import Backbone
from cl_bench.contract.method import Method, build_model
from cl_bench.contract.phase import Phase
from cl_bench.contract.task import Scratch, Task
from cl_bench.data.samples import EvaluationBatches, Samples, TaskSamples, samples_of
from cl_bench.errors import Diverged, UserError, naming
from cl_bench.models.vit import Execution
from cl_bench.randomness import seeded
from cl_bench.training import plugins as plugin_rules
from cl_bench.training.checkpoint import Checkpoint, Facts, Position, restore
from cl_bench.training.evaluation import Counts, Evaluation, mask_of, undecided
from cl_bench.training.loop import PhaseLoop
from cl_bench.training.phase_run import Resumed

EVALUATION_BATCH = 256
"""Images per evaluation batch, unless a strategy is told otherwise."""


def _sizes(phase: Phase) -> dict[int, int]:
    """Number of elements of each parameter that a phase trains, by the parameter's id."""
    return {id(parameter): parameter.numel() for parameter in phase.trained()}


class ContinualStrategy(PhaseLoop):
    """An Avalanche strategy for one `Method` among its plugins.

    `train(experience)` runs the method's phases, each with a fresh optimiser over the method's own parameter groups;
    `eval(stream)` is Avalanche's, with its metrics and loggers; `count_matrix(stream)` counts all tasks in one pass.
    `traces` collects the mean training `loss` of every epoch and the rows that the method traces.

    Args:
        plugins: exactly one `Method`, and any other Avalanche plugins.
        backbone: a name known to `cl_bench.backbones`, a `Backbone`, or a timm ViT without head.
        num_classes: size of the label set of the whole stream (head and masks never change shape).
        num_tasks: length of the stream; passed on only to methods that declare `needs_num_tasks`.
        seed: seed of all random draws, which are keyed and do not use the global generators.
        execution: precision of the backbone, and whether it is compiled; None: fp32, eager.
        eval_mb_size: images per evaluation batch.
        evaluator: Avalanche's metrics and loggers; None: no metrics.
        eval_every: evaluate on the `eval_streams` of `train` every so many epochs, as `EarlyStoppingPlugin` needs; 0:
            at the end of each task; -1: never.

    Raises:
        ValueError: the plugins do not contain exactly one method, or it needs `num_tasks` and none is given.
        UserError: the backbone is no timm ViT, the method does not fit the backbone or the number of tasks, or a plugin
            would have no effect.
    """

    PLUGIN_CLASS = Method

    def __init__(
        self,
        *,
        plugins: Sequence[SupervisedPlugin],
        backbone: str | Backbone | VisionTransformer,
        num_classes: int,
        num_tasks: int | None = None,
        seed: int = 0,
        device: str | torch.device = "cpu",
        execution: Execution | None = None,
        eval_mb_size: int = EVALUATION_BATCH,
        evaluator: EvaluationPlugin | None = None,
        eval_every: int = -1,
    ) -> None:
        methods = [plugin for plugin in plugins if isinstance(plugin, Method)]
        if len(methods) != 1:
            raise ValueError(f"expected exactly one Method among the plugins, found {len(methods)}")
        self.method = methods[0]
        plugin_rules.check(plugins, torch.device(device))
        if self.method.needs_num_tasks and num_tasks is None:
            raise ValueError(f"{type(self.method).__name__} must know the number of tasks: pass num_tasks")
        if num_tasks is not None:
            self.method.check(num_tasks)
        vit = backbones.build_backbone(backbone) if isinstance(backbone, str | Backbone) else backbone
        if not isinstance(vit, VisionTransformer):
            raise UserError(
                f"backbone {type(vit).__name__} is no timm VisionTransformer; create one with timm.create_model, "
                "e.g. vit_base_patch16_224, and num_classes=0"
            )
        if num_tasks is not None:
            self.method.check_backbone(vit, num_tasks)
        with seeded((seed, "build")):
            model = build_model(self.method, vit, num_classes)
        model.set_execution(execution or Execution())
        super().__init__(
            model=model,
            # A placeholder, since Avalanche requires an optimiser; each phase replaces it.
            optimizer=torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.0),
            criterion=nn.CrossEntropyLoss(),
            # What plugins take for the batch size and the epochs of training.
            train_mb_size=getattr(self.method, "batch_size", 1),
            train_epochs=getattr(self.method, "epochs", 1),
            eval_mb_size=eval_mb_size,
            eval_every=eval_every,
            device=torch.device(device),
            plugins=plugins,
            evaluator=evaluator or EvaluationPlugin(loggers=[BaseLogger()]),
        )
        if evaluator is None:
            # An evaluator without metrics costs 0.2 ms in every iteration.
            self.plugins.remove(self.evaluator)
        self.model.to(self.device)
        self.num_classes = num_classes
        self.num_tasks = num_tasks
        self.seed = seed
        self.seen: tuple[int, ...] = ()
        self.tasks_learned = 0
        self.trainable = 0
        self._resumed: Resumed | None = None
        self._evaluation = Evaluation(num_classes, self.device)
        self._undecided = torch.zeros((), dtype=torch.int64, device=self.device)

    # --- training ----------------------------------------------------------------------------------------------

    def check_model_and_optimizer(self, **kwargs: Any) -> None:
        """Do nothing: the head always has its full size, and each phase makes its own optimisers."""

    def model_adaptation(self, model: nn.Module | None = None) -> nn.Module:
        return (self.model if model is None else model).to(self.device)

    def _before_training(self, **kwargs: Any) -> None:
        # Plugins may have been added since the strategy was made.
        plugin_rules.check(self.plugins, self.device)
        super()._before_training(**kwargs)

    def make_train_dataloader(self, **kwargs: Any) -> None:
        """Make no loader: the loop makes the batches of each epoch from a key, with the memory of a replay plugin."""
        self.dataloader = []

    def _train_exp(self, experience: Any, eval_streams: Any = None, **kwargs: Any) -> None:
        samples = samples_of(self.adapted_dataset)
        self._replayed = plugin_rules.replayed(self, self.train_mb_size)
        self._open = plugin_rules.change_batches(self)
        resumed, self._resumed = self._resumed, None
        own = self.begin_task(samples, resumed)
        task = self.task
        assert task is not None
        trained = self._learn(task, samples, own, resumed, **kwargs)
        self.position = None
        self.model.eval()
        with self._hook(task, "after"):
            self.method.after_task(task, own)
        added = [phase for part in self.method.parts for phase in part.phases(task, own)]
        self.model.train()
        for phase in added:
            trained |= _sizes(phase)
            self._run_phase(phase, samples, task.key, "a phase after the task", **kwargs)
        self._settle()
        with torch.no_grad():
            self._trace(self.method.traces(task))
            for part in self.method.parts:
                self._trace(part.traces(task))
        task.scratch.clear()
        self.trainable = sum(trained.values())
        self.tasks_learned += 1

    def _learn(
        self, task: Task, samples: Samples, own: TaskSamples, resumed: Resumed | None, **kwargs: Any
    ) -> dict[int, int]:
        """Carry out the method's phases, from the resumed position on if there is one.

        Returns:
            The parameters trained in all phases (see `_sizes`).
        """
        trained: dict[int, int] = {}
        decides = type(self.method).after_phase is not Method.after_phase
        phases = self._phases(task)
        if not phases:
            plugin_rules.check_steps(self, task.index)
        start = resumed.position.phase if resumed else 0
        if resumed and start >= len(phases):
            raise UserError(
                f"{type(self.method).__name__} was in phase {start} of task {task.index} and lists {len(phases)} now: "
                "what after_phase decides must be stored in the model"
            )
        for phase in phases[:start]:
            trained |= _sizes(phase)
        number = start
        while number < len(phases):
            phase = phases[number]
            trained |= _sizes(phase)
            interrupted = resumed if number == start else None
            self.position = interrupted.position if interrupted else Position(phase=number, epoch=0, step=0)
            key, name = (*task.key, number), f"phase {number}"
            self._run_phase(phase, samples, key, name, interrupted.optimizer if interrupted else None, **kwargs)
            if decides:
                self.model.eval()
                with self._hook(task, "after", number):
                    self.method.after_phase(task, own, number)
                self.model.train().to(self.device)
                self._settle()
                phases = self._phases(task)
            number += 1
        return trained

    def _phases(self, task: Task) -> list[Phase]:
        with naming(f"{type(self.method).__name__}.phases, task {task.index}"):
            return self.method.phases(task)

    def begin_task(self, samples: Samples, resumed: Resumed | None = None) -> TaskSamples:
        """Begin the next task with `Method.before_task`, or resume it; returns its samples."""
        if not len(samples.labels):
            raise UserError(f"task {self.tasks_learned} has no training images; leave it out of the stream")
        classes = tuple(sorted(int(c) for c in set(samples.labels.tolist())))
        known = set() if resumed else set(classes) & set(self.seen)
        if known and "domain-incremental" not in self.method.scenarios:
            raise UserError(
                f"{type(self.method).__name__} needs new classes in every task, but this stream repeats some"
            )
        self.seen = tuple(sorted(set(self.seen) | set(classes)))
        self.task = Task(
            index=self.tasks_learned,
            classes=classes,
            seen=self.seen,
            num_classes=self.num_classes,
            num_tasks=self.num_tasks if self.method.needs_num_tasks else None,
            model=self.model,
            key=(self.seed, "task", self.tasks_learned),
            scratch=Scratch(self.device),
        )
        own = TaskSamples(samples, self.task.key, self.device)
        if resumed:
            self.task.scratch.update(resumed.scratch)
        else:
            with self._hook(self.task, "before"):
                for part in self.method.parts:
                    part.before_task(self.task)
                self.method.before_task(self.task, own)
            self.model.to(self.device)
            self._settle()
        return own

    @contextmanager
    def _hook(self, task: Task, *place: int | str) -> Iterator[None]:
        """Context for a hook of the method between phases: no gradients, and torch's global generator seeded by
        the task and the place, so that modules created in the hook start alike in every run."""
        where = f"{type(self.method).__name__}.{place[0]}_{'phase' if place[1:] else 'task'}, task {task.index}"
        with torch.no_grad(), seeded((*task.key, *place)), naming(where):
            yield

    @torch.no_grad()
    def _settle(self) -> None:
        """Make all tensors contiguous, as those of a restored copy are: in another layout, sums round differently."""
        for module in self.model.modules():
            for parameter in module.parameters(recurse=False):
                parameter.data = parameter.data.contiguous()
            for name, buffer in module.named_buffers(recurse=False):
                setattr(module, name, buffer.contiguous())

    def resume(self, checkpoint: Checkpoint, experience: Any = None) -> None:
        """Resume from a checkpoint in a fresh strategy; the next call of `train` must be for the next task in it.

        Args:
            experience: experience of that task, against which the position is checked; None: no check.

        Raises:
            RuntimeError: the tensors do not fit the model.
            KeyError, ValueError: the facts or the optimisers' states do not fit the method or the experience.
        """
        facts = checkpoint.facts
        # The checkpoint leaves out backbone weights that equal the pre-trained ones.
        fresh = {name: t for name, t in self.model.state_dict().items() if name.startswith("backbone.")}
        restore(self.model, {**fresh, **checkpoint.part("model.")}, type(self.method).__name__)
        self.model.to(self.device)
        names = {name for name, _ in self.model.named_parameters()}
        if wrong := sorted({name for name in facts.trained if name.startswith("backbone.")} - names):
            raise ValueError(f"'{wrong[0]}' is no parameter of {type(self.method).__name__}")
        if wrong := sorted({f"model.{name}" for name in names} & set(facts.infinite)):
            raise ValueError(f"{wrong[0]} is not finite")
        self.seen = tuple(facts.seen)
        self.tasks_learned = len(facts.stages)
        self.trainable = facts.trainable
        self.trained = set(facts.trained)
        self.traces = {name: list(rows) for name, rows in facts.traces.items()}
        if facts.position is not None:
            self._resumed = Resumed(facts.position, checkpoint.part("optimizer."), checkpoint.part("scratch."))
            if experience is not None:
                self._check_resumed(self._resumed, samples_of(experience.dataset))

    def _check_resumed(self, resumed: Resumed, samples: Samples) -> None:
        """Raise `KeyError` or `ValueError` if the resumed position does not fit the next task."""
        self.begin_task(samples, resumed)
        assert self.task is not None
        number, phases = resumed.position.phase, self._phases(self.task)
        if number < len(phases):
            self._check_position(phases[number], samples, f"phase {number} of {type(self.method).__name__}", resumed)
        elif type(self.method).after_phase is Method.after_phase:
            raise ValueError(f"phase {number} is beyond the {len(phases)} of {type(self.method).__name__}")

    def checkpoint(self, done: Facts) -> Checkpoint:
        """The state of this strategy, from which a fresh one can `resume`.

        The tensors are those of the model, `model.*`, and inside a task also `optimizer.*` and `scratch.*`. They are
        not copied.

        Args:
            done: facts about the run; those that the strategy knows are filled in.

        Raises:
            Diverged: losses are not finite.
        """
        tensors = {f"model.{name}": tensor for name, tensor in self.model.state_dict().items()}
        if self.position is not None:
            assert self._run is not None and self.task is not None
            tensors |= {f"optimizer.{name}": tensor for name, tensor in self._run.state().items()}
            tensors |= {f"scratch.{name}": tensor for name, tensor in self.task.scratch.items()}
        now = {
            "position": self.where(),
            "seen": list(self.seen),
            "trained": sorted(self.trained),
            "trainable": self.trainable,
            "traces": {name: list(rows) for name, rows in self.traces.items()},
        }
        return Checkpoint(done.model_copy(update=now), tensors)

    def forward(self) -> Tensor | None:
        """Logits [B, num_classes]; in evaluation, those of unseen classes are -inf."""
        if self.is_training:
            return super().forward()
        logits = self.model(self.mb_x)
        masked = logits.masked_fill(~mask_of(self.seen, self.num_classes, self.device), float("-inf"))
        if self.seen:
            self._undecided += undecided(masked, logits).sum()
        return masked

    def _after_eval_exp(self, **kwargs: Any) -> None:
        if number := int(self._undecided):
            self._undecided.zero_()
            raise Diverged(f"{type(self.method).__name__}: the logits of {number} test images are not finite")
        super()._after_eval_exp(**kwargs)

    def make_eval_dataloader(self, **kwargs: Any) -> None:
        samples = samples_of(self.adapted_dataset)
        self.dataloader = EvaluationBatches(TaskSamples(samples, (), self.device, self.eval_mb_size))

    def count_matrix(self, stream: Iterable[Any], learned: int | None = None, model: nn.Module | None = None) -> Counts:
        """Evaluate on all tasks of a test stream, in one pass over the shuffled images (see `Evaluation.count`).

        Args:
            learned: number of tasks, from the first on, that count as learned; None: tasks of which all classes have
                been seen, which is right if every task brings new classes.
            model: the model that predicts, in evaluation mode; None: the current one.

        Raises:
            Diverged: logits are not finite.
            UserError: a plugin changes the predictions of `eval`.
        """
        plugin_rules.check_counts(self)
        self.model.eval()
        predicting = self.predictor() if model is None else model
        with naming(f"{type(self.method).__name__}, evaluation after task {self.tasks_learned - 1}"):
            counts = self._evaluation.count(
                [experience.dataset for experience in stream],
                lambda images, chunk: self._predict(predicting, images, chunk),
                self.seen,
                learned,
                self.eval_mb_size,
            )
        self.model.train()
        return counts

    def _predict(self, model: nn.Module, images: Tensor, chunk: bytes) -> Tensor:
        """Logits of a chunk of the test images; the audit overrides this to record them."""
        if self.method.stateful_prediction:
            return model(images)
        return self._evaluation.predict(model, images, chunk)

    def predictor(self) -> nn.Module:
        """The module that predicts for the current model: itself, or its cheaper merged form if it has one."""
        model = self.model.eval()
        return model if self.method.stateful_prediction else model.merged()

    def stored_numbers(self) -> int:
        """Numbers stored in addition to the frozen backbone: all of the model's, except untrained backbone weights."""
        frozen = {name for name, _ in self.model.named_parameters() if name.startswith("backbone.")} - self.trained
        return sum(t.numel() for name, t in self.model.state_dict().items() if name not in frozen)
