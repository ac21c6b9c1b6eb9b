"""The checks of the audit that train a method again; the results must equal those of the first run bit by bit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from cl_bench.studies.audit.checks import Finding, listed
from cl_bench.studies.audit.module_state import ModuleState
from cl_bench.studies.audit.observation import digest
from cl_bench.studies.audit.trials import Circumstances, Slice, Snapshot, Trial, trial


@dataclass(frozen=True)
class Rerun:
    """Two runs, whose circumstances differ in what the check is about.

    Attributes:
        other: the second run; None if it failed (`error` says why).
    """

    one: Trial
    other: Trial | None
    error: str = ""

    @property
    def same(self) -> bool:
        """Whether the results of both runs are equal bit by bit."""
        return self.other is not None and not any(map(any, (differing(*pair) for pair in pairs(self))))


def reruns(first: Trial, where: Slice, modules: ModuleState) -> tuple[Finding, Finding, Finding]:
    """The findings on repeatability, restart and the number of tasks.

    One further run changes everything that must not matter. Only if its result differs, more runs find out which of
    the changes matters.
    """
    needs = first.method.needs_num_tasks
    others = Circumstances(state=1, knows_num_tasks=needs, between=True, inside=interruptions(first))
    together = attempt(first, where, modules, others)
    if together.same:
        return repeatability(together), restart([("", together)]), number_of_tasks(together, needs)
    # Change one circumstance after the other, and compare each run with the last one that did not fail.
    so_far, base = Circumstances(), first
    comparisons = []
    for change in ("state", "knows_num_tasks", "between", "inside"):
        now = replace(so_far, **{change: getattr(others, change)})
        if now == so_far:
            rerun = Rerun(base, base)
        else:
            rerun = replace(together, one=base) if now == others else attempt(base, where, modules, now)
        comparisons.append(rerun)
        if rerun.other is not None:
            so_far, base = now, rerun.other
    state, unknowing, between, inside = comparisons
    restarts = [("between tasks", between), ("inside a task", inside)]
    return repeatability(state), restart(restarts), number_of_tasks(unknowing, needs)


def interruptions(first: Trial) -> tuple[int, ...]:
    """The number of steps after which each task is interrupted.

    The share of the task's steps grows from task to task, so that the interruptions fall into different phases.
    """
    parts = len(first.stages) + 1
    return tuple(
        min(stage.steps, 1 + stage.steps * number // parts) for number, stage in enumerate(first.stages, start=1)
    )


def attempt(one: Trial, where: Slice, modules: ModuleState, circumstances: Circumstances) -> Rerun:
    """Train the method again under these circumstances; the run may fail."""
    try:
        return Rerun(one, trial(one.method, where, modules, circumstances))
    except Exception as raised:
        return Rerun(one, None, f"{type(raised).__name__}: {raised}")


def repeatability(rerun: Rerun) -> Finding:
    """The same seed gives the same logits and model state, bit by bit, whatever the states of the global generators of
    torch, numpy and Python are."""
    return judge("repeatability", rerun, "the same seed gives a different result")


def restart(reruns: Sequence[tuple[str, Rerun]]) -> Finding:
    """A restarted run gives the same logits and model state, bit by bit.

    So all state that outlives a task is in the model, and all other state of a task in its scratch and optimisers. The
    run is restarted after each task and once inside each. The new strategy, with a new instance of the method, gets the
    content of a checkpoint; globals of the method's modules are reset to what they were before training (see
    `ModuleState`).
    """
    when, rerun = next((pair for pair in reruns if not pair[1].same), reruns[-1])
    return judge("restart", rerun, first_difference(rerun), "fails after a restart", f"restarted {when}: ")


def number_of_tasks(rerun: Rerun, needs: bool) -> Finding:
    """A method that does not declare `needs_num_tasks` gives the same bits without knowing the number of tasks, on a
    stream with one more task that is not learned (if the benchmark has one)."""
    if needs:
        return Finding("number of tasks", "declared", "declared as needed")
    return judge("number of tasks", rerun, "it is used, but needs_num_tasks is not declared", "fails without it")


def judge(check: str, rerun: Rerun, detail: str, failed: str = "fails when repeated", when: str = "") -> Finding:
    """A finding that passes if all bits are the same.

    Args:
        detail: of a failure.
        failed: the figure if the second run failed.
        when: put before the detail.
    """
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
    """Which tensors, or else logits, differ first, and after which task."""
    for number, (images, tensors) in enumerate((differing(*pair) for pair in pairs(rerun)), start=1):
        if images or tensors:
            after = f"after task {number}" if number <= len(rerun.one.stages) else "at the end"
            return f"different {after}: {listed(sorted(tensors)) if tensors else 'logits'}"
    return ""


def pairs(rerun: Rerun) -> list[tuple[Snapshot, Snapshot]]:
    """The results of both runs, paired by the time at which they were taken."""
    return [] if rerun.other is None else list(zip(rerun.one.snapshots, rerun.other.snapshots, strict=True))


def differing(one: Snapshot, other: Snapshot) -> tuple[set[int], set[str]]:
    """Positions of the images whose logits differ in any bit, and names of the tensors that do."""
    names = one.state.keys() | other.state.keys()
    tensors = {name for name in names if one.state.get(name) != other.state.get(name)}
    if digest(one.logits) == digest(other.logits):
        return set(), tensors
    logits = zip(one.logits, other.logits, strict=True)
    return {number for number, (a, b) in enumerate(logits) if digest(a) != digest(b)}, tensors
