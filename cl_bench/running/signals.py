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


@contextmanager
def terminating() -> Iterator[None]:
    """SIGTERM and SIGHUP end what is in this block as Ctrl-C does; a second one ends the process as it always would.

    Signals that have another meaning already, and other threads than the main one, stay as they are.

    Raises:
        SystemExit: one of them has come; the exit code is 128 + its number.
    """
    came: list[int] = []

    def handle(number: int, frame: FrameType | None) -> None:
        came.append(number)
        signal.signal(number, signal.SIG_DFL)
        # Ray ends the process where it meets SystemExit.
        raise KeyboardInterrupt

    handled = _handle(handle, dict.fromkeys(_TERMINATING, signal.SIG_DFL))
    try:
        yield
    except KeyboardInterrupt:
        if came:
            raise SystemExit(128 + came[0]) from None
        raise
    finally:
        for number in handled:
            signal.signal(number, signal.SIG_DFL)


@contextmanager
def ending_command() -> Iterator[Callable[[], int]]:
    """Ctrl-C, SIGTERM and SIGHUP raise `KeyboardInterrupt`, once: the second one of them ends the process at once.

    That holds until the process has ended, since Python says much if it is interrupted while it is taken down; and
    an exception may be lost in code of others, which is why the second one is none.

    Yields:
        The exit code that says which of them has come: 128 + its number.
    """
    came: list[int] = []

    def handle(number: int, frame: FrameType | None) -> None:
        came.append(number)
        if len(came) > 1:
            with suppress(OSError):
                # A progress bar has hidden the cursor.
                cursor = "\x1b[?25h" if sys.stderr.isatty() else ""
                os.write(sys.stderr.fileno(), f"{cursor}{INTERRUPTED}\n".encode())
            os._exit(128 + came[0])
        raise KeyboardInterrupt

    before = {signal.SIGINT: signal.default_int_handler} | dict.fromkeys(_TERMINATING, signal.SIG_DFL)
    handled = _handle(handle, before)
    try:
        yield lambda: 128 + (came or [signal.SIGINT])[0]
    finally:
        if not came:
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
