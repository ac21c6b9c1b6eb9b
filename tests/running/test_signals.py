"""Signals that end work, and errors that mean that memory is exhausted."""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch

from cl_bench.running.memory import is_exhausted
from cl_bench.running.signals import raise_if_interrupted, stop_block_on_signal


@pytest.fixture
def as_at_the_start(number: signal.Signals) -> Iterator[None]:
    """The handler that a process starts with; under `nohup`, SIGHUP is ignored."""
    before = signal.signal(number, signal.SIG_DFL)
    yield
    signal.signal(number, before)


@pytest.mark.usefixtures("as_at_the_start")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_what_ends_a_process_at_once_is_raised_meanwhile(number: signal.Signals, code: int) -> None:
    closed = False
    with pytest.raises(SystemExit) as ended, stop_block_on_signal():
        try:
            os.kill(os.getpid(), number)
            signal.pause()
        finally:
            closed = True
    assert ended.value.code == code and closed
    assert signal.getsignal(number) == signal.SIG_DFL


def test_a_signal_that_other_code_swallows_is_raised_again() -> None:
    raise_if_interrupted()
    before = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        with pytest.raises(SystemExit), stop_block_on_signal():
            try:
                os.kill(os.getpid(), signal.SIGTERM)
                signal.pause()
            except BaseException as swallowed:
                assert isinstance(swallowed, KeyboardInterrupt)
            raise_if_interrupted()
        raise_if_interrupted()
    finally:
        signal.signal(signal.SIGTERM, before)


def test_a_signal_keeps_the_meaning_that_a_script_has_given_to_it() -> None:
    came: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: came.append(number))
    try:
        with stop_block_on_signal():
            os.kill(os.getpid(), signal.SIGTERM)
        assert came == [signal.SIGTERM]
    finally:
        signal.signal(signal.SIGTERM, before)


@pytest.mark.parametrize(
    ("fail", "expected"),
    [
        (lambda: torch.empty(10**15), True),
        (lambda: np.empty(10**15), True),
        (lambda: os.fsync(10**6), False),
        (lambda: torch.ones(2) @ torch.ones(3), False),
    ],
)
def test_errors_of_torch_and_numpy_that_lack_memory_are_told_from_others(
    fail: Callable[[], object], expected: bool
) -> None:
    with pytest.raises((RuntimeError, MemoryError, OSError)) as failed:
        fail()
    assert is_exhausted(failed.value) == expected


def test_errors_that_only_a_gpu_or_a_full_host_raises_are_told_too() -> None:
    assert is_exhausted(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB."))
    assert is_exhausted(OSError(errno.ENOMEM, "Cannot allocate memory"))
    assert is_exhausted(RuntimeError("std::bad_alloc"))
    assert is_exhausted(RuntimeError("can't start new thread"))
