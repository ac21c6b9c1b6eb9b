"""Messages between the driver and worker processes: packed runs to the workers, progress events back."""

from __future__ import annotations

import pickle
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cl_bench.errors import UserError

if TYPE_CHECKING:
    from cl_bench.running.plan import PlannedRun
    from cl_bench.running.progress import RunProgress


@dataclass(frozen=True)
class PackedRun:
    """A run, serialised so that any process or host with cl-bench can unpack it.

    Attributes:
        pickled: the pickled run.
        method_file: name and content of the user's method file, or None; pickle stores only the names of classes.
    """

    pickled: bytes
    method_file: tuple[str, bytes] | None

    @classmethod
    def pack(cls, run: PlannedRun) -> PackedRun:
        """Pack a run.

        Raises:
            UserError: the method file has been changed or removed since it was loaded.
        """
        from cl_bench.contract import registry

        module = type(run.method).__module__
        if not module.startswith(registry.FILE_MODULE):
            return cls(pickle.dumps(run), None)
        path = Path(str(sys.modules[module].__file__))
        try:
            source = path.read_bytes()
        except OSError as error:
            raise UserError(f"method file '{path}' cannot be read again ({error.strerror})") from error
        if registry.revision_of(source) != run.experiment.revision:
            raise UserError(f"method file '{path}' has changed since it was read; start again")
        return cls(pickle.dumps(run), (path.name, source))

    def unpack(self) -> PlannedRun:
        """The unpacked run.

        Raises:
            UserError: the method file cannot be loaded on this host.
        """
        from cl_bench.contract import registry

        if self.method_file is not None:
            name, source = self.method_file
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / name
                path.write_bytes(source)
                registry.load_file(path)
        run: PlannedRun = pickle.loads(self.pickled)
        return run


class ProgressReplay:
    """Applies the progress events of one run, sent by all its attempts, to its progress view."""

    def __init__(self, run: PlannedRun, progress: RunProgress) -> None:
        self.run, self.progress = run, progress.for_concurrent_run()
        self.started, self.images, self.retry = False, 0, 0

    def apply(self, retry: int, event: str, *values: Any) -> None:
        """Apply an event; the first event of a retry takes back the image count of the failed attempt.

        Args:
            retry: number of failed attempts before the one that sent the event; events of older attempts are dropped.
            event: name of a method of `RunProgress`.
            values: arguments of that method, except the run in `start`.
        """
        if retry < self.retry:
            return
        if retry > self.retry:
            if self.started:
                self.progress.advance(-self.images)
            self.retry, self.images = retry, 0
        if event == "start":
            if not self.started:
                self.progress.start(self.run, *values)
            self.started = True
        else:
            self.images += values[0] if event == "advance" else 0
            getattr(self.progress, event)(*values)
