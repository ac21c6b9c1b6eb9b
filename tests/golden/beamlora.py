"""BeamLoRA's golden file, replayed: scores, one replacement of ranks, and the steps around it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from cl_bench.contract.phase import ReachableOptimizer
from cl_bench.contract.task import Task
from cl_bench.methods.beamlora import BeamLoRA, kept_share, pruned
from tests.golden import Check, Fixture, Kind, zoo
from tests.golden.zoo import Case, Suite

_LAYOUT = {"A": zoo.same, "B": zoo.same, "gate": lambda gate: gate[:, :, None]}
_CHANGE, _CLOSE = 1e-3, 1e-4


class Reversed(BeamLoRA):
    """Partners in reverse order, as in the file, in place of a random one."""

    def order(self, task: Task, step: int, block: int, projection: int, count: int) -> Tensor:
        return torch.arange(count).flip(0)


def checks(fixture: Fixture, method: type[BeamLoRA] = Reversed, **options: Any) -> Iterator[Check]:
    """All comparisons; options change the method."""
    if "threshold64/p" in fixture:
        steps = range(len(fixture.data["threshold64/p"]))
        yield from fixture.compare("threshold64/p", [kept_share(step, 50, 0.95) for step in steps], 1e-6)
    for suite in Suite.all(fixture):
        yield from _suite(suite, method, **options)


def _suite(suite: Suite, kind: type[BeamLoRA], **options: Any) -> Iterator[Check]:
    rank, period = suite.number("r"), suite.number("T")
    settings = {
        "rank": rank,
        "alpha": suite.real("alpha"),
        "temperature": suite.real("temperature"),
        "share": suite.real("p"),
        "lr": suite.real("lr"),
        # One replacement, after T of 2 T steps, with the share of the first step.
        "operations": 2,
        "pruning_end": 1e9,
    }
    method = kind(**{**settings, **options})  # type: ignore[arg-type]
    gates = suite.injected("gate", (1, rank), 0.05)[:, :, 0]
    case = Case(suite, f"{suite.name}/run", method, [*suite.factors(), gates], _LAYOUT)
    yield from suite.fixture.equal(f"{case.key}/init/gate_zero", _starts_at_zero(method, suite))
    yield from case.start()
    yield from _trained(case, period)


def _starts_at_zero(method: BeamLoRA, suite: Suite) -> bool:
    bank = method.bank(suite.backbone, method.targets, method.rank, method.alpha)
    bank.grow(method.rank, torch.Generator().manual_seed(0), torch.device("cpu"))
    return not bank.gate[0].any()


def _trained(case: Case, period: int) -> Iterator[Check]:
    made, after_step = case.phase.optimizer, case.phase.after_step
    assert isinstance(made, ReachableOptimizer) and after_step is not None
    start, head = case.parts(), case.head()
    bank, found = case.model.bank, {}

    def first_moments() -> dict[str, Tensor]:
        moments = [made.moments(parameter)["exp_avg"] for parameter in bank.direction(-1)]
        return {f"moment1/{name}": m.double().clone() for name, m in case.laid_out(moments).items()}

    def watched(step: int, steps: int) -> None:
        if step == period:
            found["before"] = case.parts() | first_moments()
            found["scores"] = {"score": bank.weights_of_ranks(-1).detach().clone()}
        after_step(step, 2 * period)
        if step in (period // 2, period):
            found["history" if step < period else "reset"] = case.parts() | first_moments()
        if step == period:
            found["logits"] = {"": case.model(case.images)}

    case.phase = replace(case.phase, after_step=watched)
    losses = case.train(case.suite.number("steps"))
    for place in ("history", "before", "reset"):
        for name, value in found[place].items():
            base = None if "/" in name else start
            yield from case.compare_all(place, {name: value}, _CHANGE, start=base)
    scores = found["scores"]["score"]
    lost = pruned(scores, case.suite.real("p"), case.method.scope)
    yield from case.compare_all("", {"score": scores}, zoo.GRADIENT)
    for block, p, projection in case.suite.projections():
        yield from case.fixture.equal(f"{case.key}/pruned/{projection}", lost[block, p])
    replaced = case.task.scratch["replaced"].flatten()
    yield from case.fixture.equal(f"{case.key}/pruned_counts", replaced)
    yield from case.compare("reset/logits", found["logits"][""], _CLOSE)
    yield from case.compare("losses_steps", losses, _CLOSE)
    yield from case.compare_all("after", case.parts(), _CHANGE, start=start)
    for name, value in case.head().items():
        yield from case.compare(f"after/{name}", value, _CHANGE, start=head[name])
    yield from case.compare("after/logits", case.model(case.images), _CLOSE)


KIND = Kind(r"[^/]+/run/pruned_counts|threshold64/", zoo.INPUTS, checks)
