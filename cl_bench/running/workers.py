"""Worker processes of this host for concurrent runs: one that dies is replaced, and all of them end with their parent.

Each has a pipe of its own, and gets one task at a time. In the pools of the standard library, of loky and of Pebble,
workers share queues behind locks, which a killed worker may hold for ever; the first two give up all tasks when one
worker dies, and none of them ends workers in the middle of a task when their parent is killed.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import pickle
import signal
import sys
import threading
from contextlib import suppress
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
"""Of Linux's prctl: the signal that a process gets when its parent has died."""


class _Worker(SpawnProcess):
    """A fresh process that does not execute the user's script once more: it needs no `if __name__ == "__main__"`."""

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
    """What a worker says.

    Attributes:
        kind: `ready` for a task; `event` of its task; then `result`, or `error`; `unusable`: it cannot work at all.
        content: values of an event, the result, the exception, or a reason as text.
        exhausted: too little memory is the reason, which is then a text.
    """

    kind: Literal["ready", "event", "result", "error", "unusable"]
    content: Any = None
    exhausted: bool = False


class Worker:
    """A worker process, seen from its parent.

    Args:
        index: its place in the pool, which the one that replaces it takes.
        threads: its torch threads.
    """

    def __init__(self, index: int, threads: int) -> None:
        self.index = index
        self.ready = False
        self.pipe, theirs = CONTEXT.Pipe()
        self.process = CONTEXT.Process(target=_work, args=(theirs, index, threads))
        try:
            with theirs:
                _start_without_interrupts(self.process)
        except OSError:
            self.pipe.close()
            raise

    def give(self, retry: int, call: bytes) -> None:
        """Give it a task: how often that has been tried before, and the pickled function and arguments."""
        # If it has just died, that is seen soon.
        with suppress(OSError):
            self.pipe.send((retry, call))

    def hear(self) -> tuple[list[Message], bool]:
        """What it has said since the last call, and whether it is alive."""
        # Asked for first: what it said before it died is in the pipe.
        alive = self.process.is_alive()
        heard: list[Message] = []
        try:
            while self.pipe.poll():
                heard.append(self.pipe.recv())
        except (EOFError, OSError):
            alive = False
        return heard, alive

    def wait(self, seconds: float) -> int:
        """Wait until it has ended, and kill it if it has not by then; its exit code, that of a signal below 0."""
        self.process.join(max(0.0, seconds))
        if self.process.exitcode is None:
            self.process.kill()
            self.process.join()
        self.pipe.close()
        code = self.process.exitcode
        assert code is not None
        return code if code <= 128 else 128 - code

    def retire(self) -> None:
        """Let it end as soon as it has no task."""
        self.pipe.close()

    def terminate(self) -> None:
        """Ask it to end, whatever it does."""
        self.process.terminate()


def _start_without_interrupts(process: BaseProcess) -> None:
    """Start a process on which Ctrl-C and SIGHUP have no effect from its beginning: they are the parent's business."""
    # Otherwise started with the process, and then it would let signals through again.
    resource_tracker.ensure_running()
    if not hasattr(signal, "pthread_sigmask"):
        process.start()
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGHUP})
    try:
        process.start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@dataclass(frozen=True)
class _Place:
    """Where a worker process works.

    Attributes:
        index: in its pool.
        retry: how often its task has been tried before.
    """

    pipe: Connection
    index: int
    retry: int = 0


_place: _Place | None = None
"""Of this process, if it is a worker."""


def send_event(*values: Any) -> None:
    """Tell the parent of the task of this worker (see `WorkerPool.submit`)."""
    assert _place is not None
    _place.pipe.send(Message("event", values))


def current_retry() -> int:
    """How often the task of this worker has been tried before."""
    assert _place is not None
    return _place.retry


def pick_worker_gpu(device: torch.device) -> torch.device:
    """The device of this worker: `cuda` without an index is spread over all GPUs, others stay as they are."""
    import torch

    if _place is None or device.type != "cuda" or device.index is not None:
        return device
    return torch.device("cuda", _place.index % torch.cuda.device_count())


def _work(pipe: Connection, index: int, threads: int) -> None:
    """What a worker process does."""
    global _place
    _ignore_interrupts()
    _end_with_parent()
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
        _place = _Place(pipe, index, tried)
        pipe.send(_carry_out(call))


def _carry_out(call: bytes) -> Message:
    try:
        # Unpickling imports the function's module, for which there may be too little memory as well.
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
    """An error in one line."""
    return f"{type(error).__name__}: {first_line(error)}"


def _ignore_interrupts() -> None:
    def terminate(number: int, frame: Any) -> NoReturn:
        # As an exception, so that what is being written is whole or gone.
        raise SystemExit(128 + number)

    signal.signal(signal.SIGTERM, terminate)
    ignored = {getattr(signal, name) for name in ("SIGINT", "SIGHUP") if hasattr(signal, name)}
    for number in ignored:
        signal.signal(number, signal.SIG_IGN)
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, ignored)


def _end_with_parent() -> None:
    """Kill this process when its parent has died, whatever it does then."""
    parent = multiprocessing.parent_process()
    assert parent is not None and parent.pid is not None
    if sys.platform == "linux":
        # Also where code that never lets go of the interpreter keeps the thread below from its work.
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)

    def watch() -> None:
        # Children of the parent may hold the other end of what is waited for.
        while os.getppid() == parent.pid and not wait([parent.sentinel], timeout=1):
            pass
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
