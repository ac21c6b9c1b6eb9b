"""What runs have logged, read as the tools themselves read it: one row per step, one column per name."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd

MEASURED_ANEW = ("time/", "memory/")
"""What differs from process to process."""


def read(folder: Path) -> dict[str, pd.DataFrame]:
    """The CSV logs in a folder for logs, by key of the run."""
    paths = (folder / "csv").glob("*.csv")
    # Older pandas may otherwise change the last bit; newer ones warn of the option.
    exactly: dict[str, Any] = {"float_precision": "round_trip"} if int(pd.__version__.partition(".")[0]) < 3 else {}
    return {path.stem.rpartition("-")[2]: pd.read_csv(path, index_col="step", **exactly) for path in paths}


def repeatable(logged: pd.DataFrame) -> pd.DataFrame:
    """The columns that do not depend on when and where they were measured."""
    return logged[[name for name in logged if not str(name).startswith(MEASURED_ANEW)]]


def _frame(points: Iterable[tuple[str, int, float]]) -> pd.DataFrame:
    """A table of (name, step, value); fails if anything was logged twice."""
    long = pd.DataFrame(points, columns=["name", "step", "value"])
    assert not long.duplicated(["name", "step"]).any()
    return long.pivot(index="step", columns="name", values="value")


def tensorboard(folder: Path) -> pd.DataFrame:
    """The only run in a folder of TensorBoard."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (run,) = folder.iterdir()
    events = EventAccumulator(str(run), size_guidance={"scalars": 0}).Reload()
    return _frame((tag, e.step, e.value) for tag in events.Tags()["scalars"] for e in events.Scalars(tag))


def wandb(folder: Path) -> pd.DataFrame:
    """The runs of W&B in a folder, offline, as one: a server joins runs of one id."""
    points = []
    for path in sorted(folder.glob("offline-run-*/*.wandb")):
        for record in _records(path.read_bytes()):
            row = {item.key or "/".join(item.nested_key): item.value_json for item in record.history.item}
            points += [(k, record.history.step.num, json.loads(v)) for k, v in row.items() if not k.startswith("_")]
    return _frame(points)


def _records(content: bytes) -> Iterator[Any]:
    """The records of a file of W&B, whose format is that of LevelDB's log after a header of seven bytes."""
    from wandb.proto.wandb_internal_pb2 import Record

    place, begun, block, head = 7, b"", 32768, 7
    while place + head <= len(content):
        if block - place % block < head:
            place += block - place % block
            continue
        _, size, kind = struct.unpack("<IHB", content[place : place + head])
        begun += content[place + head : place + head + size]
        place += head + size
        # 1: a whole record, 4: the last part of one.
        if kind in (1, 4):
            yield Record.FromString(begun)
            begun = b""


def mlflow(folder: Path) -> pd.DataFrame:
    """The only run in MLflow's database in a folder."""
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=f"sqlite:///{folder / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("cl-bench")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FINISHED"
    history = [metric for name in run.data.metrics for metric in client.get_metric_history(run.info.run_id, name)]
    return _frame((metric.key, metric.step, metric.value) for metric in history)
