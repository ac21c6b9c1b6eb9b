"""MOS' golden file, replayed: three tasks, learned by the small method of this name in tests/helpers/kinds."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

from cl_bench.training.strategy import ContinualStrategy
from tests.golden import Check, Fixture, Kind
from tests.golden.comparators import Learned, Run, Watch, bottlenecks, drawn, fresh_bottleneck, stored_order
from tests.golden.recipe import CANCELS, INPUTS
from tests.helpers.kinds import mos
from tests.helpers.kinds.mos import MOS

VARIANTS: Mapping[str, Mapping[str, Any]] = {
    "once": {},
    "variance": {"covariance": "variance"},
    "rel": {"merge": "released"},
}
"""Options of the runs of a file."""


def checks(fixture: Fixture, variants: Collection[str] = VARIANTS, **options: Any) -> Iterator[Check]:
    """All comparisons; options change the method."""
    run = Run(fixture, "mos")
    settings: dict[str, Any] = {
        "epochs": run.size("epochs"),
        "batch_size": run.batch,
        "lr": run.number("lr"),
        "weight_decay": run.number("wd"),
        "rank": run.size("rank"),
        "merge_momentum": run.number("momentum"),
        "similarity": run.number("reg"),
        "align_epochs": run.size("ca_epochs"),
        "align_lr": run.number("ca_lr"),
    }
    for name in variants:
        if fixture.any(rf"{name}\."):
            yield from _run(run, name, MOS(**settings | VARIANTS[name] | options))


def _run(run: Run, name: str, method: MOS) -> Iterator[Check]:
    watch = Watch(trained, partial(initial, run))
    strategy = run.strategy(method, watch)
    for t, experience in enumerate(run.experiences()):
        before = len(watch.phases)
        with stored_order(), drawn(run), recorded() as terms:
            strategy.train(experience, eval_streams=[])
        task = Task(run, f"{name}.t{t}.", strategy)
        training, *alignment = watch.phases[before:]
        yield from task.training(training, method.similarity * torch.tensor(terms))
        yield from task.aligned(alignment)
        yield from task.predictions(run.test_images(t)[0])


@contextmanager
def recorded() -> Iterator[list[float]]:
    """The similarity terms of all steps."""
    terms: list[float] = []
    original = mos.self_similarity

    def recording(rows: Tensor) -> Tensor:
        term = original(rows)
        terms.append(float(term.detach()))
        return term

    with mock.patch.object(mos, "self_similarity", recording):
        yield terms


def trained(strategy: ContinualStrategy) -> dict[str, nn.Parameter]:
    """The adapter that goes on, and the head."""
    model: Any = strategy.model
    head = {f"head.{name}": parameter for name, parameter in model.head.named_parameters()}
    return bottlenecks(model.running) | head


def initial(run: Run, task: int, name: str, shape: tuple[int, ...]) -> Tensor | None:
    """What they start with, in the first task."""
    if task:
        return None
    if name.startswith("head."):
        return run(f"mos.{name}", shape, 0.1 if name.endswith("weight") else 0.02)
    return fresh_bottleneck(run, "mos.a", name, shape)


class Task:
    """The arrays of a task of a run, and the strategy that has just learned it."""

    def __init__(self, run: Run, start: str, strategy: ContinualStrategy) -> None:
        self.fixture, self.start, self.batch = run.fixture, start, run.batch
        self.model: Any = strategy.model
        self.seen = len(strategy.seen)
        self.own = strategy.task.classes if strategy.task else ()

    def compare(self, key: str, value: Any, tolerance: float, floor: float = 0.0) -> Iterator[Check]:
        return self.fixture.compare(self.start + key, value, tolerance, floor=floor)

    def training(self, learned: Learned, terms: Tensor) -> Iterator[Check]:
        """Losses, first gradients, and the copy that is kept."""
        yield from self.compare("orth", terms, 2e-4)
        yield from self.compare("losses", torch.tensor(learned.losses) - terms, 2e-5)
        for name, value in learned.gradients.items():
            yield from self.compare(f"grad.{name}", value, 1e-4, CANCELS if name.endswith("bias") else 0.0)
        yield from self.compare("head.weight.before_ca", learned.after["head.weight"][: self.seen], 5e-5)
        for name, value in bottlenecks(self.model.stored[-1]).items():
            yield from self.compare(f"stored.{name}", value, 5e-5)
        for name, value in bottlenecks(self.model.running).items():
            yield from self.compare(f"current_after_statistics.{name}", value, 5e-5)

    def aligned(self, alignment: list[Learned]) -> Iterator[Check]:
        """Statistics of the task's classes, prototypes, and the head after its alignment."""
        statistics, rows = self.model.statistics, slice(-len(self.own), None)
        factors = statistics.factors[rows]
        if statistics.covariance == "variance":
            factors = torch.diag_embed(factors)
        yield from self.compare("class_mean", statistics.means[rows], 5e-5)
        yield from self.compare("class_cov", factors @ factors.transpose(1, 2), 5e-5)
        yield from self.compare("prototypes", self.model.prototypes.prototypes[: self.seen], 5e-5)
        losses = [loss for phase in alignment for loss in phase.losses]
        yield from self.compare("ca_losses", torch.tensor(losses), 2e-4)
        yield from self.compare("head.weight", self.model.head.weight[: self.seen], 2e-4)
        yield from self.compare("head.bias", self.model.head.bias[: self.seen], 2e-4)

    @torch.no_grad()
    def predictions(self, images: Tensor) -> Iterator[Check]:
        """What is predicted, and what became of the adapters by that."""
        model, seen = self.model.eval(), self.seen
        outputs = torch.cat([model(batch) for batch in images.split(self.batch)])
        yield from self.compare("test.outputs", outputs[:, :seen], 5e-5)
        predicting = model.drifting if model.in_passes else model.stored
        for name, value in bottlenecks(predicting[-1]).items():
            yield from self.compare(f"stored_after_evaluation.{name}", value, 5e-5)
        if f"{self.start}test.features" in self.fixture:
            features = model.features_of_all(images)
            yield from self.compare("test.features", features, 5e-5)
            yield from self.compare("test.logits_by_task", model.head(features)[..., :seen], 5e-5)
            yield from self.compare("test.prototype_logits", model.prototypes(features[:, 0])[:, :seen], 5e-5)


KIND = Kind(r"(once|variance|rel)\.t\d+\.", INPUTS, checks)
