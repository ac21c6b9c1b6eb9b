"""The audit: checks that a method keeps the rules without which its numbers mean nothing.

A method is trained on a small stream by the strategy that every run uses, and tested by the functions in `checks` and
`reruns`. One training run serves all checks but three: repeatability, restart and the number of tasks need a second run
and, only if that one differs, further runs that find the cause. Everything runs on the CPU in fp32, where results can
be compared bit by bit.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from cl_bench.contract.method import Method
from cl_bench.studies.audit.checks import (
    CHECKS,
    Ceiling,
    Finding,
    backbone_passes,
    batch_company,
    batch_size,
    earlier_predictions,
    frozen_weights,
    memory,
    old_samples,
    task_identity,
    under_ceiling,
)
from cl_bench.studies.audit.module_state import ModuleState
from cl_bench.studies.audit.reruns import reruns
from cl_bench.studies.audit.trials import Slice, trial

__all__ = ["CHECKS", "AuditReport", "AuditedMethod", "Ceiling", "Finding", "Slice", "audit", "ceiling", "findings"]


@dataclass(frozen=True)
class AuditedMethod:
    """A method to audit, with its options.

    Attributes:
        label: name and options as the user wrote them.
        leaky: whether the method leaks on purpose, so that the audit must fail it.
    """

    label: str
    method: Method
    leaky: bool = False


@dataclass(frozen=True)
class AuditReport:
    """All findings about one method, in the order of `CHECKS`; none if it could not be trained (`error` says why)."""

    audited: AuditedMethod
    findings: tuple[Finding, ...]
    error: str | None = None

    @property
    def failed(self) -> tuple[str, ...]:
        """Names of the checks that failed."""
        return tuple(finding.check for finding in self.findings if finding.status == "fail")

    @property
    def good(self) -> bool:
        """Whether the audit has the expected result: no failed check, or at least one for a method that leaks."""
        return self.error is None and bool(self.failed) == self.audited.leaky


OnStep = Callable[[str], None]
"""Called with what begins: the training, or the name of a check."""
_TRAINING = "training"


def ceiling(rows: Sequence[AuditedMethod], where: Slice, on_step: OnStep = lambda step: None) -> Ceiling:
    """The best final accuracy of these methods on the slice.

    Args:
        on_step: called with the label of each method before it is trained.
    """
    ceilings = []
    for row in rows:
        on_step(row.label)
        ceilings.append(Ceiling(row.label, trial(row.method, where, ModuleState(row.method)).hits))
    return max(ceilings, key=lambda one: one.accuracy)


def audit(
    rows: Sequence[AuditedMethod],
    where: Slice,
    best: Ceiling | None,
    on_report: Callable[[AuditReport], None] = lambda report: None,
    on_step: OnStep = lambda step: None,
) -> list[AuditReport]:
    """Audit every method.

    Args:
        best: result of `ceiling`, shared by all methods; None: skip that check.
        on_report: called with each report as soon as it is complete.
        on_step: called with what begins, for each method again.
    """
    reports = []
    for row in rows:
        try:
            report = AuditReport(row, findings(row.method, where, best, on_step))
        except Exception as error:
            report = AuditReport(row, (), f"{type(error).__name__}: {error}")
        reports.append(report)
        on_report(report)
    return reports


def findings(
    method: Method, where: Slice, best: Ceiling | None, on_step: OnStep = lambda step: None
) -> tuple[Finding, ...]:
    """The findings of all checks on one method, in the order of `CHECKS`."""
    modules = ModuleState(method)
    on_step(_TRAINING)
    first = trial(method, where, modules)
    predictions = (batch_size, batch_company, task_identity, earlier_predictions, backbone_passes)
    # These come last, since they also judge what the evaluations of the checks above have changed or left behind.
    training = (frozen_weights, old_samples, memory)
    seen = []
    for name, check in zip(CHECKS, (*predictions, *training), strict=False):
        on_step(name)
        seen.append(check(first))
    on_step("repeatability, restart and number of tasks")
    repeats, restarts, tasks = reruns(first, where, modules)
    modules.restore()
    return (*seen, repeats, restarts, under_ceiling(first, best), tasks)
