"""The training loop of all methods: Avalanche's iterations carry out the steps of a method's phases."""

from __future__ import annotations

import math
from typing import Any

import torch
from avalanche.training.templates import SupervisedTemplate
from torch import Tensor

from cl_bench.contract.method import Method, Traces
from cl_bench.contract.phase import Batch, Phase
from cl_bench.contract.task import Task
from cl_bench.data.rehearsal import RehearsalBatches, exemplar_samples
from cl_bench.data.samples import Samples, TrainingBatches
from cl_bench.errors import Diverged, UserError, naming
from cl_bench.experiment import Scalar
from cl_bench.randomness import Key
from cl_bench.training import plugins
from cl_bench.training.checkpoint import Position
from cl_bench.training.phase_run import SMALLER_STEPS, PhaseRun, Resumed
from cl_bench.training.step_graph import Computed

_STEPS_TRACED = 24
"""Approximate number of optimiser steps per phase after which `Method.step_traces` is called."""

Rehearsed = tuple[Samples, int]
"""Exemplars to draw from, and the number of them in a batch."""


class PhaseLoop(SupervisedTemplate):  # type: ignore[misc]
    """Carries out phases, each with fresh optimisers, and calls Avalanche's callbacks on the way.

    Attributes:
        method: the method whose phases are carried out.
        task: the task that is being learned.
        position: position inside the task; None at places from which a run cannot resume.
        trained: names of the parameters that any phase has trained.
        traces: rows recorded during training, by name of their table.
        valid: number of real samples in the current batch; the others are padding.
    """

    method: Method
    dataloader: Any
    mbatch: Any
    mb_output: Any
    _stop_training: bool

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.task: Task | None = None
        self.position: Position | None = None
        self.trained: set[str] = set()
        self.traces: Traces = {}
        self.valid = 0
        self._loss = torch.zeros((), dtype=torch.float64, device=self.device)
        self._counted = 0
        self._losses: list[Tensor] = []
        self._outputs: tuple[Tensor, ...] = ()
        self._run: PhaseRun | None = None
        self._own_step: tuple[Tensor, Tensor | None] | None = None
        self._computed: Computed | None = None
        self._epoch_key: Key = ()
        self._replayed: Rehearsed | None = None
        self._open = False
        self._padded = self._offered = torch.empty(0)

    @property
    def phase(self) -> Phase | None:
        """The current phase, if any."""
        return None if self._run is None else self._run.phase

    @property
    def phase_run(self) -> PhaseRun | None:
        """The execution of the current phase, if any."""
        return self._run

    @property
    def mean_loss(self) -> float:
        """Mean loss over the samples of the current epoch so far; NaN before the first."""
        return float(self._loss) / self._counted if self._counted else math.nan

    def _run_phase(
        self,
        phase: Phase,
        samples: Samples,
        key: tuple[int | str, ...],
        name: str,
        state: dict[str, Tensor] | None = None,
        **kwargs: Any,
    ) -> None:
        """Carry out a phase.

        Args:
            key: key of the phase's random draws.
            name: name of the phase, for messages.
            state: state of its optimisers, to resume the phase at `position`; None: start it.
        """
        assert self.task is not None
        name = f"{name} of {type(self.method).__name__}"
        if phase.step is not None:
            plugins.check_step(self, name)
        refusal = plugins.refuse_graphs(self)
        run = self._run = PhaseRun(phase, name, self.model, self.task.scratch, refusal)
        self.trained |= {name for name, parameter in self.model.named_parameters() if parameter.requires_grad}
        _, self.optimizer = run.optimizers[""]
        start = skipped = 0
        self._loss, self._counted = torch.zeros_like(self._loss), 0
        if state is not None:
            assert self.position is not None
            start, skipped = self.position.epoch, self.position.step
            self._loss, self._counted = self._loss + self.position.loss, self.position.counted
            run.restore(state)
        rehearsed = self._rehearsed(phase, samples)
        for epoch in range(start, phase.epochs):
            if self.position is not None:
                self.position.epoch, self.position.step = epoch, skipped
            self._epoch_key = (*key, epoch)
            self.dataloader = self._batches(phase, samples, epoch, skipped, rehearsed)
            run.begin_epoch(epoch, len(self.dataloader) + skipped, skipped)
            skipped = 0
            self._losses.clear()
            self._before_training_epoch(**kwargs)
            if self._stop_training:
                self._stop_training = False
                break
            self.training_epoch(**kwargs)
            self._after_training_epoch(**kwargs)
            self._end_epoch(run, epoch)
        run.end()
        self._run = None

    def _rehearsed(self, phase: Phase, samples: Samples) -> Rehearsed | None:
        """What a phase draws from the model's memory of exemplars, or from that of a plugin; None while it is empty.

        Raises:
            UserError: the model has no memory, or a plugin has one, too.
        """
        if self._replayed is not None and phase.exemplars:
            raise UserError(f"{type(self.method).__name__} replays exemplars of its own; leave the replay plugin out")
        if not phase.exemplars:
            return self._replayed
        memory = self.model.exemplars
        if memory is None:
            raise UserError(
                f"{type(self.method).__name__} draws exemplars, but its model keeps none: derive it from "
                "cl_bench.Rehearsing, too, or call keep_exemplars of the model in build"
            )
        return (exemplar_samples(memory.images(), memory.labels, samples), phase.exemplars) if len(memory) else None

    def _batches(
        self, phase: Phase, samples: Samples, epoch: int, skipped: int, rehearsed: Rehearsed | None
    ) -> TrainingBatches | RehearsalBatches | list[Batch]:
        """The batches of an epoch without the first `skipped` ones."""
        if phase.batches is not None:
            return list(phase.batches(epoch))[skipped:]
        own = TrainingBatches(samples, phase.batch_size, self._epoch_key, self.device, skipped)
        return RehearsalBatches(own, *rehearsed) if rehearsed else own

    def _check_position(self, phase: Phase, samples: Samples, name: str, resumed: Resumed) -> None:
        """Raise `ValueError` or `KeyError` if the resumed position or optimiser states do not fit the phase."""
        assert self.task is not None
        position = resumed.position
        rehearsed = self._rehearsed(phase, samples)
        batches = self._batches(phase, samples, position.epoch, 0, rehearsed) if position.epoch < phase.epochs else []
        steps = len(batches)
        if not steps or position.step > steps:
            place = f"step {position.step} of epoch {position.epoch}"
            raise ValueError(f"{place} is beyond {name}, which has {phase.epochs} epochs of {steps or 'no'} steps")
        if not isinstance(batches, list) and position.counted != batches.samples_in(position.step):
            raise ValueError(f"{position.counted} samples are not those of {position.step} steps of {name}")
        PhaseRun(phase, name, self.model, self.task.scratch).restore(resumed.optimizer)

    def _trace(self, traces: Traces) -> None:
        for name, rows in traces.items():
            self.traces.setdefault(name, []).extend(rows)

    def _place(self, run: PhaseRun, epoch: int | None = None) -> str:
        """Phase, task and epoch of training, for messages; `epoch=None`: the epoch of the current step."""
        assert self.task is not None
        return f"{run.name}, task {self.task.index}, epoch {run.done // run.steps if epoch is None else epoch}"

    def _end_epoch(self, run: PhaseRun, epoch: int) -> None:
        """Check the losses and parameters after an epoch; for phases of the method, add the mean loss to the traces.

        Raises:
            Diverged: a loss or parameter is not finite.
        """
        assert self.task is not None
        loss = self._checked_loss(run, epoch)
        with naming(self._place(run, epoch)):
            run.check_finite()
        if self.position is not None and self._counted:
            row: dict[str, Scalar] = {"stage": self.task.index, "phase": self.position.phase, "epoch": epoch}
            self._trace({"loss": [row | {"loss": loss / self._counted}]})
        self._loss, self._counted = torch.zeros_like(self._loss), 0

    def _checked_loss(self, run: PhaseRun, epoch: int) -> float:
        """The sum of the losses in this epoch so far.

        Raises:
            Diverged: the sum is not finite.
        """
        loss = float(self._loss)
        if not math.isfinite(loss):
            values = [float(value) for value in self._losses]
            first = next((number for number, value in enumerate(values) if not math.isfinite(value)), 0)
            step = (run.done - 1) % run.steps + 1 - len(values) + first + 1
            raise Diverged(
                f"{self._place(run, epoch)}: the loss is {values[first] if values else loss} from step {step} of "
                f"{run.steps} on; {SMALLER_STEPS}"
            )
        return loss

    def where(self) -> Position | None:
        """The current position inside the task, with the losses of the epoch so far; None between tasks.

        Raises:
            Diverged: the losses are not finite.
        """
        if self.position is None:
            return None
        assert self._run is not None
        loss = self._checked_loss(self._run, self.position.epoch)
        return self.position.model_copy(update={"loss": loss, "counted": self._counted})

    def _unpack_minibatch(self) -> None:
        if self.is_training:
            images, labels, self.valid = self.mbatch
            if self._open:
                self._padded = images.to(self.device)
                images, labels = self._padded[: self.valid], labels[: self.valid]
                self._offered = images
            self.mbatch = [images, labels]
        assert self.mbatch is not None
        # Plugins expect a task label; without task labels it is 0, as in Avalanche.
        self.mbatch = [*self.mbatch, torch.zeros_like(self.mbatch[1])]
        super()._unpack_minibatch()

    def forward(self) -> Tensor | None:
        """Logits [B, num_classes] of the training pass; None if the phase takes its own steps and returns none."""
        run = self._run
        assert run is not None and self.mbatch is not None
        if self._open:
            self.valid = len(self.mb_y)
        if run.phase.step is None:
            # What keeps the last step's autograd graph alive would tie a captured step to the stream of the last.
            self._outputs, self.mb_output = (), None
            run.begin_step(self.mb_x[: self.valid])
            self._computed = run.replay(self.mb_x, self.mb_y[: self.valid])
            if self._computed is not None:
                return self._computed.outputs[0]
            # A plugin that changes nothing changes no bit either: the pass then has its padding.
            unchanged = self._open and self.mb_x is self._offered
            self._outputs = run.outputs(self._padded if unchanged else self.mb_x)
            if self._open:
                self._outputs = tuple(output[: self.valid] for output in self._outputs)
            return self._outputs[0]
        self.mbatch = [tensor[: self.valid] for tensor in self.mbatch]
        self._own_step = run.own_step(self.mb_x, self.mb_y, (*self._epoch_key, "step", run.done))
        if self._own_step[1] is None and self.evaluator in self.plugins:
            raise UserError(
                f"{run.name}: Avalanche's metrics need predictions; let its step return (mean loss, logits)"
            )
        return self._own_step[1]

    def criterion(self) -> Tensor:
        if not self.is_training:
            return super().criterion()
        assert self._run is not None and self.mbatch is not None
        if self._own_step is not None:
            loss, total = self._own_step[0], self._own_step[0].double() * self.valid
        elif self._computed is not None:
            loss, total = self._computed.loss, self._computed.total
        else:
            if self._open:
                self._outputs = (self.mb_output, *self._outputs[1:])
            # Padding of the last batch must not reach the loss, metrics or other plugins.
            self.mb_output = self.mb_output[: self.valid]
            self.mbatch = [tensor[: self.valid] for tensor in self.mbatch]
            loss, total = self._run.loss(tuple(output[: self.valid] for output in self._outputs), self.mb_y)
        # Summed on the device, since reading each loss would make the host wait in every step.
        self._loss += total
        self._losses.append(total)
        self._counted += self.valid
        return loss

    def backward(self) -> None:
        if self._own_step is None and self._computed is None:
            assert self._run is not None
            self._run.backward(self.loss)

    def optimizer_step(self) -> None:
        if self._own_step is None:
            assert self._run is not None
            with naming(self._place(self._run)):
                self._run.step()
        self._own_step = None

    def _after_training_iteration(self, **kwargs: Any) -> None:
        run = self._run
        assert run is not None
        run.end_step()
        if self.position is not None:
            assert self.task is not None
            self.position.step += 1
            steps = run.phase.epochs * run.steps
            if run.done in (1, steps) or run.done % max(1, steps // _STEPS_TRACED) == 0:
                with torch.no_grad():
                    self._trace(self.method.step_traces(self.task, run.done))
        super()._after_training_iteration(**kwargs)
