"""Numbers of the stored reference results in the form in which the docs quote them: rounded, with half-widths."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cl_bench import metrics, stats
from cl_bench.reporting import comparison
from cl_bench.reporting.confusions import RowErrors, read
from cl_bench.reporting.confusions.predicted import KINDS
from cl_bench.reporting.runs import Section
from cl_bench.store.record import RunRecord
from tools import update_tables

Values = NDArray[np.float64]


@dataclass(frozen=True)
class Number:
    """Values of the runs of a row, sorted by seed, or their differences from those of another row."""

    values: Values

    def __sub__(self, other: Number) -> Number:
        return Number(self.values - other.values)

    def __format__(self, spec: str) -> str:
        """Format mean and half-width (`.1f±`, signed `+.1f±`), or the mean alone; minus is an ASCII hyphen."""
        summary = stats.summarise(self.values)
        if not spec.endswith("±"):
            return format(summary.mean, spec)
        spec = spec.removesuffix("±")
        assert summary.half_width is not None
        return f"{format(summary.mean, spec)} ± {format(summary.half_width, spec.removeprefix('+'))}"


@dataclass(frozen=True)
class Stream:
    """The rows of a benchmark with a number of tasks on one backbone, each with a run per seed."""

    section: Section

    def runs(self, row: str) -> list[RunRecord]:
        """Records of a row, sorted by seed."""
        return sorted((run.record for run in self.section.rows[row]), key=lambda run: run.experiment.seed)

    def of(self, row: str, value: Callable[[RunRecord], float]) -> Number:
        """A value computed from each run of a row."""
        return Number(np.array([value(run) for run in self.runs(row)]))

    def metric(self, row: str, name: str = "acc") -> Number:
        """A metric in percent."""
        return self.of(row, lambda run: 100 * metrics.value(name, run.correct, run.total))

    def task_aware(self, row: str) -> Number:
        """Final accuracy in percent if the task of each image is known."""
        return self.of(row, lambda run: 100 * sum(run.correct_task_aware[-1]) / sum(run.total))

    def gap(self, row: str, other: str) -> Number:
        """Final accuracy of one row minus that of another, in points."""
        return self.metric(row) - self.metric(other)

    def errors(self, row: str) -> RowErrors:
        """The counted predictions of a row, its runs sorted by seed."""
        runs = sorted(self.section.rows[row], key=lambda run: run.record.experiment.seed)
        return RowErrors(row, tuple(read(run, [update_tables.REFERENCE]) for run in runs))

    def share(self, row: str, kind: str) -> Number:
        """Percent of all test images after the last task whose prediction is of a kind of `KINDS`."""
        return Number(self.errors(row).shares()[:, -1, KINDS.index(kind)])

    def holm(self, row: str, other: str, among: Sequence[str] = ()) -> float:
        """p-value of `gap`, corrected for the comparisons of all rows, or of `among`, with `other`."""
        compared = comparison.against(self.section, other, among)
        (found,) = [pair.holm for pair in compared if pair.row == row]
        assert found is not None
        return found

    def equivalent(self, row: str, other: str) -> bool:
        """Whether two rows are equivalent within one point at the 5 % level."""
        found = stats.equivalence(self.metric(row).values, self.metric(other).values, 1)
        return found is not None and found.p < 0.05

    def traces(self, row: str, name: str) -> list[Any]:
        """The trace with a name, of each run."""
        return [run.traces[name] for run in self.runs(row)]

    def magnitudes(self, row: str = "sdlora") -> Values:
        """Magnitudes [runs, stages, directions]; NaN for directions that do not exist yet."""
        tasks = self.section.protocol.num_tasks
        found = np.full((len(self.runs(row)), tasks, tasks), np.nan)
        for run, trace in enumerate(self.traces(row, "magnitudes")):
            for each in trace:
                found[run, each["stage"], each["direction"]] = each["value"]
        return found

    def residuals(self, row: str = "sdlora-kd") -> list[Values]:
        """Relative residuals of all directions but the first, per run."""
        return [np.array([each["relative_residual"] for each in trace[1:]]) for trace in self.traces(row, "directions")]

    def distances(self) -> tuple[float, float]:
        """Mean over pairs of task optima: ||W_i - W_j|| / ||W_i - W_0||, and / ||W_0||."""
        ways, weights = [], []
        for trace in self.traces("optima", "optima"):
            norms = {each["task"]: each["norm"] for each in trace}
            for each in trace:
                if each["stage"] != each["task"]:
                    ways += [each["distance"] / norms[task] for task in (each["stage"], each["task"])]
                    weights.append(each["distance"] / each["pretrained"])
        return float(np.mean(ways)), float(np.mean(weights))


def stream(sections: Sequence[Section], benchmark: str, tasks: int, backbone: str = "") -> Stream:
    """A stream without limits, on the backbone whose name ends with `backbone`; of several the one with most rows."""
    found = [
        section
        for section in sections
        if (section.protocol.benchmark, section.protocol.num_tasks) == (benchmark, tasks)
        and section.protocol.backbone.endswith(backbone)
        and not section.protocol.limits_text()
    ]
    return Stream(max(found, key=lambda section: len(section.rows)))


def load() -> list[Section]:
    """All runs in `results/reference`, by protocol."""
    return update_tables.load(update_tables.REFERENCE)
