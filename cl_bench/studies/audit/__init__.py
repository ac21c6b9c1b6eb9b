"""Whether a method keeps the rules that make its numbers mean something: nothing leaks, moves or hides.

A method is trained on a small stream, by the strategy that every run uses, and held against the promises of `checks`
and `reruns`, a function each. One training run serves them all but three: repeatability, restart and the number of
tasks take a second run and, only if that one differs, further ones which say why. Everything runs on the CPU in fp32,
where bits can be compared.
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
    """A method with its options.

    Attributes:
        label: name and options as the user wrote them.
        leaky: the audit is expected to fail it.
    """

    label: str
    method: Method
    leaky: bool = False


@dataclass(frozen=True)
class AuditReport:
    """All findings about a row, in the order of `CHECKS`; none if it could not be trained (`error` says why)."""

    audited: AuditedMethod
    findings: tuple[Finding, ...]
    error: str | None = None

    @property
    def failed(self) -> tuple[str, ...]:
        """The checks that failed."""
        return tuple(finding.check for finding in self.findings if finding.status == "fail")

    @property
    def good(self) -> bool:
        """Whether the audit went as it should: no check failed, or some did for a row that leaks."""
        return self.error is None and bool(self.failed) == self.audited.leaky


def ceiling(rows: Sequence[AuditedMethod], where: Slice) -> Ceiling:
    """The best of these rows on the slice."""
    found = [Ceiling(row.label, trial(row.method, where, ModuleState(row.method)).hits) for row in rows]
    return max(found, key=lambda one: one.accuracy)


def audit(
    rows: Sequence[AuditedMethod],
    where: Slice,
    best: Ceiling | None,
    on_report: Callable[[AuditReport], None] = lambda report: None,
) -> list[AuditReport]:
    """Audit every row.

    Args:
        best: from `ceiling`, computed once and shared; None: that check is skipped.
        on_report: gets each report as soon as it is there.
    """
    reports = []
    for row in rows:
        try:
            report = AuditReport(row, findings(row.method, where, best))
        except Exception as error:
            report = AuditReport(row, (), f"{type(error).__name__}: {error}")
        reports.append(report)
        on_report(report)
    return reports


def findings(method: Method, where: Slice, best: Ceiling | None) -> tuple[Finding, ...]:
    """All checks of one method."""
    modules = ModuleState(method)
    first = trial(method, where, modules)
    predictions = (batch_size, batch_company, task_identity, earlier_predictions, backbone_passes)
    # These also look back at what the evaluations of the others have left behind.
    training = (frozen_weights, old_samples, memory)
    seen = [check(first) for check in (*predictions, *training)]
    repeats, restarts, tasks = reruns(first, where, modules)
    modules.restore()
    return (*seen, repeats, restarts, under_ceiling(first, best), tasks)
