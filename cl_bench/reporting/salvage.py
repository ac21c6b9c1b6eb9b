"""Reports without the runs that make them fail: these runs are named and left out, the others are shown."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from cl_bench.errors import UserError, printable
from cl_bench.reporting.runs import Run
from cl_bench.store import RunRecord

Made = TypeVar("Made")


def without_failing_runs(
    make: Callable[[Sequence[Run]], Made],
    runs: Sequence[Run],
    on_damaged: Callable[[str], None],
    attempt: Callable[[Sequence[Run]], object] | None = None,
) -> Made:
    """Return `make(runs)`; if that fails, `make` of the runs that do not make it fail.

    Records are validated when they are read; this covers faults that no validation foresees.

    Args:
        on_damaged: called for each run that is left out, with a sentence that names the run and the reason.
        attempt: called with parts of the runs to find the failing ones, in place of a `make` with side effects.

    Raises:
        UserError: raised by `make`.
        Exception: `make` fails with every single run, so the fault is not in the runs.
    """
    try:
        return make(runs)
    except UserError:
        raise
    except Exception:
        usable, reasons = _usable(attempt or make, runs)
        if runs and not usable:
            # Every run fails: the fault is not in the runs.
            raise
    for sentence in reasons:
        on_damaged(sentence)
    return make(usable)


def _usable(attempt: Callable[[Sequence[Run]], object], runs: Sequence[Run]) -> tuple[list[Run], list[str]]:
    """The runs with which the attempt succeeds together, and a sentence for each of the others."""
    alone: list[Run] = []
    usable: list[Run] = []
    reasons: list[str] = []
    for run in runs:
        try:
            _derive(run)
        except Exception as error:
            reasons.append(sentence_about(run.origin, run.record, error))
        else:
            alone.append(run)
    # These runs pass alone; those that fail with others, or in this report only, are found by bisection.
    parts = [alone]
    while parts:
        part = parts.pop()
        try:
            attempt([*usable, *part])
        except UserError:
            # E.g. too few runs: no single run is at fault.
            usable += part
        except Exception as error:
            if len(part) > 1:
                half = len(part) // 2
                parts += [part[half:], part[:half]]
            elif part:
                reasons.append(sentence_about(part[0].origin, part[0].record, error))
        else:
            usable += part
    return usable, reasons


def _derive(run: Run) -> None:
    """Compute everything that reports show of a single run."""
    from cl_bench.reporting import frames, plots, result_table
    from cl_bench.reporting.runs import sections

    frames.export_frame([run])
    frames.stage_frame([run])
    (section,) = sections([run])
    result_table.text_table(result_table.build(section))
    plots.standard(section)


def sentence_about(origin: str, record: RunRecord, error: Exception) -> str:
    """A sentence that names a record and the error that it causes in reports."""
    reason = f"{type(error).__name__}: {error}"[:200]
    return printable(f"{origin}/{record.experiment.file_stem}.json: cannot be reported ({reason})")
