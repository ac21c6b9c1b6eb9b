"""What the stored reference results say, in numbers as prose gives them: rounded, with half-widths of intervals."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cl_bench import metrics, stats
from cl_bench.reporting import comparison
from cl_bench.reporting.runs import Section
from cl_bench.store.record import RunRecord
from tools import update_tables

Values = NDArray[np.float64]


@dataclass(frozen=True)
class Number:
    """Values of the runs of a row, by seed, or their differences from those of another row, of the same orders."""

    values: Values

    def __sub__(self, other: Number) -> Number:
        return Number(self.values - other.values)

    def __format__(self, spec: str) -> str:
        """Mean and half-width (`.1f±`, signed `+.1f±`), or the mean alone; minus is typed as on a keyboard."""
        summary = stats.summarise(self.values)
        if not spec.endswith("±"):
            return format(summary.mean, spec)
        spec = spec.removesuffix("±")
        assert summary.half_width is not None
        return f"{format(summary.mean, spec)} ± {format(summary.half_width, spec.removeprefix('+'))}"


@dataclass(frozen=True)
class Stream:
    """The rows of a benchmark in so many tasks on one backbone, each with a run per seed."""

    section: Section

    def runs(self, row: str) -> list[RunRecord]:
        """By seed."""
        return sorted((run.record for run in self.section.rows[row]), key=lambda run: run.experiment.seed)

    def of(self, row: str, value: Callable[[RunRecord], float]) -> Number:
        """A value of each run."""
        return Number(np.array([value(run) for run in self.runs(row)]))

    def metric(self, row: str, name: str = "acc") -> Number:
        """A metric, in percent."""
        return self.of(row, lambda run: 100 * metrics.value(name, run.correct, run.total))

    def task_aware(self, row: str) -> Number:
        """Final accuracy in percent where each image comes with its task."""
        return self.of(row, lambda run: 100 * sum(run.correct_task_aware[-1]) / sum(run.total))

    def gap(self, row: str, other: str) -> Number:
        """Final accuracy of one row minus that of another, in points."""
        return self.metric(row) - self.metric(other)

    def holm(self, row: str, other: str, among: Sequence[str] = ()) -> float:
        """The p-value of that, corrected for all rows of the table, or for some."""
        compared = comparison.against(self.section, other, among)
        (found,) = [pair.holm for pair in compared if pair.row == row]
        assert found is not None
        return found

    def equivalent(self, row: str, other: str) -> bool:
        """Whether they are, within a point, at the 5 % level."""
        found = stats.equivalence(self.metric(row).values, self.metric(other).values, 1)
        return found is not None and found.p < 0.05

    def traces(self, row: str, name: str) -> list[Any]:
        """What each run traced under a name."""
        return [run.traces[name] for run in self.runs(row)]

    def magnitudes(self, row: str = "sdlora") -> Values:
        """[runs, stages, directions]; NaN for directions that were still to come."""
        tasks = self.section.protocol.num_tasks
        found = np.full((len(self.runs(row)), tasks, tasks), np.nan)
        for run, trace in enumerate(self.traces(row, "magnitudes")):
            for each in trace:
                found[run, each["stage"], each["direction"]] = each["value"]
        return found

    def residuals(self, row: str = "sdlora-kd") -> list[Values]:
        """Of each run, the relative residual of each direction after the first."""
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
    """The stream in full, on the backbone whose name ends like this, or on the one with most rows."""
    found = [
        section
        for section in sections
        if (section.protocol.benchmark, section.protocol.num_tasks) == (benchmark, tasks)
        and section.protocol.backbone.endswith(backbone)
        and not section.protocol.limits_text()
    ]
    return Stream(max(found, key=lambda section: len(section.rows)))


def load() -> list[Section]:
    """All of `results/reference`."""
    return update_tables.load(update_tables.REFERENCE)
