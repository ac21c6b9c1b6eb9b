"""Reports in spite of a run that nothing can be made of: it is named and left out, and the others are shown."""

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
    """What is made of these runs; where that fails, of all but those with which it fails.

    Records are checked when they are read, so this is for what no check foresees.

    Args:
        on_damaged: called for each run that is left out, with a sentence that names it and the reason.
        attempt: what is tried with parts of the runs, where making itself leaves something behind.

    Raises:
        UserError: as `make`.
    """
    try:
        return make(runs)
    except UserError:
        raise
    except Exception:
        usable, reasons = _usable(attempt or make, runs)
        if runs and not usable:
            # Nothing can be made of any run: the fault is not in them.
            raise
    for sentence in reasons:
        on_damaged(sentence)
    return make(usable)


def _usable(attempt: Callable[[Sequence[Run]], object], runs: Sequence[Run]) -> tuple[list[Run], list[str]]:
    """The runs without those with which the attempt fails, and a sentence for each of these."""
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
    # Whatever fails now only does so together with others, or for this report: found by halving.
    parts = [alone]
    while parts:
        part = parts.pop()
        try:
            attempt([*usable, *part])
        except UserError:
            # Too few of them, perhaps: not the fault of any.
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
    """All that reports show of a single run."""
    from cl_bench.reporting import frames, plots, result_table
    from cl_bench.reporting.runs import sections

    frames.export_frame([run])
    frames.stage_frame([run])
    (section,) = sections([run])
    result_table.text_table(result_table.build(section))
    plots.standard(section)


def sentence_about(origin: str, record: RunRecord, error: Exception) -> str:
    """A sentence for a record of which nothing can be made."""
    reason = f"{type(error).__name__}: {error}"[:200]
    return printable(f"{origin}/{record.experiment.file_stem}.json: cannot be reported ({reason})")
