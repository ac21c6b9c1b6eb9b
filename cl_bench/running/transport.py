"""What travels between this process and those that carry runs out: the runs, and what they tell."""

from __future__ import annotations

import pickle
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cl_bench.errors import UserError

if TYPE_CHECKING:
    from cl_bench.running import runner
    from cl_bench.running.plan import PlannedRun


@dataclass(frozen=True)
class Parcel:
    """A run, packed.

    Attributes:
        content: the pickled run.
        file: name and content of the user's method file, whose classes pickle only names.
    """

    content: bytes
    file: tuple[str, bytes] | None

    @classmethod
    def of(cls, run: PlannedRun) -> Parcel:
        """Pack a run.

        Raises:
            UserError: its method file has been changed or removed meanwhile.
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
        """The run.

        Raises:
            UserError: the method file does not load on this host.
        """
        from cl_bench.contract import registry

        if self.file is not None:
            name, source = self.file
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / name
                path.write_bytes(source)
                registry.load_file(path)
        run: PlannedRun = pickle.loads(self.content)
        return run


class Show:
    """What is shown of one run, however often it begins."""

    def __init__(self, run: PlannedRun, progress: runner.Progress) -> None:
        self.run, self.progress = run, progress.beside()
        self.started, self.images, self.attempt = False, 0, 0

    def tell(self, attempt: int, kind: str, *values: Any) -> None:
        if attempt < self.attempt:
            return
        if attempt > self.attempt:
            self.progress.advance(-self.images)
            self.attempt, self.images = attempt, 0
        if kind == "start":
            if not self.started:
                self.progress.start(self.run, *values)
            self.started = True
        else:
            self.images += values[0] if kind == "advance" else 0
            getattr(self.progress, kind)(*values)
