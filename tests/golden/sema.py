"""SEMA's golden file, replayed: tasks that are learned by the small method of this name in tests/helpers/kinds."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from avalanche.core import SupervisedPlugin
from torch import Tensor

from cl_bench.models.adapters import BottleneckAdapter
from tests.golden import Check, Fixture, Kind
from tests.golden.comparators import Run, stored_order
from tests.golden.recipe import CANCELS, INPUTS
from tests.helpers.kinds.sema import SEMA, Expert, Mixture, SEMAModel

LOSS, STATE = 2e-5, 5e-5


class Watch(SupervisedPlugin):  # type: ignore[misc]
    """Which phases were carried out with how many adapters per block, the losses of those that train the head, and how
    many errors were kept of each descriptor, by block and number."""

    def __init__(self) -> None:
        super().__init__()
        self.phases: list[list[int]] = []
        self.losses: list[Tensor] = []
        self.errors: dict[tuple[int, int], int] = {}
        self._phase: object = None

    def before_training_epoch(self, strategy: Any, **kwargs: Any) -> None:
        if strategy.phase is not self._phase:
            self._phase, model = strategy.phase, strategy.model
            counts = [1] * len(model.adapters) + [len(mixture) for mixture in model.mixtures]
            self.phases.append([int(not model.head.weight.requires_grad), *counts])

    def after_training_iteration(self, strategy: Any, **kwargs: Any) -> None:
        model = strategy.model
        for block, mixture in enumerate(model.mixtures, len(model.adapters)):
            if (name := f"errors {block}") in strategy.task.scratch:
                self.errors[block, len(mixture) - 1] = len(strategy.task.scratch[name])
        if model.head.weight.requires_grad:
            self.losses.append(strategy.loss.detach())


def checks(fixture: Fixture, **options: Any) -> Iterator[Check]:
    """All comparisons; options change the method."""
    run = Run(fixture, "sema")
    settings: dict[str, Any] = {
        "epochs": run.size("epochs"),
        "batch_size": run.batch,
        "lr": run.number("lr"),
        "weight_decay": run.number("wd"),
        "first": run.size("first"),
        "width": run.size("rank"),
        "code": run.size("rd_dim"),
        "descriptor_epochs": run.size("rd_epochs"),
        "descriptor_lr": run.number("rd_lr"),
        "threshold": run.number("threshold"),
        "scan_batch": run.size("detect_batch"),
        "recent": run.size("buffer"),
    }
    fixture.verify("meta.last", run.depth - 1)
    watch = Watch()
    strategy = run.strategy(SEMA(**settings | options), watch)
    model: Any = strategy.model
    start(run, model)
    for t, experience in enumerate(run.experiences()):
        if t:
            yield from detected(run, model, t)
        watch.phases, watch.losses = [], []
        with stored_order():
            strategy.train(experience, eval_streams=[])
        yield from fixture.equal(f"t{t}.phases", watch.phases)
        yield from fixture.compare(f"t{t}.ce", torch.cat(watch.losses), LOSS, floor=CANCELS)
        yield from learned(fixture, model, watch, f"t{t}.")
        with torch.no_grad():
            logits = model.eval()(run.test_images(t)[0])[:, : len(strategy.seen)]
        yield from fixture.compare(f"t{t}.test.logits", logits, STATE)


@torch.no_grad()
def start(run: Run, model: SEMAModel) -> None:
    """Give the model the values of the file, and let what is added have them, too."""

    def adapt(adapter: BottleneckAdapter, name: str) -> None:
        for part, scale in (("down.weight", 0.2), ("down.bias", 0.02), ("up.weight", 0.05), ("up.bias", 0.02)):
            parameter = adapter.get_parameter(part)
            parameter.copy_(run(f"{name}.{part}", parameter.shape, scale))

    def fill(expert: Expert, name: str) -> Expert:
        adapt(expert.adapter, name)
        for part, parameter in expert.router.named_parameters():
            parameter.copy_(run(f"{name}.router.{part}", parameter.shape, 0.1))
        for part, layer in zip(("encoder", "decoder"), expert.descriptor, strict=True):
            layer.weight.copy_(run(f"{name}.{part}.weight", layer.weight.shape, 0.1))
        return expert

    def filled(mixture: Mixture, block: int) -> None:
        make = mixture.make
        mixture.make = lambda: fill(make(), f"sema.{block}.{len(mixture)}")
        fill(mixture[0], f"sema.{block}.0")

    for block, adapter in enumerate(model.adapters):
        adapt(adapter, f"sema.{block}.0")
    for block, mixture in enumerate(model.mixtures, len(model.adapters)):
        filled(mixture, block)
    model.head.weight.copy_(run("sema.head.weight", model.head.weight.shape, 0.1))
    model.head.bias.copy_(run("sema.head.bias", model.head.bias.shape, 0.02))


@torch.no_grad()
def detected(run: Run, model: SEMAModel, t: int) -> Iterator[Check]:
    """What the first batch of a task looks like to each descriptor, before anything is trained."""
    images = run.train_images(t)[0][: run.size("detect_batch")]
    _, inputs = model.eval().with_inputs(images)
    for block, mixture in enumerate(model.mixtures, len(model.adapters)):
        for k, expert in enumerate(mixture):
            error = expert.error(inputs[block])
            yield from run.fixture.compare(f"t{t}.detect.{block}.{k}.error", error, STATE)
            yield from run.fixture.compare(
                f"t{t}.detect.{block}.{k}.z", ((error - expert.mean) / expert.std).abs(), STATE
            )


def learned(fixture: Fixture, model: SEMAModel, watch: Watch, start: str) -> Iterator[Check]:
    """All weights, and what descriptors keep of their errors."""
    for block, adapter in enumerate(model.adapters):
        yield from _adapter(fixture, adapter, f"{start}after.{block}.0")
    for block, mixture in enumerate(model.mixtures, len(model.adapters)):
        for k, expert in enumerate(mixture):
            key = f"{start}after.{block}.{k}"
            yield from _adapter(fixture, expert.adapter, key)
            for part, layer in zip(("encoder", "decoder"), expert.descriptor, strict=True):
                for name, parameter in layer.named_parameters():
                    yield from fixture.compare(f"{key}.rd.{part}.{name}", parameter, STATE)
            kept = torch.stack([expert.mean, expert.std, torch.tensor(float(watch.errors[block, k]))])
            yield from fixture.compare(f"{start}record.{block}.{k}", kept, STATE)
        for name in ("weight", "bias"):
            rows = torch.cat([expert.router.get_parameter(name) for expert in mixture])
            yield from fixture.compare(f"{start}after.{block}.router.{name}", rows, STATE)
    for name, parameter in model.head.named_parameters():
        yield from fixture.compare(f"{start}head.{name}", parameter, STATE)


def _adapter(fixture: Fixture, adapter: BottleneckAdapter, key: str) -> Iterator[Check]:
    for part in ("down", "up"):
        for name, parameter in getattr(adapter, part).named_parameters():
            yield from fixture.compare(f"{key}.{part}_proj.{name}", parameter, STATE)


KIND = Kind(r"t\d+\.(detect|phases|record)\.?", INPUTS, checks)
