"""The Ray cluster of a sweep: starts one on this host or connects to one, with clear sentences about failures."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from typing import Any

from cl_bench.errors import UserError
from cl_bench.running import ray_guard

CONNECT_TIMEOUT = 5
"""Seconds to wait for a TCP connection to a cluster."""
OBJECT_STORE_BYTES = 256 * 2**20
"""Size of the shared memory in which Ray exchanges records and predictions; images do not go through it."""


def parse_address(address: str) -> tuple[str, int]:
    """Split `HOST:PORT` into host and port.

    Raises:
        UserError: the address has another form.
    """
    match = re.fullmatch(r"([^:/\s]+):(\d{1,5})", address)
    if not match or not 0 < int(match[2]) < 65536:
        raise UserError(
            f"--address '{address}' is not an address; expected auto or HOST:PORT, as 'ray start --head' prints it"
        )
    return match[1], int(match[2])


def has_resources(host: dict[str, float], cpus: int, gpus: float) -> bool:
    """Whether a host with these resources (as Ray lists them) can execute a task that needs `cpus` and `gpus`."""
    return host.get("CPU", 0) >= cpus and host.get("GPU", 0) >= gpus


@contextlib.contextmanager
def connect(address: str | None) -> Iterator[Any]:
    """The module `ray`, connected to a cluster. A cluster that this function starts is shut down on exit.

    Args:
        address: address of a running cluster, `auto` or `HOST:PORT`; None: start a cluster on this host.

    Raises:
        UserError: the cluster cannot be reached.
    """
    if address is not None and address != "auto":
        _check_port(address)
    # Ray reads this when it is imported. By default it tries for minutes to reach a port that is no Ray cluster.
    os.environ.setdefault("RAY_NUM_REDIS_GET_RETRIES", "1")
    guard: subprocess.Popen[bytes] | None = None
    if address is None:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        # A token for this cluster alone: otherwise Ray writes one into the home folder.
        if "RAY_AUTH_MODE" not in os.environ:
            os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    import ray

    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.CRITICAL}
    try:
        try:
            if address is None:
                # Outside Ray's usual folder, where --address auto would find it. The path is short, as those of sockets
                # must be.
                short = tempfile.gettempdir() if len(tempfile.gettempdir()) < 30 else "/tmp"
                folder = tempfile.mkdtemp(prefix="cl-bench-", dir=short)
                # In its own session, which signals to this one do not reach.
                command = [sys.executable, ray_guard.__file__, folder]
                guard = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)
                local = {
                    "include_dashboard": False,
                    "object_store_memory": OBJECT_STORE_BYTES,
                    "_temp_dir": folder,
                }
                with _preserve_sigterm():
                    ray.init(address="local", **local, **quiet)
            else:
                with _preserve_sigterm():
                    ray.init(address=address, **quiet)
        except (OSError, RuntimeError, ValueError) as error:
            raise UserError(_connection_failure(address, error)) from error
        yield ray
    finally:
        ray.shutdown()
        if guard is not None:
            guard.communicate()


def _check_port(address: str) -> None:
    """Check that a process listens at `HOST:PORT`.

    Raises:
        UserError: none does.
    """
    host, port = parse_address(address)
    try:
        socket.create_connection((host, port), CONNECT_TIMEOUT).close()
    except OSError as error:
        raise UserError(
            f"--address {address}: nothing answers there ({error.strerror or error}); start the cluster with "
            "'ray start --head', or leave --address out to use this host alone"
        ) from error


@contextlib.contextmanager
def _preserve_sigterm() -> Iterator[None]:
    """Restore the handler of SIGTERM, which Ray replaces by one that ends the process with exit code 15."""
    handler = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, handler)


def _connection_failure(address: str | None, error: BaseException) -> str:
    """A sentence for the user that says why Ray cannot be used."""
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    if address is None:
        return f"Ray does not start on this host: {reason}"
    cause: BaseException | None = error
    while cause is not None:
        if "uthentication" in str(cause):
            return (
                f"--address {address}: the cluster refuses the token of this host; set RAY_AUTH_MODE=token, and "
                "RAY_AUTH_TOKEN or ~/.ray/auth_token as on its hosts"
            )
        cause = cause.__cause__ or cause.__context__
    return f"--address {address}: no Ray cluster of which this host is a part ({reason}); see 'ray status'"
