"""Checkpoints: the complete state from which another process can resume a run, in one safetensors file without pickle.

A checkpoint is in the hidden folder `.checkpoints` of the results store until its run is stored. All randomness is
keyed, so that a resumed run draws the same numbers; the states of the global generators are saved for methods that use
them.
"""

from __future__ import annotations

import hashlib
import json
import random
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from cl_bench.experiment import Count, Environment, Items, Scalar, Seconds, Session, Text, first_fault
from cl_bench.files import write_atomically

VERSION = 1
_META = "cl-bench"


class Stage(BaseModel):
    """The part of the run record that one finished stage contributes; fields as in `RunRecord`."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    correct: Items[Count | None]
    correct_task_aware: Items[Count]
    train_seconds: Seconds
    eval_seconds: Seconds
    train_samples: Count
    trainable: Count
    stored: Count


class Position(BaseModel):
    """A position inside a task: `step` optimiser steps of this epoch of this phase are done.

    Attributes:
        seconds, samples: training time and training images of the task so far.
        loss, counted: sum of the losses in this epoch so far, and the number of samples in that sum.
    """

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    phase: Count
    epoch: Count
    step: Count
    seconds: Seconds = 0.0
    samples: Count = 0
    loss: float = 0.0
    counted: Count = 0


class Facts(BaseModel):
    """The state of a run, except for tensors.

    Attributes:
        key: key of the experiment.
        sessions: number of processes that have worked on the run.
        environment: environment of the process that wrote the checkpoint; empty if an older version wrote it.
        earlier_sessions: sessions of earlier processes; empty also if they were not recorded.
        stages: the finished stages.
        total: number of test images of each task; empty before the end of the first stage.
        position: position inside the next task; None: at its start.
        seen, trained, trainable: classes seen, names of trained parameters, count of numbers trained in the last stage.
        traces: as in the run record.
        infinite: names of tensors with values that are not finite, as buffers of a method may have.
        sha256: checksum of everything else in the checkpoint.
    """

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    version: int = VERSION
    key: str
    sessions: Count = Field(default=1, ge=1)
    environment: Environment = {}
    earlier_sessions: Items[Session] = []
    stages: Items[Stage] = []
    total: Items[Count] = []
    position: Position | None = None
    seen: Items[Count] = []
    trained: Items[str] = []
    trainable: Count = 0
    traces: dict[Text, Items[dict[Text, Scalar]]] = {}
    infinite: Items[str] = []
    sha256: str = ""


class UnusableCheckpoint(Exception):
    """The checkpoint cannot be resumed from; the message names the file and the reason."""


@dataclass
class Checkpoint:
    """The state of a run.

    Attributes:
        facts: everything but tensors.
        tensors: `model.*`, `optimizer.INDEX.*`, `scratch.*`, `predicted*`, `label`, `task`, `probe.*`, `random.*`.
    """

    facts: Facts
    tensors: dict[str, Tensor] = field(default_factory=dict)

    def part(self, prefix: str) -> dict[str, Tensor]:
        """The tensors whose names start with the prefix, by their names without it."""
        return {name.removeprefix(prefix): t for name, t in self.tensors.items() if name.startswith(prefix)}


def write(path: Path, checkpoint: Checkpoint, about: Mapping[str, str | int] | None = None) -> None:
    """Write a checkpoint; the previous file stays until the new one is complete.

    Args:
        about: description of the run for people (see `store.unfinished`), which nothing is resumed from.

    Raises:
        OSError: the file cannot be written.
    """
    # Cloned, since safetensors refuses tensors that share memory.
    tensors = {name: t.detach().cpu().contiguous().clone() for name, t in checkpoint.tensors.items()}
    facts = checkpoint.facts.model_copy(update={"infinite": _infinite(tensors)})
    facts = facts.model_copy(update={"sha256": _digest(facts, tensors)})
    metadata = {_META: facts.model_dump_json(), "about": json.dumps(about or {})}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, save(tensors, metadata=metadata))


def read(path: Path, key: str) -> Checkpoint | None:
    """The checkpoint at this path, or None if there is no file.

    Raises:
        UnusableCheckpoint: the file is damaged, of another version or of another run.
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            # Opening a named pipe would block for ever.
            raise UnusableCheckpoint(f"{path}: not a regular file")
        with safe_open(path, "pt") as file:
            facts = Facts.model_validate_json((file.metadata() or {}).get(_META, "{}"))
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
    except FileNotFoundError:
        return None
    except ValidationError as error:
        raise UnusableCheckpoint(f"{path}: {first_fault(error)}") from error
    except (OSError, SafetensorError, ValueError, RuntimeError) as error:
        raise UnusableCheckpoint(f"{path}: {str(error).splitlines()[0]}") from error
    if facts.version != VERSION or facts.key != key:
        raise UnusableCheckpoint(f"{path}: it is of another version, or of the run {facts.key}")
    if facts.sha256 != _digest(facts, tensors):
        raise UnusableCheckpoint(f"{path}: its content does not match its checksum")
    if wrong := sorted(set(_infinite(tensors)) - set(facts.infinite)):
        raise UnusableCheckpoint(f"{path}: damaged, {wrong[0]} holds numbers that are not finite")
    return Checkpoint(facts, tensors)


