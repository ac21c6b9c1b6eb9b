"""A pool of worker processes that survives the death of a worker and the exhaustion of memory."""

from __future__ import annotations

import pickle
import signal
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import CancelledError, Future
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from types import TracebackType
from typing import Any

from cl_bench.running import memory
from cl_bench.running.workers import CONTEXT, Message, Worker

GRACE = 5
"""Seconds that a worker has to end after a request, before it is killed."""
MAX_RETRIES = 5
"""Maximum number of retries of a run whose worker or host has died; each continues from the last checkpoint."""


class TaskFailed(Exception):
    """A task was given up: its workers died, or memory was too small. The message says why."""


@dataclass(eq=False)
class _Task:
    """A submitted task whose future is not done yet.

    Attributes:
        name: name for messages to the user.
        call: pickled function and arguments.
        on_report: called with each event of the task.
        retry: number of earlier attempts.
        deaths: number of its workers that died for another reason than lack of memory.
        concurrent: maximum number of tasks, this one included, that ran at once during the current attempt.
    """

    name: str
    call: bytes
    on_report: Callable[..., None]
    future: Future[Any]
    retry: int = 0
    deaths: int = 0
    concurrent: int = 0


class WorkerPool:
    """Worker processes, each of which carries out one task at a time.

    A task whose worker dies is retried in a new worker, up to `MAX_RETRIES` times. If memory runs out, the number of
    concurrent tasks is halved from then on; a task that lacks memory even as the only one is given up. Other workers
    continue undisturbed.

    The `with` block waits at its end for all tasks; an exception in it, Ctrl-C included, terminates the workers.

    Args:
        jobs: maximum number of worker processes.
        threads: torch threads of each worker.
        on_warning: called from another thread with a sentence that says what has died and what follows.
    """

    def __init__(self, jobs: int, threads: int, on_warning: Callable[[str], None]) -> None:
        self.limit, self.threads, self.on_warning = jobs, threads, on_warning
        self._waiting: deque[_Task] = deque()
        self._workers: dict[int, Worker] = {}
        """Workers by index."""
        self._tasks: dict[Worker, _Task] = {}
        """The task of each busy worker."""
        self._retired: list[Worker] = []
        self._failed_starts = 0
        self._kills = memory.count_kills()
        self._woken, self._wake = CONTEXT.Pipe(duplex=False)
        self._closed = self._terminated = False
        # A thread of its own: signals only interrupt the main thread, so that nothing here stops halfway. It starts the
        # workers itself, since Linux kills them when the thread that started them ends.
        self._thread = threading.Thread(target=self._serve, daemon=True)

    def __enter__(self) -> WorkerPool:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._terminated = error is not None
        self._closed = True
        with suppress(OSError):
            self._wake.send(None)
        self._thread.join()

    def submit(
        self, function: Callable[..., Any], *arguments: Any, name: str, on_report: Callable[..., None] = lambda *_: None
    ) -> Future[Any]:
        """Call a function in a worker process; function, arguments and result must be picklable.

        Args:
            name: name of the task for messages to the user.
            on_report: called from another thread for each event of the task, with the number of earlier attempts and
                the values of the event (see `workers.send_event`).

        Returns:
            Future with the result or the exception of the function, or `TaskFailed` if the task was given up.
        """
        task = _Task(name, pickle.dumps((function, arguments)), on_report, Future())
        self._waiting.append(task)
        self._wake.send(None)
        return task.future

    def _serve(self) -> None:
        try:
            while not self._terminated and not (self._closed and not self._waiting and not self._tasks):
                self._retired = [worker for worker in self._retired if worker.process.is_alive()]
                self._start_workers()
                self._hand_out()
                self._listen()
            if not self._terminated:
                for worker in self._workers.values():
                    worker.retire()
        except Exception as error:
            self._terminated = True
            self._give_up(error)
        finally:
            if self._terminated:
                for worker in self._workers.values():
                    worker.terminate()
                self._give_up(CancelledError())
            until = time.monotonic() + GRACE
            for worker in [*self._workers.values(), *self._retired]:
                worker.wait(until - time.monotonic())
            self._woken.close()
            self._wake.close()

    def _start_workers(self) -> None:
        """Start workers until there is one for each task, up to the limit."""
        wanted = min(self.limit, len(self._tasks) + len(self._waiting))
        for index in range(self.limit):
            if len(self._workers) >= wanted:
                return
            if index in self._workers:
                continue
            try:
                self._workers[index] = Worker(index, self.threads)
            except OSError as error:
                self._fail_start(str(error), memory.is_exhausted(error))
                return

    def _hand_out(self) -> None:
        """Give waiting tasks to ready workers, and retire idle workers beyond the limit."""
        for worker in [each for each in self._workers.values() if each.ready and each not in self._tasks]:
            if self._waiting and len(self._tasks) < self.limit:
                task = self._waiting.popleft()
                self._tasks[worker] = task
                for each in self._tasks.values():
                    each.concurrent = max(each.concurrent, len(self._tasks))
                worker.give(task.retry, task.call)
            elif len(self._workers) > self.limit:
                self._retire(worker)

    def _retire(self, worker: Worker) -> None:
        del self._workers[worker.index]
        worker.retire()
        self._retired.append(worker)

    def _listen(self) -> None:
        """Wait for messages, deaths and new tasks, and handle them."""
        sources: list[Connection | int] = [self._woken]
        for worker in self._workers.values():
            sources += [worker.pipe, worker.process.sentinel]
        # With a timeout: children of a dead worker may keep its pipe and sentinel open.
        wait(sources, timeout=1)
        while self._woken.poll():
            self._woken.recv()
        for worker in list(self._workers.values()):
            messages, alive = worker.hear()
            for message in messages:
                self._take(worker, message)
            if not alive and self._workers.get(worker.index) is worker:
                self._bury(worker)

    def _take(self, worker: Worker, message: Message) -> None:
        if message.kind == "ready":
            worker.ready = True
            self._failed_starts = 0
        elif message.kind == "unusable":
            self._retire(worker)
            self._fail_start(message.content, message.exhausted)
        elif message.kind == "event":
            task = self._tasks[worker]
            task.on_report(task.retry, *message.content)
        else:
            task = self._tasks.pop(worker)
            if message.kind == "result":
                task.future.set_result(message.content)
            elif not message.exhausted:
                task.future.set_exception(message.content)
            else:
                # The worker may never give its memory back.
                self._retire(worker)
                self._lack_memory(task, message.content)

    def _bury(self, worker: Worker) -> None:
        """Handle the death of a worker."""
        del self._workers[worker.index]
        code = worker.wait(GRACE)
        how = f"was ended by {_name_of(-code)}" if code < 0 else f"ended with exit code {code}"
        killed = code == -signal.SIGKILL
        for_memory = killed and self._saw_kill()
        task = self._tasks.pop(worker, None)
        if task is None and worker.ready:
            self.on_warning(f"an idle worker process {how}; another one replaces it")
        elif task is None:
            self._fail_start(f"it {how}", for_memory)
        elif for_memory:
            self._lack_memory(task, "the system ended its worker process because memory ran out")
        else:
            task.deaths += 1
            # Not every system counts kills for memory, and under `ulimit -v` libraries end their process in many ways.
            perhaps = killed and (self._kills is None or task.deaths > 1)
            if perhaps or memory.address_space_is_limited():
                how += ", perhaps because memory ran out"
                self._lower_limit(task)
            if task.deaths > MAX_RETRIES:
                task.future.set_exception(TaskFailed(f"its worker process {how}, {task.deaths} times"))
            else:
                self._try_again(task, f"its worker process {how}", f"(retry {task.deaths} of {MAX_RETRIES})")

    def _saw_kill(self) -> bool:
        """Whether the system has killed a process because memory ran out; each kill is reported once."""
        counted = memory.count_kills()
        if counted is None or self._kills is None or counted <= self._kills:
            return False
        self._kills += 1
        return True

    def _lack_memory(self, task: _Task, reason: str) -> None:
        """Retry a task that lacked memory with fewer concurrent tasks, or give it up if there were none."""
        if task.concurrent == 1:
            task.future.set_exception(TaskFailed(f"{reason}, although no other run was executing"))
            return
        self._lower_limit(task)
        self._try_again(task, reason, f"with {self.limit} runs at a time" if self.limit > 1 else "alone")

    def _lower_limit(self, task: _Task) -> None:
        self.limit = min(self.limit, max(1, task.concurrent // 2))

    def _try_again(self, task: _Task, reason: str, how: str) -> None:
        self.on_warning(f"{task.name}: {reason}; it starts again {how}")
        task.retry += 1
        task.concurrent = 0
        self._waiting.appendleft(task)

    def _fail_start(self, reason: str, exhausted: bool) -> None:
        """Handle a worker that died or turned out unusable before it had a task."""
        self._failed_starts += 1
        if exhausted or self._failed_starts > MAX_RETRIES:
            self.limit = max(1, len(self._workers))
        if self._failed_starts > MAX_RETRIES and not self._workers:
            self._give_up(TaskFailed(f"no worker process can start: {reason}"))
        else:
            self.on_warning(f"a worker process did not start: {reason}; no run is lost")

    def _give_up(self, error: BaseException) -> None:
        """End all tasks, started or waiting, with an error."""
        tasks = [*self._tasks.values(), *self._waiting]
        self._tasks.clear()
        self._waiting.clear()
        for task in tasks:
            task.future.set_exception(error)


def _name_of(number: int) -> str:
    return next((each.name for each in signal.Signals if each == number), f"signal {number}")
