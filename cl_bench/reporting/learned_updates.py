"""The chart of which rows forget least, beside how each task changed the weights, from the trace `updates`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from math import isfinite

import numpy as np
import pandas as pd

from cl_bench import metrics
from cl_bench.reporting import emphasis
from cl_bench.reporting.charts import Chart, Dots
from cl_bench.reporting.emphasis import Emphasis
from cl_bench.reporting.runs import Run
from cl_bench.reporting.traces import Measured, measurements
from cl_bench.stats import Summary, summarise

_TABLE = "updates"
_FEWEST = 5
"""Rows from which on a rank correlation over them is given."""


def _traced(run: Run, column: str) -> float:
    return measurements(run, _TABLE).get(Measured(_TABLE, column), float("nan"))


def _forgetting(run: Run) -> float:
    return 100 * metrics.forgetting(run.record.correct, run.record.total)


def _task_aware_forgetting(run: Run) -> float:
    """Forgetting where only the classes of an image's task compete, from the stage on that learned the task."""
    pairs = zip(run.record.correct, run.record.correct_task_aware, strict=True)
    seen = [[None if own is None else hits for own, hits in zip(*rows, strict=True)] for rows in pairs]
    return 100 * metrics.forgetting(seen, run.record.total)


def _overlap(run: Run) -> float:
    return _traced(run, "input_overlap")


_SHOWN: tuple[tuple[str, str, Callable[[Run], float], bool], ...] = (
    ("forgetting", "points", _forgetting, False),
    ("forgetting, task known", "points", _task_aware_forgetting, False),
    ("final accuracy", "%", lambda run: 100 * run.acc, False),
    ("overlap of changes", "0 to 1", _overlap, False),
    ("size of a change", "norm", lambda run: _traced(run, "change"), True),
    ("rank of a change", "effective rank", lambda run: _traced(run, "change_rank"), False),
)
"""The panels: title, unit, value of a run (not a number where it is undefined), and whether it spans magnitudes."""


def chart(
    rows: Mapping[str, Sequence[Run]], choose: Callable[[Iterable[str]], Emphasis], *, ordered: bool = False
) -> Chart | None:
    """Draw the rows with the trace `updates`, the least forgetting first; None if no row has it and two tasks.

    Args:
        choose: chooses the rows in colour among those shown.
        ordered: whether the user chose the rows, whose order is then kept.
    """
    traced = {label: found for label, runs in rows.items() if (found := [run for run in runs if _has(run)])}
    shown_values = {label: [_summary(runs, value) for _, _, value, _ in _SHOWN] for label, runs in traced.items()}
    forgotten = {label: first.mean for label, (first, *_) in shown_values.items() if first is not None}
    if not forgotten:
        return None
    shown = list(forgotten) if ordered else sorted(forgotten, key=lambda label: (forgotten[label], label))
    panels = tuple(
        Dots(title, unit, tuple((label, shown_values[label][number]) for label in shown), log)
        for number, (title, unit, _, log) in enumerate(_SHOWN)
    )
    chosen = choose(shown)
    caption = (
        f"Rows that trace what each task changes in the weights{'' if ordered else ', the least forgetting first'}. "
        "Forgetting: best minus last accuracy, averaged over all tasks but the last; where the task of each image is "
        "known, only its classes compete. A change is what a task adds to the low-rank update of the weights, "
        "averaged over tasks and projections: its overlap with the update before it (cosine between the inputs to "
        "which they react: 0 for orthogonal ones), its Frobenius norm over all blocks, and its effective rank."
    )
    text = (
        f"{caption}{_correlation(shown, traced)} Means over runs; bars are 95 % Student-t intervals of the mean."
        f"{emphasis.sentence(chosen, shown, {})}"
    )
    return Chart(_TABLE, "Which row forgets least", text, panels, highlight=chosen.labels)


def _has(run: Run) -> bool:
    return bool(run.sequential and run.record.traces.get(_TABLE))


def _summary(runs: Sequence[Run], value: Callable[[Run], float]) -> Summary | None:
    """Summary over the runs in which a value is defined; None if there is none."""
    values = [number for run in runs if isfinite(number := value(run))]
    return summarise(values) if values else None


def _correlation(shown: Sequence[str], rows: Mapping[str, Sequence[Run]]) -> str:
    """Spearman's rank correlation of overlap and forgetting over rows, as a sentence after a space; or nothing."""
    pairs = [(_summary(rows[label], _overlap), _summary(rows[label], _forgetting)) for label in shown]
    known = pd.DataFrame([(a.mean, b.mean) for a, b in pairs if a is not None and b is not None]).rank()
    if len(known) < _FEWEST or not known.std().all():
        return ""
    value = f"{np.corrcoef(known[0], known[1])[0, 1]:.2f}".replace("-", "−")
    return f" Over the {len(known)} rows with an overlap, its rank correlation with forgetting (Spearman) is {value}."
