"""Carries out a stored run again and compares the results."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from cl_bench import backbones, metrics, streams
from cl_bench.contract import registry
from cl_bench.errors import UserError
from cl_bench.running.plan import PlannedRun
from cl_bench.running.progress import RunProgress
from cl_bench.running.recipes import Recipe
from cl_bench.running.runner import execute
from cl_bench.store import Arrays, RunRecord, Store, compact, matching
from cl_bench.streams import DataConfig


@dataclass(frozen=True)
class Comparison:
    """A stored run, compared with its repetition.

    Attributes:
        label, key: label and key of the run.
        stored, now: final accuracies (fractions).
        counts: number of entries of the count matrices that differ, out of `entries`.
        predictions: number of test images whose final prediction differs, out of `images`; no images: no predictions
            are stored.
        environment: differences of the environments: (name, stored, now).
    """

    label: str
    key: str
    stored: float
    now: float
    counts: int
    entries: int
    predictions: int
    images: int
    environment: tuple[tuple[str, object, object], ...]

    @property
    def identical(self) -> bool:
        """Whether all counts and final predictions are the same."""
        return not (self.counts or self.predictions)


def find(key: str, folders: Iterable[Path]) -> tuple[RunRecord, Arrays | None]:
    """The stored run whose key starts with `key`, and its arrays; None for arrays of the results in the package.

    Raises:
        UserError: no run or more than one run matches.
    """
    searched = [folder for folder in folders if folder.is_dir()]
    matches: list[tuple[RunRecord, Store | None]] = [*matching(key, searched, lambda damaged: None)]
    if not matches:
        packaged = compact.unpack(compact.PACKAGED, lambda damaged: None, lambda one, _: one.startswith(key))
        matches = [(record, None) for record in packaged]
    if not matches:
        where = ", ".join(f"'{folder}'" for folder in searched) or "no existing folder"
        raise UserError(f"no run with the key '{key}' in {where}; keys are in the names of the stored files")
    if len(matches) > 1:
        keys = ", ".join(sorted(record.key for record, _ in matches)[:3])
        raise UserError(f"'{key}' is the start of {len(matches)} keys: {keys} ...; give more digits")
    ((record, store),) = matches
    return record, None if store is None else store.arrays(record)


def planned(
    record: RunRecord,
    checkpoint: Path | None = None,
    method_files: Sequence[Path] = (),
    data: DataConfig | None = None,
) -> PlannedRun:
    """The stored experiment, ready to run.

    Raises:
        UserError: the method, data or weights are missing or have changed.
    """
    experiment = record.experiment
    file, named = experiment.method_file, [path.name for path in method_files]
    if file and file not in named:
        raise UserError(f"'{experiment.method}' was a method of the file {file}; name it with --method-file {file}")
    entry = registry.lookup([experiment.method], method_files)[experiment.method]
    if entry.revision != experiment.revision:
        changed = f"is at revision {entry.revision}, and was at {experiment.revision} when this was run"
        if file:
            raise UserError(f"the method file '{entry.file}' {changed}; restore the file as it was")
        raise UserError(
            f"'{entry.name}' {changed}, so its results are not comparable; take the version of cl-bench in the "
            "record's environment"
        )
    benchmark = streams.find(experiment.benchmark, data, experiment.scenario)
    split = benchmark.source().split
    if split != experiment.split:
        raise UserError(
            f"the data of {experiment.benchmark} here has the split {split[:8]}, the stored run had "
            f"{experiment.split[:8]}; 'cl-bench data verify' says what is different"
        )
    name = experiment.backbone.partition(":")[0] if checkpoint else experiment.backbone
    tagged = "." in name or checkpoint is not None or name in backbones.names()
    # The experiment itself holds the mean and standard deviation of the input.
    size = experiment.transforms.size
    vit = backbones.find(name, checkpoint=checkpoint, pretrained=tagged, normalise="none", size=size)
    vit = replace(vit, weights=experiment.weights)
    recipe = Recipe(record.recipe, experiment.hyperparameters, record.tuning_trials, record.tuning_minutes)
    method = entry.configure(experiment.hyperparameters)
    return PlannedRun(experiment, method, record.label, recipe, backbones.verify(vit), benchmark.data)


def repeat(
    record: RunRecord, arrays: Arrays | None, run: PlannedRun, device: torch.device, progress: RunProgress | None = None
) -> Comparison:
    """Carry out the run again without storing it, and compare the results; without arrays, the counts alone."""
    now, again = execute(run, device, progress or RunProgress())
    stored_counts, counts = _counts(record), _counts(now)
    predicted_now = again["predicted"][-1]
    predicted = predicted_now if arrays is None else arrays["predicted"][-1]
    # Entries that an older version did not record are not compared.
    names = sorted(record.environment.keys() & now.environment.keys())
    return Comparison(
        label=record.label,
        key=record.key,
        stored=metrics.acc(record.correct, record.total),
        now=metrics.acc(now.correct, now.total),
        counts=sum(one != other for one, other in zip(stored_counts, counts, strict=True)),
        entries=len(counts),
        predictions=int(np.sum(predicted != predicted_now)),
        images=0 if arrays is None else len(predicted),
        environment=tuple(
            (name, record.environment.get(name), now.environment.get(name))
            for name in names
            if record.environment.get(name) != now.environment.get(name)
        ),
    )


def _counts(record: RunRecord) -> list[int | None]:
    """Entries of both count matrices, in one list."""
    return [hits for row in record.correct for hits in row] + [
        hits for row in record.correct_task_aware for hits in row
    ]
