"""The one training loop: an Avalanche strategy that runs a method's phases and counts hits on all tasks in one pass."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from avalanche.core import SupervisedPlugin
from avalanche.logging import BaseLogger
from avalanche.training.plugins import EvaluationPlugin
from avalanche.training.templates import SupervisedTemplate
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from cl_bench import backbones
from cl_bench.backbones import Backbone
from cl_bench.contract.method import Method, Phase, Task, Traces
from cl_bench.data.samples import EvaluationBatches, Samples, TaskSamples, TrainingBatches, samples_of
from cl_bench.errors import UserError
from cl_bench.experiment import Scalar
from cl_bench.models.vit import Execution, configure
from cl_bench.randomness import seeded
from cl_bench.training.checkpoint import Facts, Position
from cl_bench.training.evaluation import Counts, Evaluation, mask_of

_STEPS_TRACED = 24
"""About so many optimiser steps of a phase are shown to the method's `step_traces`."""


class ContinualStrategy(SupervisedTemplate):  # type: ignore[misc]
    """An Avalanche strategy for one `Method` among its plugins.

    `train(experience)` runs the method's phases, each with a fresh optimiser over the method's own parameter groups;
    `eval(stream)` is Avalanche's, with its metrics and loggers; `count_matrix(stream)` counts all tasks in one pass.
    `traces` collects what happens on the way: the mean training `loss` of every epoch, and what the method traces.

    Args:
        plugins: exactly one `Method`, and any other Avalanche plugins.
        backbone: a name known to `cl_bench.backbones`, what that resolves to, or a timm ViT without head.
        num_classes: size of the label set of the whole stream (head and masks never change shape).
        num_tasks: length of the stream; passed on only to methods that declare to need it.
        seed: of everything random; draws are keyed, the global generators are left alone.
        execution: precision of the backbone, and whether it is compiled; None: fp32, eager.
        eval_mb_size: images per evaluation batch.

    Raises:
        ValueError: not exactly one method among the plugins, or a method that needs `num_tasks` without it.
        UserError: a backbone that is no timm ViT, or that the method does not fit, or a stream that it does not fit.
    """

    PLUGIN_CLASS = Method

    dataloader: Any
    mbatch: Any
    mb_output: Any
    _stop_training: bool

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
        eval_mb_size: int = 256,
        evaluator: EvaluationPlugin | None = None,
    ) -> None:
        methods = [plugin for plugin in plugins if isinstance(plugin, Method)]
        if len(methods) != 1:
            raise ValueError(f"expected exactly one Method among the plugins, found {len(methods)}")
        self.method = methods[0]
        if self.method.needs_num_tasks and num_tasks is None:
            raise ValueError(f"{type(self.method).__name__} must know the number of tasks: pass num_tasks")
        if num_tasks is not None:
            self.method.check(num_tasks)
        vit = backbones.create(backbone) if isinstance(backbone, str | Backbone) else backbone
        if not isinstance(vit, VisionTransformer):
            raise UserError(
                f"backbone {type(vit).__name__} is no timm VisionTransformer; create one with timm.create_model, "
                "e.g. vit_base_patch16_224, and num_classes=0"
            )
        with seeded((seed, "build")):
            model = self.method.create(vit, num_classes)
        configure(model, execution or Execution())
        super().__init__(
            model=model,
            # Replaced at the start of every phase; Avalanche wants one from the beginning.
            optimizer=torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.0),
            criterion=nn.CrossEntropyLoss(),
            eval_mb_size=eval_mb_size,
            device=torch.device(device),
            plugins=plugins,
            evaluator=evaluator or EvaluationPlugin(loggers=[BaseLogger()]),
        )
        if evaluator is None:
            # It measures nothing, for 0.2 ms in every iteration.
            self.plugins.remove(self.evaluator)
        self.model.to(self.device)
        self.num_classes = num_classes
        self.num_tasks = num_tasks
        self.seed = seed
        self.seen: tuple[int, ...] = ()
        self.tasks_learned = 0
        self.trainable = 0
        self.task: Task | None = None
        self.phase: Phase | None = None
        self.position: Position | None = None
        self.traces: Traces = {}
        self.valid = 0
        self._loss = torch.zeros((), dtype=torch.float64, device=self.device)
        self._counted = self._steps = 0
        self._outputs: tuple[Tensor, ...] = ()
        self.trained: set[str] = set()
        self._resumed: tuple[Position, dict[str, Tensor]] | None = None
        self._evaluation = Evaluation(num_classes, self.device)

    # --- training ----------------------------------------------------------------------------------------------

    def check_model_and_optimizer(self, **kwargs: Any) -> None:
        """Nothing to adapt: the head has its full size, and each phase makes its optimiser."""

    def model_adaptation(self, model: nn.Module | None = None) -> nn.Module:
        return (self.model if model is None else model).to(self.device)

    def make_train_dataloader(self, **kwargs: Any) -> None:
        """Batches are made per epoch, from a key."""

    def _train_exp(self, experience: Any, eval_streams: Any = None, **kwargs: Any) -> None:
        samples = samples_of(self.adapted_dataset)
        resumed, state = self._resumed or (None, {})
        self._resumed = None
        images = self.begin_task(samples, resumed=resumed is not None)
        assert self.task is not None
        key = self.task.key
        phases = self.method.phases(self.task)
        for number, phase in enumerate(phases):
            if resumed is None or number > resumed.phase:
                self.position = Position(phase=number, epoch=0, step=0)
                self._run_phase(phase, samples, (*key, number), **kwargs)
            elif number == resumed.phase:
                self.position = resumed.model_copy()
                self._run_phase(phase, samples, (*key, number), state, **kwargs)
        self.position = None
        self.model.eval()
        with torch.no_grad():
            self.method.after_task(self.task, images)
        alignment = self.method.alignment(self.task, images)
        self.model.train()
        for phase in alignment:
            self._run_phase(phase, samples, key, **kwargs)
        self._settle()
        with torch.no_grad():
            self._trace(self.method.traces(self.task))
        trained = {id(p): p.numel() for phase in (*phases, *alignment) for p in phase.trainable()}
        self.trainable = sum(trained.values())
        self.tasks_learned += 1

    def begin_task(self, samples: Samples, *, resumed: bool = False) -> TaskSamples:
        """Begin the next task, with the method's pass before it, unless it was begun before; its images."""
        if not len(samples.labels):
            raise UserError(f"task {self.tasks_learned} has no training images; leave it out of the stream")
        classes = tuple(sorted(int(c) for c in set(samples.labels.tolist())))
        known = set() if resumed else set(classes) & set(self.seen)
        if known and "domain-incremental" not in self.method.scenarios:
            raise UserError(f"{type(self.method).__name__} takes no class twice, as this stream brings it")
        self.seen = tuple(sorted(set(self.seen) | set(classes)))
        self.task = Task(
            index=self.tasks_learned,
            classes=classes,
            seen=self.seen,
            num_classes=self.num_classes,
            num_tasks=self.num_tasks if self.method.needs_num_tasks else None,
            model=self.model,
            key=(self.seed, "task", self.tasks_learned),
        )
        images = TaskSamples(samples, self.task.key, self.device)
        if not resumed:
            with torch.no_grad():
                self.method.before_task(self.task, images)
            self.model.to(self.device)
            self._settle()
        return images

    @torch.no_grad()
    def _settle(self) -> None:
        """Lay out all state as a restored copy is: in another layout the same numbers round differently."""
        for module in self.model.modules():
            for parameter in module.parameters(recurse=False):
                parameter.data = parameter.data.contiguous()
            for name, buffer in module.named_buffers(recurse=False):
                setattr(module, name, buffer.contiguous())

    def resume(self, tensors: dict[str, Tensor], facts: Facts, optimizer: dict[str, Tensor]) -> None:
        """Go on from a checkpoint, in a fresh strategy; the next `train` is for the task that comes next in it.

        Args:
            tensors: of the model, without what is as in the fresh one.
            optimizer: tensors of the optimiser's state, `INDEX.NAME`.

        Raises:
            RuntimeError: the tensors do not fit the model.
        """
        self.model.load_state_dict({**self.model.state_dict(), **tensors})
        self.model.to(self.device)
        self.seen = tuple(facts.seen)
        self.tasks_learned = len(facts.stages)
        self.trainable = facts.trainable
        self.trained = set(facts.trained)
        self.traces = {name: list(rows) for name, rows in facts.traces.items()}
        if facts.position is not None:
            self._resumed = facts.position, optimizer

    def optimizer_state(self) -> dict[str, Tensor]:
        """The tensors of the current optimiser's state, `INDEX.NAME`."""
        state = self.optimizer.state_dict()["state"]
        return {
            f"{index}.{name}": value
            for index, values in state.items()
            for name, value in values.items()
            if isinstance(value, Tensor)
        }

    def _restore_optimizer(self, tensors: dict[str, Tensor]) -> None:
        state: dict[int, dict[str, Tensor]] = {}
        for name, tensor in tensors.items():
            index, _, rest = name.partition(".")
            state.setdefault(int(index), {})[rest] = tensor
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": state})

    def _run_phase(
        self,
        phase: Phase,
        samples: Samples,
        key: tuple[int | str, ...],
        state: dict[str, Tensor] | None = None,
        **kwargs: Any,
    ) -> None:
        """Carry a phase out; with the `state` of its optimiser, from `position` on."""
        self.phase = phase
        # A phase trains what it lists and nothing else.
        self.model.requires_grad_(False)
        for parameter in phase.trainable():
            parameter.requires_grad_(True)
        self.trained |= {name for name, parameter in self.model.named_parameters() if parameter.requires_grad}
        self.optimizer = phase.optimizer(phase.parameters)
        base = [group["lr"] for group in self.optimizer.param_groups]
        start = skipped = 0
        self._loss, self._counted = torch.zeros_like(self._loss), 0
        if state is not None:
            assert self.position is not None
            start, skipped = self.position.epoch, self.position.step
            self._loss, self._counted = self._loss + self.position.loss, self.position.counted
            self._restore_optimizer(state)
        for epoch in range(start, phase.epochs):
            if self.position is not None:
                self.position.epoch, self.position.step = epoch, skipped
            for group, lr in zip(self.optimizer.param_groups, base, strict=True):
                group["lr"] = lr * phase.schedule(epoch, phase.epochs)
            if phase.batches is None:
                self.dataloader = TrainingBatches(samples, phase.batch_size, (*key, epoch), self.device, skipped)
                self._steps = len(self.dataloader) + skipped
            else:
                self.dataloader = list(phase.batches(epoch))[skipped:]
            skipped = 0
            self._before_training_epoch(**kwargs)
            if self._stop_training:
                self._stop_training = False
                break
            self.training_epoch(**kwargs)
            self._after_training_epoch(**kwargs)
            self._trace_loss(epoch)
        self.phase = None

    def _trace(self, traces: Traces) -> None:
        for name, rows in traces.items():
            self.traces.setdefault(name, []).extend(rows)

    def _trace_loss(self, epoch: int) -> None:
        """Close an epoch of a phase on images: the mean of its losses."""
        if self.position is not None and self._counted:
            assert self.task is not None
            row: dict[str, Scalar] = {"stage": self.task.index, "phase": self.position.phase, "epoch": epoch}
            self._trace({"loss": [row | {"loss": float(self._loss) / self._counted}]})
            self._loss, self._counted = torch.zeros_like(self._loss), 0

    def where(self) -> Position | None:
        """The position inside the task as of now, with the losses of the epoch so far; None between tasks."""
        if self.position is None:
            return None
        return self.position.model_copy(update={"loss": float(self._loss), "counted": self._counted})

    def _unpack_minibatch(self) -> None:
        if self.is_training:
            images, labels, self.valid = self.mbatch
            self.mbatch = [images, labels]
        super()._unpack_minibatch()

    def forward(self) -> Tensor:
        """Logits [B, num_classes]; in evaluation those of unseen classes are -inf."""
        if self.is_training:
            assert self.phase is not None
            outputs = (self.phase.forward or self.model)(self.mb_x)
            self._outputs = outputs if isinstance(outputs, tuple) else (outputs,)
            return self._outputs[0]
        logits = self.model(self.mb_x)
        return logits.masked_fill(~mask_of(self.seen, self.num_classes, self.device), float("-inf"))

    def criterion(self) -> Tensor:
        if not self.is_training:
            return super().criterion()
        assert self.phase is not None and self.mbatch is not None
        # Samples that only fill up the last batch must not reach the loss, metrics or other plugins.
        self.mb_output = self.mb_output[: self.valid]
        self.mbatch = [tensor[: self.valid] for tensor in self.mbatch]
        logits, *others = (output[: self.valid] for output in self._outputs)
        losses = self.phase.loss((logits, *others) if others else logits, self.mb_y)
        # Summed on the device: reading each loss would make the device wait in every step.
        self._loss += losses.detach().sum(dtype=torch.float64)
        self._counted += self.valid
        return losses.mean()

    def _after_training_iteration(self, **kwargs: Any) -> None:
        if self.position is not None:
            assert self.task is not None and self.phase is not None
            self.position.step += 1
            done, steps = self.position.epoch * self._steps + self.position.step, self.phase.epochs * self._steps
            if done in (1, steps) or done % max(1, steps // _STEPS_TRACED) == 0:
                with torch.no_grad():
                    self._trace(self.method.step_traces(self.task, done))
        super()._after_training_iteration(**kwargs)

    def optimizer_step(self) -> None:
        assert self.phase is not None
        if self.phase.clip_norm is not None:
            nn.utils.clip_grad_norm_(self.phase.trainable(), self.phase.clip_norm)
        super().optimizer_step()

    # --- evaluation --------------------------------------------------------------------------------------------

    def make_eval_dataloader(self, **kwargs: Any) -> None:
        samples = samples_of(self.adapted_dataset)
        self.dataloader = EvaluationBatches(TaskSamples(samples, (), self.device, self.eval_mb_size))

    def count_matrix(self, stream: Iterable[Any], learned: int | None = None, model: nn.Module | None = None) -> Counts:
        """Evaluate on all tasks of a test stream, in one pass over the mixed images (see `evaluation.count`).

        Args:
            learned: the first so many tasks count as learned; None: those whose classes have all been seen, which is
                right where every task brings new ones.
            model: what predicts, in evaluation mode; None: the current model.
        """
        self.model.eval()
        predicting = self.predictor() if model is None else model
        counts = self._evaluation.count(
            [experience.dataset for experience in stream],
            lambda images, chunk: self._predict(predicting, images, chunk),
            self.seen,
            learned,
            self.eval_mb_size,
        )
        self.model.train()
        return counts

    def _predict(self, model: Any, images: Tensor, chunk: bytes) -> Tensor:
        """Logits of a chunk of the test images: where the audit looks on."""
        return self._evaluation.predict(model, images, chunk)

    def predictor(self) -> nn.Module:
        """What predicts for the current model: itself, or its cheaper equal if it can be merged."""
        model: Any = self.model
        return model.merged() if hasattr(model, "merged") else model.eval()

    def stored_numbers(self) -> int:
        """Numbers kept beside the frozen backbone: everything in the model that is not an untouched weight of it."""
        frozen = {name for name, _ in self.model.named_parameters() if name.startswith("backbone.")} - self.trained
        return sum(t.numel() for name, t in self.model.state_dict().items() if name not in frozen)
