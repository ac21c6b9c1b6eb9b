"""Logs a run to event files of TensorBoard, one folder per run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cl_bench.running.trackers.tracker import RunFacts, Status, Tracker


class TensorBoardTracker(Tracker):
    """Scalars, the settings as text, and hyper-parameters for the tab HPARAMS.

    A resumed run marks the step from which it continues, and TensorBoard drops what older files hold of later steps.
    """

    package = "tensorboard"
    _writer: Any = None
    _end: Any = None

    def start(self, facts: RunFacts) -> None:
        from torch.utils.tensorboard import SummaryWriter
        from torch.utils.tensorboard.summary import hparams

        self._writer = SummaryWriter(str(self.path(facts)), purge_step=facts.steps + 1)
        about = {**facts.settings, **facts.hyperparameters, **facts.environment}
        table = [f"| {name} | {value} |" for name, value in {"label": facts.label, "key": facts.key, **about}.items()]
        self._writer.add_text("run", "\n".join(["| setting | value |", "| --- | --- |", *table]), 0)
        shown = {"label": facts.label, **facts.settings, **facts.hyperparameters}
        kinds = (bool, int, float)
        values = {name: value if isinstance(value, kinds) else str(value) for name, value in shown.items()}
        experiment, begin, self._end = hparams(values, {"test/acc": 0.0, "test/forgetting": 0.0})
        for summary in (experiment, begin):
            self._writer.file_writer.add_summary(summary)
        self._writer.flush()

    def log(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)
        # A killed process would lose what waits to be written, and a resumed run does not log it again.
        self._writer.flush()

    def finish(self, status: Status) -> None:
        if self._writer is not None:
            if status == "finished":
                self._writer.file_writer.add_summary(self._end)
            self._writer.close()
