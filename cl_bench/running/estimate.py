"""Estimates of how long a run takes, from the times of stored runs."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING

from cl_bench.experiment import Experiment
from cl_bench.store import RunRecord

if TYPE_CHECKING:
    import torch

_Key = tuple[object, ...]


@dataclass(frozen=True)
class Times:
    """Median minutes of stored runs on one kind of device.

    Attributes:
        alike: per run, for runs that differ only in seed and class order.
        rates: per epoch, for runs of the same method on the same data with any hyper-parameters.
    """

    alike: dict[_Key, float]
    rates: dict[_Key, float]

    @classmethod
    def of(cls, records: Iterable[RunRecord], device: torch.device) -> Times:
        """Times of those records whose run was on this kind of device."""
        alike, rates = defaultdict(list), defaultdict(list)
        for record in records:
            if record.environment.get("device") != device.type:
                continue
            minutes = record.seconds / 60
            alike[_alike(record.experiment)].append(minutes)
            rates[_related(record.experiment)].append(minutes / _epochs(record.experiment))
        return cls({k: median(v) for k, v in alike.items()}, {k: median(v) for k, v in rates.items()})

    def minutes(self, experiment: Experiment) -> float | None:
        """Estimated minutes for an experiment; None if no stored run is comparable."""
        if (known := self.alike.get(_alike(experiment))) is not None:
            return known
        rate = self.rates.get(_related(experiment))
        return None if rate is None else rate * _epochs(experiment)


def _alike(experiment: Experiment) -> _Key:
    fields = {"seed": 0, "class_order": "natural"}
    return (experiment.model_copy(update=fields).key,)


def _related(experiment: Experiment) -> _Key:
    return (
        experiment.method,
        experiment.benchmark,
        experiment.scenario,
        experiment.tasks,
        experiment.backbone,
        experiment.transforms.size,
        experiment.limits.model_dump_json(),
    )


def _epochs(experiment: Experiment) -> float:
    epochs = experiment.hyperparameters.get("epochs", 1)
    return float(epochs) if isinstance(epochs, int | float) else 1.0
