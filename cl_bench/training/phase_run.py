"""The execution of one phase: optimisers, learning rates, steps, and checks that frozen parameters do not change."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from cl_bench.contract.phase import Phase, StepBatch, backward, described, take_step
from cl_bench.contract.task import Scratch
from cl_bench.errors import Diverged, UserError, naming
from cl_bench.randomness import Key
from cl_bench.training.checkpoint import Position
from cl_bench.training.step_graph import Computed, StepGraph

SMALLER_STEPS = "lower the learning rate, or look for a division by zero"
"""Advice in messages about numbers that are not finite."""
_LIKE_PARAMETERS = {"momentum_buffer", "exp_avg", "exp_avg_sq", "max_exp_avg_sq"}
"""States of torch's optimisers that have the shape of their parameter."""
_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


@dataclass(frozen=True)
class Resumed:
    """The state from which a run resumes inside a task: position, tensors of optimisers and of the task's scratch."""

    position: Position
    optimizer: dict[str, Tensor]
    scratch: dict[str, Tensor]


class PhaseRun:
    """The execution of one phase of a task, which trains the parameters that the phase lists and no others.

    Args:
        name: name of the phase for messages, e.g. `phase 0 of SDLoRA`.
        model, scratch: must contain all trained parameters; others would be missing from checkpoints.
        graph_refusal: why steps may not be replayed from a CUDA graph; empty if they may.

    Attributes:
        graph: the CUDA graph of the steps, if there is one.
        optimizers: description and optimiser by name; the main optimiser has the empty name.
        steps: number of steps of an epoch.
        done: number of steps done so far, in all epochs.

    Raises:
        UserError: the phase trains no parameter, or one outside the model and the scratch.
    """

    def __init__(
        self, phase: Phase, name: str, model: nn.Module, scratch: Scratch, graph_refusal: str = "they are not asked for"
    ) -> None:
        self.phase, self.name, self.model, self.scratch = phase, name, model, scratch
        own_step = "the phase takes steps of its own" if phase.step is not None else ""
        self.graph = StepGraph(self._computed, model, scratch, own_step or graph_refusal)
        for label, optimization in phase.optimizations().items():
            if not optimization.trainable():
                which = f"its optimiser '{label}' lists" if label else "it lists"
                raise UserError(f"{name} trains nothing: {which} no parameters; list what it trains, or leave it out")
        self._check_place()
        listed = {id(parameter) for parameter in phase.trained()}
        for parameter in (*model.parameters(), *self._scratch_parameters()):
            parameter.requires_grad_(id(parameter) in listed)
        self.optimizers = {
            label: (optimization, optimization.optimizer(optimization.parameters))
            for label, optimization in phase.optimizations().items()
        }
        self._rates = {label: [g["lr"] for g in made.param_groups] for label, (_, made) in self.optimizers.items()}
        self.steps = self.done = self._updates = 0
        frozen = {label: p for label, p in model.named_parameters() if id(p) not in listed}
        self._frozen = Untouched(frozen) if phase.step or phase.before_step or phase.after_step else None

    def _scratch_parameters(self) -> list[nn.Parameter]:
        return [tensor for tensor in self.scratch.values() if isinstance(tensor, nn.Parameter)]

    def _check_place(self) -> None:
        """Raise `UserError` if a trained parameter is not part of the model or the scratch."""
        known = {id(parameter) for parameter in (*self.model.parameters(), *self._scratch_parameters())}
        for parameter in self.phase.trained():
            if id(parameter) not in known:
                raise UserError(
                    f"{self.name} trains a tensor of shape {tuple(parameter.shape)} that is no parameter of the model "
                    "or of task.scratch, or has been replaced: register it there, and change it in place"
                )

    def begin_epoch(self, epoch: int, steps: int, done: int) -> None:
        """Set the learning rates of an epoch.

        Args:
            steps: number of steps of the epoch.
            done: number of them that are done.

        Raises:
            UserError: the epoch has no steps or another number than the last one; the total would be unknown.
        """
        if not steps or self.steps not in (0, steps):
            before = f"{self.steps} as in the epoch before" if self.steps else "at least one"
            raise UserError(f"{self.name}: its `batches` give {steps} in epoch {epoch}, expected {before}")
        for label, (optimization, optimizer) in self.optimizers.items():
            for group, rate in zip(optimizer.param_groups, self._rates[label], strict=True):
                group["lr"] = rate * optimization.schedule(epoch, self.phase.epochs)
        self.steps, self.done = steps, epoch * steps + done

    def rates(self) -> dict[str, float]:
        """Current learning rates: of the main optimiser by "", of named ones by "/NAME", of further groups "/INDEX"."""
        return {
            (f"/{label}" if label else "") + (f"/{index}" if index else ""): float(group["lr"])
            for label, (_, optimizer) in self.optimizers.items()
            for index, group in enumerate(optimizer.param_groups)
        }

    def begin_step(self, inputs: Tensor) -> None:
        """Call the phase's `before_step` on the inputs of real samples."""
        if self.phase.before_step is not None:
            with torch.no_grad(), naming(self.name):
                self.phase.before_step(inputs, self.done + 1, self.steps * self.phase.epochs)
            self._check_frozen("before_step")

    def outputs(self, inputs: Tensor) -> tuple[Tensor, ...]:
        """Outputs of the training pass: logits [B, num_classes], then anything else that the loss needs."""
        outputs = (self.phase.forward or self.model)(inputs)
        return outputs if isinstance(outputs, tuple) else (outputs,)

    def loss(self, outputs: tuple[Tensor, ...], labels: Tensor) -> tuple[Tensor, Tensor]:
        """The mean loss over samples, and the detached sum in float64.

        Args:
            outputs: outputs of the training pass for real samples, without padding.
            labels: labels [B] of these samples.
        """
        assert self.phase.loss is not None
        losses = self.phase.loss(outputs if len(outputs) > 1 else outputs[0], labels)
        if not isinstance(losses, Tensor) or losses.shape not in ((), labels.shape):
            raise UserError(
                f"{self.name}: its loss is {described(losses)}, expected one value per sample, shape ({len(labels)},), "
                "or a scalar"
            )
        total = losses.detach().sum(dtype=torch.float64)
        return losses.mean(), total if losses.ndim else total * len(labels)

    def _computed(self, inputs: Tensor, labels: Tensor) -> Computed:
        outputs = self.outputs(inputs)
        loss, total = self.loss(outputs, labels)
        found = torch.autograd.grad(loss, self.phase.trainable(), allow_unused=True)
        # As in a parameter's `grad`: the norm of another layout would be summed in another order.
        gradients = tuple(None if gradient is None else gradient.contiguous() for gradient in found)
        return Computed(tuple(output.detach() for output in outputs), loss.detach(), total, gradients)

    def replay(self, inputs: Tensor, labels: Tensor) -> Computed | None:
        """Compute outputs, loss and gradients by the phase's CUDA graph; None: the caller must compute them.

        Args:
            labels: labels of the real samples; with padding among the inputs there is no replay.
        """
        with naming(self.name):
            computed = self.graph(inputs, labels)
        if computed is not None:
            for parameter, gradient in zip(self.phase.trainable(), computed.gradients, strict=True):
                parameter.grad = gradient
        return computed

    def backward(self, loss: Tensor) -> None:
        """Compute the gradients of the loss."""
        with naming(self.name):
            backward(loss, self.phase)

    def step(self) -> None:
        """Clip the gradients, and take a step of the main optimiser."""
        optimization, optimizer = self.optimizers[""]
        take_step(optimization, optimizer)
        self._updates += 1

    def own_step(self, inputs: Tensor, labels: Tensor, key: Key) -> tuple[Tensor, Tensor | None]:
        """Call the phase's own step on real samples; the mean loss, and the logits if it returns any."""
        assert self.phase.step is not None
        batch = StepBatch(
            inputs=inputs,
            labels=labels,
            step=self.done + 1,
            steps=self.steps * self.phase.epochs,
            key=key,
            optimizers=self.optimizers,
        )
        with naming(self.name):
            returned = self.phase.step(batch)
        loss, logits = returned if isinstance(returned, tuple) and len(returned) == 2 else (returned, None)
        if not isinstance(loss, Tensor) or loss.ndim:
            raise UserError(
                f"{self.name}: its step returned {described(loss)}, expected the mean loss, a scalar tensor, or "
                "(mean loss, logits)"
            )
        if logits is not None and (not isinstance(logits, Tensor) or logits.shape[:1] != labels.shape):
            raise UserError(
                f"{self.name}: its step returned {described(logits)} as logits, expected one row per sample, "
                f"({len(labels)}, num_classes)"
            )
        self._updates += len(batch.updates)
        self._check_frozen("step")
        return loss.detach(), logits

    def end_step(self) -> None:
        """Count a step, and call the phase's `after_step`."""
        self.done += 1
        if self.phase.after_step is not None:
            with torch.no_grad(), naming(self.name):
                self.phase.after_step(self.done, self.steps * self.phase.epochs)
            self._check_frozen("after_step")

    def take(self, inputs: Tensor, labels: Tensor, key: Key) -> None:
        """Take a whole step on real samples, without an Avalanche strategy."""
        if self.phase.step is not None:
            self.own_step(inputs, labels, key)
        else:
            self.optimizers[""][1].zero_grad()
            self.begin_step(inputs)
            if self.replay(inputs, labels) is None:
                self.backward(self.loss(self.outputs(inputs), labels)[0])
            self.step()
        self.end_step()

    def check_finite(self) -> None:
        """Raise `Diverged` if a trained parameter is not finite; makes the host wait for the device."""
        if bool(torch.stack([parameter.detach().isfinite().all() for parameter in self.phase.trained()]).all()):
            return
        known = [*self.model.named_parameters(), *((f"task.scratch['{n}']", t) for n, t in self.scratch.items())]
        listed = {id(parameter) for parameter in self.phase.trained()}
        wrong = [name for name, t in known if id(t) in listed and not bool(t.detach().isfinite().all())]
        raise Diverged(f"{wrong[0] if wrong else 'a parameter'} is not finite any more; {SMALLER_STEPS}")

    def end(self) -> None:
        """Raise `UserError` if the phase took no optimiser step, or changed a parameter that it does not train."""
        self._check_place()
        if self.done and not self._updates:
            raise UserError(f"{self.name} trains nothing: its step never calls `update` of the batch it is given")
        if self._frozen is not None and (changed := self._frozen.replaced(self.model) or self._frozen.by_bits()):
            hooks = [name for name in ("before_step", "step", "after_step") if getattr(self.phase, name) is not None]
            self._refuse(" or ".join(hooks), changed)

    def _check_frozen(self, function: str) -> None:
        if self._frozen is not None and (changed := self._frozen.by_version()):
            self._refuse(function, changed)

    def _refuse(self, function: str, changed: str) -> None:
        raise UserError(
            f"{self.name}: its {function} changed '{changed}', which the phase does not train; list it among its "
            "parameters, or keep it as a buffer"
        )

    # --- checkpoints -------------------------------------------------------------------------------------------

    def state(self) -> dict[str, Tensor]:
        """Tensors of the optimisers' states: `INDEX.NAME`, or `OPTIMISER/INDEX.NAME` for named optimisers."""
        return {
            f"{label}/{index}.{name}" if label else f"{index}.{name}": value
            for label, (_, optimizer) in self.optimizers.items()
            for index, values in optimizer.state_dict()["state"].items()
            for name, value in values.items()
            if isinstance(value, Tensor)
        }

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Restore the states of the optimisers.

        Raises:
            KeyError, ValueError: the states do not fit these optimisers.
        """
        states: dict[str, dict[int, dict[str, Tensor]]] = {label: {} for label in self.optimizers}
        for name, tensor in tensors.items():
            label, _, place = name.rpartition("/")
            index, _, rest = place.partition(".")
            parameters = [p for group in self.optimizers[label][1].param_groups for p in group["params"]]
            if not index.isascii() or not index.isdigit() or int(index) >= len(parameters):
                raise ValueError(f"the optimiser's state '{name}' is of no parameter of {self.name}")
            if rest in _LIKE_PARAMETERS and tensor.shape != parameters[int(index)].shape:
                raise ValueError(f"the optimiser's state '{name}' is {described(tensor)} in {self.name}")
            if bool(tensor.isnan().any()):
                raise ValueError(f"the optimiser's state '{name}' is not finite")
            states[label].setdefault(int(index), {})[rest] = tensor
        for label, state in states.items():
            optimizer = self.optimizers[label][1]
            optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
        # Plain SGD has no state that shows whether the earlier process took a step, so assume that it did.
        self._updates += 1


class Untouched:
    """Detects changes of parameters that must not change."""

    def __init__(self, parameters: Mapping[str, nn.Parameter]) -> None:
        self._parameters = {name: (p, p._version, p.data_ptr()) for name, p in parameters.items()}
        self._bits = self._sums()

    def by_version(self) -> str | None:
        """The first parameter that was written to, by torch's version counter and address; does not read values."""
        for name, (parameter, version, place) in self._parameters.items():
            if parameter._version != version or parameter.data_ptr() != place:
                return name
        return None

    def replaced(self, model: nn.Module) -> str | None:
        """The first parameter that the model has replaced by another."""
        now = dict(model.named_parameters())
        return next(
            (name for name, (parameter, _, _) in self._parameters.items() if now.get(name) is not parameter), None
        )

    def by_bits(self) -> str | None:
        """The first parameter whose bits have changed."""
        changed = (self._sums() != self._bits).nonzero()
        return list(self._parameters)[int(changed[0])] if len(changed) else None

    def _sums(self) -> Tensor:
        """Sum of each parameter's values, read as integers and weighted by position, so that swapped values count."""
        flat: Any = (p.detach().reshape(-1).view(_INTEGERS[p.element_size()]) for p, _, _ in self._parameters.values())
        sums = [(bits * torch.arange(1, len(bits) + 1, device=bits.device)).sum() for bits in flat]
        return torch.stack(sums).cpu() if sums else torch.zeros(0, dtype=torch.int64)
