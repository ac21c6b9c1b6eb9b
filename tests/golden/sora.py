"""SoRA's golden file, replayed: the penalty on gates, their threshold, and steps of the method's phase."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from cl_bench.contract.phase import ParameterGroup, ReachableOptimizer
from cl_bench.methods.sora import SoRA, spaced, thresholded
from tests.golden import Check, Fixture, Kind, zoo
from tests.golden.zoo import Case, Suite

_LAYOUT = {"A": zoo.same, "B": zoo.same, "gate": lambda gate: gate[:, :, None]}
_OURS = " [torch's AdamW]"
# By the optimiser: that of the program; or torch's, in the file's two cases.
_TOLERANCES = {
    "program": {
        "gates_steps": 1e-4,
        "losses_steps": 1e-5,
        "A": 1e-2,
        "B": 1e-2,
        "head": 1e-3,
        "deltaW": 1e-3,
        "logits": 3e-4,
    },
    "code": {"gates_steps": 1e-3, "losses_steps": 1e-3, "head": 5e-2, "deltaW": 3e-2, "logits": 5e-3},
    "lr": {
        "gates_steps": 1e-3,
        "losses_steps": 1e-3,
        "A": 3e-2,
        "B": 3e-2,
        "head": 5e-3,
        "deltaW": 1e-2,
        "logits": 2e-3,
    },
}


class ProgramsAdam(torch.optim.Optimizer):
    """The program's Adam; `early` groups (transformers before 4.49) add eps before the second bias correction."""

    def __init__(self, groups: Sequence[ParameterGroup], lr: float) -> None:
        super().__init__(groups, {"lr": lr, "eps": 1e-8, "early": True})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            for parameter in group["params"]:
                state = self.state[parameter]
                zero = torch.zeros_like(parameter)
                state["m"] = 0.9 * state.get("m", zero) + 0.1 * parameter.grad
                state["v"] = 0.999 * state.get("v", zero) + 0.001 * parameter.grad.square()
                state["t"] = state.get("t", 0) + 1
                correction = (1 - 0.999 ** state["t"]) ** 0.5
                eps = group["eps"] * (1.0 if group["early"] else correction)
                size = group["lr"] * correction / (1 - 0.9 ** state["t"])
                parameter.sub_(size * state["m"] / (state["v"].sqrt() + eps))


def checks(fixture: Fixture, **options: Any) -> Iterator[Check]:
    """All comparisons; options change the method."""
    rule = options.get("threshold_rule", SoRA.threshold_rule)
    if fixture.any("prox/"):
        given, xi = torch.from_numpy(fixture["prox/in"]), float(fixture["prox/xi"])
        yield from fixture.compare("prox/out", thresholded(given, xi, rule), 1e-6)
    for spacing in ("linear", "log_linear", "exp_linear"):
        key = f"schedule64/{spacing}"
        if key in fixture:
            ours = spaced(1e-4, 7e-4, len(fixture.data[key]), spacing)  # type: ignore[arg-type]
            yield from fixture.compare(key, ours, 1e-6)
    for suite in Suite.all(fixture):
        for name in ("code", "lr"):
            if fixture.any(f"{suite.name}/{name}/"):
                yield from _case(suite, name, **options)


def _case(suite: Suite, name: str, **options: Any) -> Iterator[Check]:
    settings = {
        "rank": suite.number("r"),
        "alpha": suite.real("alpha"),
        "gate_penalty": suite.real("lam"),
        "threshold": suite.real("xi" if name == "code" else "xi_lr"),
        "threshold_unit": "step" if name == "code" else "lr",
        "clip_norm": suite.real("clip"),
        "lr": suite.real("lr"),
    }
    method = SoRA(**{**settings, **options})  # type: ignore[arg-type]

    def case() -> Case:
        gates = suite.injected("gate", (1, suite.number("r")), 1.0)[:, :, 0]
        return Case(suite, f"{suite.name}/{name}", method, [*suite.factors(), gates], _LAYOUT)

    yield from case().start()
    yield from _trained(case(), _TOLERANCES[name], _OURS)
    programs = case()
    programs.phase = replace(programs.phase, optimizer=_as_the_program(programs, name))
    yield from _trained(programs, _TOLERANCES["program"])


def _as_the_program(case: Case, name: str) -> ReachableOptimizer:
    """The phase's optimiser, with the program's Adam in place of torch's."""
    made = case.phase.optimizer
    assert isinstance(made, ReachableOptimizer)

    def make(groups: Sequence[ParameterGroup]) -> torch.optim.Optimizer:
        factors, gates = groups
        return ProgramsAdam([{**factors, "early": name == "code"}, {**gates, "eps": 1e-6}], case.suite.real("lr"))

    made.make = make
    return made


def _trained(case: Case, tolerances: Mapping[str, float], variant: str = "") -> Iterator[Check]:
    before, head, update = case.parts(), case.head(), case.update()
    threshold, seen = case.phase.after_step, []
    assert threshold is not None

    def watched(step: int, steps: int) -> None:
        threshold(step, steps)
        seen.append(case.model.bank.gate[-1].detach().flatten(0, 1).clone())

    case.phase = replace(case.phase, after_step=watched)
    losses = case.train(case.suite.number("steps"))
    gates = torch.stack(seen)
    found: dict[str, Tensor] = {"gates_steps": gates, "losses_steps": losses}
    for key, value in found.items():
        yield from case.compare(key, value, tolerances[key], variant=variant)
    zeros = (gates == 0).flatten(1).sum(1)
    yield from case.fixture.equal(f"{case.key}/zeros_steps", zeros, variant=variant)
    parts = {part: value for part, value in case.parts().items() if part in tolerances}
    for part, value in parts.items():
        yield from case.compare_all("after", {part: value}, tolerances[part], start=before, variant=variant)
    for part, value in case.head().items():
        yield from case.compare(f"after/{part}", value, tolerances["head"], start=head[part], variant=variant)
    change = {"deltaW": case.update()}
    yield from case.compare_all("after", change, tolerances["deltaW"], start={"deltaW": update}, variant=variant)
    yield from case.compare("after/logits", case.model(case.images), tolerances["logits"], variant=variant)


KIND = Kind(r"prox/|[^/]+/(code|lr)/gates_steps", zoo.INPUTS + r"|^prox/(in|xi)$", checks)
