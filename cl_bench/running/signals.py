"""How work is ended from outside: by an exception, so that no file is left half-written and no process alive."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

INTERRUPTED = "interrupted; what was finished is stored, and the same command goes on from there"

_TERMINATING = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]


class Terminated(SystemExit):
    """SIGTERM or SIGHUP has come; the exit code is 128 + its number."""

    def __init__(self, number: int) -> None:
        super().__init__(128 + number)


@contextmanager
def terminating() -> Iterator[None]:
    """SIGTERM and SIGHUP raise `Terminated`, once: a second one ends the process as it would have without this.

    Signals that have another meaning already, and other threads than the main one, stay as they are.
    """

    def handle(number: int, frame: FrameType | None) -> None:
        signal.signal(number, signal.SIG_DFL)
        raise Terminated(number)

    handled = _handle(handle, dict.fromkeys(_TERMINATING, signal.SIG_DFL))
    try:
        yield
    finally:
        for number in handled:
            signal.signal(number, signal.SIG_DFL)


@contextmanager
def ending_command() -> Iterator[None]:
    """Ctrl-C, SIGTERM and SIGHUP are raised, once: the second one of them ends the process at once.

    That holds until the process has ended, since Python says much if it is interrupted while it is taken down; and
    an exception may be lost in code of others, which is why the second one is none.
    """
    begun = False

    def handle(number: int, frame: FrameType | None) -> None:
        nonlocal begun
        if begun:
            with suppress(OSError):
                # A progress bar has hidden the cursor.
                cursor = "\x1b[?25h" if sys.stderr.isatty() else ""
                os.write(sys.stderr.fileno(), f"{cursor}{INTERRUPTED}\n".encode())
            os._exit(128 + number)
        begun = True
        raise KeyboardInterrupt if number == signal.SIGINT else Terminated(number)

    before = {signal.SIGINT: signal.default_int_handler} | dict.fromkeys(_TERMINATING, signal.SIG_DFL)
    handled = _handle(handle, before)
    try:
        yield
    finally:
        if not begun:
            for number in handled:
                signal.signal(number, before[number])


def _handle(handle: Callable[[int, FrameType | None], None], before: Mapping[int, Any]) -> list[int]:
    """Handle those of these signals that are handled in that way so far; their numbers come back."""
    if threading.current_thread() is not threading.main_thread():
        return []
    numbers = [number for number, handler in before.items() if signal.getsignal(number) == handler]
    for number in numbers:
        signal.signal(number, handle)
    return numbers
