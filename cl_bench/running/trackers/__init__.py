"""Trackers: where a run logs what it measures, one module per kind (see `--log`).

A module is imported only where its tracker is used, since most need a package of their own.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

from cl_bench.errors import UserError, reason
from cl_bench.options.execution import TrackerName
from cl_bench.running.trackers.tracker import Tracker

_CLASSES: Mapping[TrackerName, tuple[str, str]] = {
    "csv": ("csv_file", "CsvTracker"),
    "tensorboard": ("tensorboard", "TensorBoardTracker"),
    "wandb": ("wandb", "WandbTracker"),
    "mlflow": ("mlflow", "MlflowTracker"),
}
"""Module and class of each tracker."""


@dataclass(frozen=True)
class LogConfig:
    """What runs log to; it can be sent to other processes and hosts.

    Attributes:
        folder: absolute path of the folder for log files; each tracker has a folder of its name in it.
        settings: settings by tracker (see `Tracker.prepare`).
    """

    folder: Path
    settings: Mapping[TrackerName, Mapping[str, str]]

    def trackers(self) -> list[Tracker]:
        """Fresh trackers for one run."""
        return [_class_of(name)(self.folder / name, settings) for name, settings in self.settings.items()]


def prepare(names: Sequence[TrackerName], folder: Path) -> LogConfig:
    """Check before any training that these trackers can log; names their settings.

    Args:
        folder: folder for log files.

    Raises:
        UserError: a package or a login is missing, or the folder cannot be written.
    """
    folder = folder.absolute()
    for name in names:
        package = _class_of(name).package
        if package and find_spec(package) is None:
            raise UserError(f"--log {name} needs {package}, which is not installed; pip install 'cl-bench[{name}]'")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".probe-"):
            pass
    except OSError as error:
        raise UserError(
            f"log folder '{folder}' cannot be written ({reason(error)}); name a writable one with --log-dir"
        ) from error
    return LogConfig(folder, {name: _class_of(name).prepare(folder / name) for name in names})


def _class_of(name: TrackerName) -> type[Tracker]:
    module, kind = _CLASSES[name]
    found: type[Tracker] = getattr(import_module(f"{__name__}.{module}"), kind)
    return found
