"""EASE's golden file, replayed: three tasks, learned by the small method of this name in tests/helpers/kinds."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from cl_bench.training.strategy import ContinualStrategy
from tests.golden import Check, Fixture, Kind
from tests.golden.comparators import Learned, Run, Watch, bottlenecks, fresh_bottleneck, stored_order
from tests.golden.recipe import CANCELS, INPUTS
from tests.helpers.kinds.ease import EASE

VARIANTS: Mapping[str, Mapping[str, Any]] = {
    "main": {},
    "init_ptm": {"alpha": 0.05, "beta": 1.0},
    "last_only": {"synthesis": "once"},
    "plain": {"reweighted": False},
    # A class's own subspace only; its prototypes in the others, of which the file says nothing, weigh nothing.
    "diagonal": {"alpha": 0.0},
}
"""Options of the runs of a file."""


def checks(fixture: Fixture, variants: Collection[str] = VARIANTS, **options: Any) -> Iterator[Check]:
    """All comparisons; options change the method."""
    run = Run(fixture, "ease")
    for key, number in (("tasks", len(run.sizes)), ("init_cls", run.sizes[0]), ("inc", run.sizes[-1])):
        fixture.verify(f"meta.{key}", number)
    fixture.verify("test.labels", run.test_images()[1])
    settings: dict[str, Any] = {
        "width": run.size("rank"),
        "epochs": run.size("epochs"),
        "batch_size": run.batch,
        "lr": run.number("lr"),
        "weight_decay": run.number("wd"),
        "alpha": 0.1,
    }
    for name in variants:
        if fixture.any(rf"{name}\."):
            yield from _run(run, name, EASE(**settings | VARIANTS[name] | options))


def _run(run: Run, name: str, method: EASE) -> Iterator[Check]:
    compare, (images, _) = run.fixture.compare, run.test_images()
    watch = Watch(trained, partial(initial, run))
    strategy = run.strategy(method, watch)
    model: Any = strategy.model
    for t, experience in enumerate(run.experiences()):
        with stored_order():
            strategy.train(experience, eval_streams=[])
        start, seen = f"{name}.t{t}.", len(strategy.seen)
        yield from _training(run.fixture, start, watch.phases[t])
        prototypes = model.head.prototypes[:seen]
        if name == "diagonal":
            prototypes = torch.where(model.head.own[:seen, None, None] == torch.arange(t + 1)[:, None], prototypes, 0)
        with torch.no_grad():
            features = model.eval().features(images)
        yield from compare(f"{start}weight", prototypes.flatten(1), 5e-5)
        yield from compare(f"{start}features", features, 5e-5)
        yield from compare(f"{start}logits", model(images)[:, :seen], 5e-5)


def trained(strategy: ContinualStrategy) -> dict[str, nn.Parameter]:
    """The newest adapter and the head."""
    model: Any = strategy.model
    assert strategy.task is not None
    scratch = strategy.task.scratch
    head = {"proxy.weight": scratch.trainable("head.weight"), "proxy.sigma": scratch.trainable("head.scale")}
    return bottlenecks(model.adapters[-1]) | head


def initial(run: Run, task: int, name: str, shape: tuple[int, ...]) -> Tensor:
    """What they start with."""
    if name == "proxy.sigma":
        return torch.ones(shape)
    if name == "proxy.weight":
        return run(f"ease.proxy.t{task}", shape, 0.1)
    return fresh_bottleneck(run, f"ease.a{task}", name, shape)


def _training(fixture: Fixture, start: str, learned: Learned) -> Iterator[Check]:
    def compare(key: str, value: Tensor, tolerance: float, **more: Any) -> Iterator[Check]:
        # The file has the scale as a vector.
        return fixture.compare(start + key, torch.atleast_1d(value), tolerance, **more)

    yield from compare("losses", torch.tensor(learned.losses), 2e-5)
    for name, value in learned.gradients.items():
        yield from compare(f"grad.{name}", value, 1e-4, floor=CANCELS if name.endswith("bias") else 0.0)
    for name, value in learned.after.items():
        yield from compare(f"after.{name}", value, 5e-4, start=torch.atleast_1d(learned.before[name]))


KIND = Kind(
    r"(main|plain|last_only)\.t\d+\.(features|weight|logits|losses|(grad|after)\.(\d\.|proxy))|init_ptm\.|diagonal\.",
    INPUTS,
    checks,
    {
        r"aper\..*": "another method, APER, in the same program",
        r"block\..*": "one block alone, which features go through, and norms in the adapter that no released run has",
    },
)
