"""Logs a run to MLflow: to the server or file that `MLFLOW_TRACKING_URI` names, else to an SQLite file."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cl_bench.errors import UserError, reason
from cl_bench.running.trackers.tracker import RunFacts, Status, Tracker

_KEY = "cl-bench.key"
"""Tag by which a resumed run finds its run of MLflow."""
_IN_EVERY_ROW = "time/seconds"


class MlflowTracker(Tracker):
    """One run of MLflow per run; a resumed run continues it and skips the steps that MLflow has."""

    package = "mlflow"
    _client: Any = None
    _run = ""

    @classmethod
    def prepare(cls, folder: Path) -> Mapping[str, str]:
        # MLflow would send usage statistics to its makers, and tells of every table of a new database.
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        logging.getLogger("mlflow").setLevel(logging.WARNING)
        from mlflow import MlflowClient
        from mlflow.exceptions import MlflowException

        uri, name = os.environ.get("MLFLOW_TRACKING_URI", ""), os.environ.get("MLFLOW_EXPERIMENT_NAME") or "cl-bench"
        artifacts = None
        try:
            if not uri:
                folder.mkdir(parents=True, exist_ok=True)
                uri, artifacts = f"sqlite:///{folder / 'mlflow.db'}", (folder / "artifacts").as_uri()
            client = MlflowClient(tracking_uri=uri)
            experiment = client.get_experiment_by_name(name)
            number = client.create_experiment(name, artifacts) if experiment is None else experiment.experiment_id
        except (MlflowException, OSError) as error:
            raise UserError(
                f"--log mlflow cannot log to '{uri}' ({reason(error)}); mend MLFLOW_TRACKING_URI"
            ) from error
        return {"uri": uri, "experiment": str(number)}

    def start(self, facts: RunFacts) -> None:
        from mlflow import MlflowClient
        from mlflow.entities import Param

        client, experiment = MlflowClient(tracking_uri=self.settings["uri"]), self.settings["experiment"]
        found = client.search_runs(
            [experiment], f"tags.`{_KEY}` = '{facts.key}'", max_results=1, order_by=["attributes.start_time DESC"]
        )
        if found and found[0].info.status != "FINISHED":
            self._run = found[0].info.run_id
            client.update_run(self._run, status="RUNNING")
            self._last = max((metric.step for metric in client.get_metric_history(self._run, _IN_EVERY_ROW)), default=0)
        else:
            tags = {_KEY: facts.key, **{f"environment.{name}": str(value) for name, value in facts.environment.items()}}
            self._run = client.create_run(experiment, tags=tags, run_name=facts.name).info.run_id
            self._last = 0
            about = {"label": facts.label, **facts.settings, **facts.hyperparameters}
            client.log_batch(self._run, params=[Param(name, str(value)) for name, value in about.items()])
        self._client = client

    def log(self, step: int, values: Mapping[str, float]) -> None:
        from mlflow.entities import Metric

        if step > self._last:
            now = int(1000 * time.time())
            self._client.log_batch(self._run, [Metric(name, float(value), now, step) for name, value in values.items()])

    def finish(self, status: Status) -> None:
        if self._client is not None:
            ended = {"finished": "FINISHED", "failed": "FAILED", "interrupted": "KILLED"}
            self._client.set_terminated(self._run, ended[status])
