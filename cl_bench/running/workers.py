"""Worker processes of this host for concurrent runs. All of them end with their parent.

Each worker has its own pipe and gets one task at a time. The existing pools do not fit: in those of the standard
library, loky and Pebble, workers share queues behind locks, which a killed worker may hold for ever; the first two give
up all tasks when one worker dies, and none ends a busy worker when its parent is killed.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import pickle
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnContext, SpawnProcess
from multiprocessing.process import BaseProcess
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal, NoReturn

from cl_bench.errors import first_line
from cl_bench.running import memory
from cl_bench.running.imports import quiet_imports

if TYPE_CHECKING:
    import torch

_PR_SET_PDEATHSIG = 1
"""Option of Linux's prctl: the signal that a process gets when its parent dies."""


class _Worker(SpawnProcess):
    """A fresh process that does not execute the user's script again, so the script needs no `__name__` guard."""

    @staticmethod
    def _Popen(process_obj: BaseProcess) -> Any:
        script = sys.modules["__main__"]
        sys.modules["__main__"] = ModuleType("__main__")
        try:
            return SpawnProcess._Popen(process_obj)
        finally:
            sys.modules["__main__"] = script


class _Context(SpawnContext):
    Process = _Worker


CONTEXT = _Context()
"""Fresh processes: a fork would copy threads of torch that hold locks."""


@dataclass(frozen=True)
class Message:
    """A message from a worker to its parent.

    Attributes:
        kind: `ready`: the worker accepts a task; `event`, `result`, `error`: of its task; `unusable`: it cannot work.
        content: the values of an event, the result, the exception, or a reason as text.
        exhausted: whether memory ran out; `content` is then a text.
    """

    kind: Literal["ready", "event", "result", "error", "unusable"]
    content: Any = None
    exhausted: bool = False


class Worker:
    """A worker process, seen from its parent.

    Args:
        index: its index in the pool, which its replacement inherits.
        threads: number of torch threads.
    """

    def __init__(self, index: int, threads: int) -> None:
        self.index = index
        self.ready = False
        self.pipe, theirs = CONTEXT.Pipe()
        self.process = CONTEXT.Process(target=_work, args=(theirs, index, threads))
        try:
            with theirs, interrupts_blocked():
                self.process.start()
        except OSError:
            self.pipe.close()
            raise

    def give(self, retry: int, call: bytes) -> None:
        """Send the worker a task: the number of earlier attempts, and the pickled function and arguments."""
        # If the worker has just died, `hear` will say so.
        with suppress(OSError):
            self.pipe.send((retry, call))

    def hear(self) -> tuple[list[Message], bool]:
        """The messages of the worker since the last call, and whether it is alive."""
        # Checked first, so that its last messages are in the pipe if it has died.
        alive = self.process.is_alive()
        heard: list[Message] = []
        try:
            while self.pipe.poll():
                heard.append(self.pipe.recv())
        except (EOFError, OSError):
            alive = False
        return heard, alive

    def wait(self, seconds: float) -> int:
        """Wait for the worker to end, and kill it after this time.

        Returns:
            The exit code; minus the number of the signal, if one ended it.
        """
        self.process.join(max(0.0, seconds))
        if self.process.exitcode is None:
            self.process.kill()
            self.process.join()
        self.pipe.close()
        code = self.process.exitcode
        assert code is not None
        return code if code <= 128 else 128 - code

    def retire(self) -> None:
        """Let the worker end as soon as it has no task."""
        self.pipe.close()

    def terminate(self) -> None:
        """Request the worker to end, even in the middle of a task."""
        self.process.terminate()


@contextmanager
def interrupts_blocked() -> Iterator[None]:
    """Processes started in this block ignore Ctrl-C and SIGHUP from their beginning, since their parent handles them.

    They have to call `become_helper`.
    """
    # If the tracker started together with a process, it would unblock the signals.
    resource_tracker.ensure_running()
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGHUP})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def become_helper() -> None:
    """Make this process end with its parent and ignore Ctrl-C and SIGHUP; SIGTERM raises `SystemExit` in its task."""
    _ignore_interrupts()
    _end_with_parent()


@dataclass(frozen=True)
class _WorkerState:
    """The state of this process as a worker.

    Attributes:
        pipe: connection to the parent.
        index: index in the pool.
        retry: number of earlier attempts of its task.
    """

    pipe: Connection
    index: int
    retry: int = 0


_state: _WorkerState | None = None
"""Set if this process is a worker."""


def send_event(*values: Any) -> None:
    """Send an event of this worker's task to the parent (see `WorkerPool.submit`)."""
    assert _state is not None
    _state.pipe.send(Message("event", values))


def current_retry() -> int:
    """Number of earlier attempts of this worker's task."""
    assert _state is not None
    return _state.retry


def pick_worker_gpu(device: torch.device) -> torch.device:
    """The device of this worker: workers share all GPUs for `cuda` without an index; other devices are unchanged."""
    import torch

    if _state is None or device.type != "cuda" or device.index is not None:
        return device
    return torch.device("cuda", _state.index % torch.cuda.device_count())


def _work(pipe: Connection, index: int, threads: int) -> None:
    """Entry point of a worker process: carry out tasks until the parent closes the pipe."""
    global _state
    become_helper()
    try:
        with quiet_imports():
            import torch

        torch.set_num_threads(threads)
    except Exception as error:
        pipe.send(Message("unusable", describe(error), memory.is_exhausted(error)))
        return
    pipe.send(Message("ready"))
    while True:
        try:
            tried, call = pipe.recv()
        except EOFError:
            return
        _state = _WorkerState(pipe, index, tried)
        pipe.send(_carry_out(call))


def _carry_out(call: bytes) -> Message:
    try:
        # Unpickling imports the function's module, which may also run out of memory.
        with quiet_imports():
            function, arguments = pickle.loads(call)
        return Message("result", function(*arguments))
    except Exception as error:
        if memory.is_exhausted(error):
            return Message("error", memory.describe(error), exhausted=True)
        try:
            pickle.loads(pickle.dumps(error))
        except Exception:
            return Message("error", RuntimeError(describe(error)))
        return Message("error", error)


def describe(error: Exception) -> str:
    """Type and first line of an error."""
    return f"{type(error).__name__}: {first_line(error)}"


def _ignore_interrupts() -> None:
    def terminate(number: int, frame: Any) -> NoReturn:
        # An exception, so that a file that is being written is completed or removed.
        raise SystemExit(128 + number)

    signal.signal(signal.SIGTERM, terminate)
    ignored = {getattr(signal, name) for name in ("SIGINT", "SIGHUP") if hasattr(signal, name)}
    for number in ignored:
        signal.signal(number, signal.SIG_IGN)
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, ignored)


def _end_with_parent() -> None:
    """Make this process end when its parent dies, whatever it is doing."""
    parent = multiprocessing.parent_process()
    assert parent is not None and parent.pid is not None
    if sys.platform == "linux":
        # Works even if code that never releases the interpreter blocks the thread below.
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)

    def watch() -> None:
        # With a timeout: other children of the parent may keep the sentinel open.
        while os.getppid() == parent.pid and not wait([parent.sentinel], timeout=1):
            pass
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