def environment_of_writer(path: Path) -> Environment:
    """Environment of the process that wrote this checkpoint; empty if that cannot be read."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            return {}
        with safe_open(path, "pt") as file:
            return Facts.model_validate_json((file.metadata() or {}).get(_META, "{}")).environment
    except (OSError, SafetensorError, ValueError, RuntimeError):
        return {}


def _infinite(tensors: Mapping[str, Tensor]) -> list[str]:
    """Names of the tensors with values that are not finite."""
    return [name for name, t in sorted(tensors.items()) if t.is_floating_point() and not bool(t.isfinite().all())]


def _digest(facts: Facts, tensors: dict[str, Tensor]) -> str:
    digest = hashlib.sha256(facts.model_dump_json(exclude={"sha256"}).encode())
    for name in sorted(tensors):
        digest.update(f"{name} {tensors[name].dtype} {tuple(tensors[name].shape)}\n".encode())
        digest.update(tensors[name].reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def restore(model: nn.Module, state: Mapping[str, Tensor], method: str, assign: bool = False) -> None:
    """Load the state of one model into a fresh model of the same method.

    Args:
        method: name of the method, for the message.
        assign: replace the tensors of the model, instead of copying values into them.

    Raises:
        RuntimeError: the model does not grow to the size of the state, or has other parameters or buffers.
    """
    try:
        mismatch = model.load_state_dict(state, strict=False, assign=assign)
    except RuntimeError as error:
        misfit = str(error).splitlines()[1].strip().rstrip(".")
    else:
        missing, more = mismatch.missing_keys, mismatch.unexpected_keys
        if not missing and not more:
            return
        first, *others = more or missing
        others_too = f" and {len(others)} more" if others else ""
        misfit = f"a fresh one {'lacks' if more else 'also has'} {first}{others_too}"
    raise RuntimeError(
        f"the model of {method} cannot load its own state: {misfit}; put modules that grow into a GrowingModules, a "
        "ParameterList or a buffer of the model, not into an nn.ModuleList"
    )


def random_state() -> dict[str, Tensor]:
    """States of the global random generators of torch (also on GPUs), numpy and Python, as tensors."""
    _, words, position, gauss, cached = np.random.get_state(legacy=True)
    version, internal, following = random.getstate()
    states = {
        "torch": torch.get_rng_state(),
        "numpy": torch.from_numpy(np.asarray(words).astype(np.int64)),
        "numpy.rest": torch.tensor([position, gauss, cached], dtype=torch.float64),
        "python": torch.tensor([version, *internal], dtype=torch.int64),
        "python.rest": torch.tensor([] if following is None else [following], dtype=torch.float64),
    }
    if torch.cuda.is_available():
        states |= {f"cuda.{number}": state for number, state in enumerate(torch.cuda.get_rng_state_all())}
    return states


def restore_random_state(states: dict[str, Tensor]) -> None:
    """Restore the global random generators.

    Raises:
        ValueError, KeyError, RuntimeError: the states are not valid.
    """
    position, gauss, cached = states["numpy.rest"].tolist()
    if not 0 <= position <= len(states["numpy"]) == 624:
        # numpy would read beyond the end of its words.
        raise ValueError("the state of numpy's generator is invalid")
    numpy_state: Any = ("MT19937", states["numpy"].numpy().astype(np.uint32), int(position), int(gauss), cached)
    version, *internal = states["python"].tolist()
    following = states["python.rest"].tolist()
    torch.set_rng_state(states["torch"])
    np.random.set_state(numpy_state)
    random.setstate((version, tuple(internal), following[0] if following else None))
    for number in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        if f"cuda.{number}" in states:
            torch.cuda.set_rng_state(states[f"cuda.{number}"], number)
