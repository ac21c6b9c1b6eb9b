"""Signals end work by an exception, so that no file is left half-written and no process alive."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

INTERRUPTED = "interrupted; finished results are stored, and the same command continues from there"

_TERMINATION = {getattr(signal, name): signal.SIG_DFL for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)}
"""Signals that ask a process to end, with the handler that a process starts with."""
_came: list[int] = []
"""Numbers of the signals that have interrupted the present work."""


@contextmanager
def stop_block_on_signal() -> Iterator[None]:
    """SIGTERM and SIGHUP end this block as Ctrl-C does; a second signal ends the process without clean-up.

    Signals for which the caller has a handler of its own, and threads other than the main one, are not affected.

    Raises:
        SystemExit: a signal has come; the exit code is 128 + its number.
    """
    with _interrupt_once(_TERMINATION, signal.SIG_DFL) as received:
        try:
            yield
        except KeyboardInterrupt:
            # Raised here and not by the handler: Ray ends the process where it meets SystemExit.
            if received:
                raise SystemExit(128 + received[0]) from None
            raise


@contextmanager
def stop_command_on_signal() -> Iterator[Callable[[], int]]:
    """Ctrl-C, SIGTERM and SIGHUP raise `KeyboardInterrupt` once; a second signal ends the process at once.

    The handlers stay after the block if a signal has come: Python prints tracebacks if it is interrupted while it shuts
    down. The second signal raises no exception, since other people's code may swallow that.

    Yields:
        A function that returns the exit code: 128 + the number of the first signal.
    """

    def end_process(number: int, frame: FrameType | None) -> None:
        with suppress(OSError):
            # A progress bar has hidden the cursor.
            cursor = "\x1b[?25h" if sys.stderr.isatty() else ""
            os.write(sys.stderr.fileno(), f"{cursor}{INTERRUPTED}\n".encode())
        os._exit(exit_code())

    def exit_code() -> int:
        return 128 + (received or [signal.SIGINT])[0]

    with _interrupt_once({signal.SIGINT: signal.default_int_handler} | _TERMINATION, end_process) as received:
        yield exit_code


def raise_if_interrupted() -> None:
    """Interrupt again if a signal has come: where it came, the exception may have met code that swallows it.

    For loops that would go on for long. Python itself swallows exceptions in callbacks of its garbage collector.

    Raises:
        KeyboardInterrupt: a signal has come in one of the blocks above.
    """
    if _came:
        raise KeyboardInterrupt


@contextmanager
def _interrupt_once(default: Mapping[int, Any], then: Any) -> Iterator[list[int]]:
    """The first of these signals raises `KeyboardInterrupt`; from then on all of them have the handler `then`.

    Args:
        default: the handler of each signal; one that has another handler now keeps it.

    Yields:
        The number of that first signal, once it has come.
    """
    received: list[int] = []
    in_main_thread = threading.current_thread() is threading.main_thread()
    handled = [number for number in default if in_main_thread and signal.getsignal(number) == default[number]]

    def interrupt(number: int, frame: FrameType | None) -> None:
        received.append(number)
        _came.append(number)
        for each in handled:
            signal.signal(each, then)
        raise KeyboardInterrupt

    for number in handled:
        signal.signal(number, interrupt)
    try:
        yield received
    finally:
        if not received:
            for number in handled:
                signal.signal(number, default[number])
        else:
            _came.remove(received[0])
