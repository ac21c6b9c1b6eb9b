"""The checks that need further runs of a method, whose results must be the first one's bit by bit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from cl_bench.studies.audit.checks import Finding, listed
from cl_bench.studies.audit.module_state import ModuleState
from cl_bench.studies.audit.observation import digest
from cl_bench.studies.audit.trials import Circumstances, Slice, Snapshot, Trial, trial


@dataclass(frozen=True)
class Rerun:
    """Two runs under circumstances that differ in one way.

    Attributes:
        other: None if it failed; `error` says how.
    """

    one: Trial
    other: Trial | None
    error: str = ""

    @property
    def same(self) -> bool:
        """Whether all bits are."""
        return self.other is not None and not any(map(any, (differing(*pair) for pair in pairs(self))))


def reruns(first: Trial, where: Slice, modules: ModuleState) -> tuple[Finding, Finding, Finding]:
    """Repeatability, restart and the number of tasks: from one further run in which all is different that must not
    matter, and only if it differs from others that say why."""
    needs = first.method.needs_num_tasks
    others = Circumstances(state=1, knows_num_tasks=needs, between=True, inside=interruptions(first))
    together = attempt(first, where, modules, others)
    if together.same:
        return repeatability(together), restart([("", together)]), number_of_tasks(together, needs)
    # One thing after the other, each time beside the last run that there is.
    so_far, base = Circumstances(), first
    found = []
    for change in ("state", "knows_num_tasks", "between", "inside"):
        now = replace(so_far, **{change: getattr(others, change)})
        if now == so_far:
            rerun = Rerun(base, base)
        else:
            rerun = replace(together, one=base) if now == others else attempt(base, where, modules, now)
        found.append(rerun)
        if rerun.other is not None:
            so_far, base = now, rerun.other
    state, unknowing, between, inside = found
    restarts = [("between tasks", between), ("inside a task", inside)]
    return repeatability(state), restart(restarts), number_of_tasks(unknowing, needs)


def interruptions(first: Trial) -> tuple[int, ...]:
    """After how many steps each task is interrupted: after a smaller share of the first ones than of the last, so that
    different phases are met."""
    parts = len(first.stages) + 1
    return tuple(
        min(stage.steps, 1 + stage.steps * number // parts) for number, stage in enumerate(first.stages, start=1)
    )


def attempt(one: Trial, where: Slice, modules: ModuleState, circumstances: Circumstances) -> Rerun:
    """Another run, which may fail."""
    try:
        return Rerun(one, trial(one.method, where, modules, circumstances))
    except Exception as raised:
        return Rerun(one, None, f"{type(raised).__name__}: {raised}")


def repeatability(rerun: Rerun) -> Finding:
    """The same seed gives the same bits, in all logits and all of the state, whatever the global generators of torch,
    numpy and Python hold."""
    return judge("repeatability", rerun, "the same seed gives another result")


def restart(reruns: Sequence[tuple[str, Rerun]]) -> Finding:
    """All that outlives a task lies in the model, and all that a task needs in its scratch and optimisers: a run that
    is restarted gives the same bits, in all logits and all of the state.

    It is restarted after each task and inside each. The new strategy, with a new instance of the method, gets what a
    checkpoint holds; globals of the method's modules are what they were before training (see `ModuleState`).
    """
    when, rerun = next((pair for pair in reruns if not pair[1].same), reruns[-1])
    return judge("restart", rerun, first_difference(rerun), "does not go on", f"restarted {when}: ")


def number_of_tasks(rerun: Rerun, needs: bool) -> Finding:
    """A method that does not declare `needs_num_tasks` gives the same bits without it, on a stream that has another
    task which is not learned (if the benchmark has one)."""
    if needs:
        return Finding("number of tasks", "declared", "needs to be told")
    return judge("number of tasks", rerun, "it is used and not declared", "does not run without it")


def judge(check: str, rerun: Rerun, detail: str, failed: str = "does not run again", when: str = "") -> Finding:
    """Pass if all bits are the same; `failed` is the figure of a run that failed, `when` goes before the detail."""
    if rerun.other is None:
        return Finding(check, "fail", failed, when + rerun.error)
    images, tensors = zip(*(differing(*pair) for pair in pairs(rerun)), strict=True)
    names = {name for one, other in pairs(rerun) for name in one.state.keys() | other.state.keys()}
    figure = (
        f"{len(set().union(*images))} of {len(rerun.one.labels)} images, "
        f"{len(set().union(*tensors))} of {len(names)} tensors differ"
    )
    return Finding.judge(check, rerun.same, figure, when + detail)


def first_difference(rerun: Rerun) -> str:
    """Which tensors differ first, and after which task; if none, whether predictions do."""
    for number, (images, tensors) in enumerate((differing(*pair) for pair in pairs(rerun)), start=1):
        if images or tensors:
            after = f"after task {number}" if number <= len(rerun.one.stages) else "in the end"
            return f"{listed(sorted(tensors)) if tensors else 'logits'} differ {after}"
    return ""


def pairs(rerun: Rerun) -> list[tuple[Snapshot, Snapshot]]:
    """The results of both runs, of the same time."""
    return [] if rerun.other is None else list(zip(rerun.one.snapshots, rerun.other.snapshots, strict=True))


def differing(one: Snapshot, other: Snapshot) -> tuple[set[int], set[str]]:
    """Images and tensors that differ in a bit."""
    names = one.state.keys() | other.state.keys()
    tensors = {name for name in names if one.state.get(name) != other.state.get(name)}
    if digest(one.logits) == digest(other.logits):
        return set(), tensors
    logits = zip(one.logits, other.logits, strict=True)
    return {number for number, (a, b) in enumerate(logits) if digest(a) != digest(b)}, tensors
