"""Shared fixtures: a server of one file, and a maker of archives."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from http.server import ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.helpers.archives import Entry, packed
from tests.helpers.downloads import Handler, Site


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    """A server of its own for the test; change its behaviour at any time."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    served = Site()
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.site = served  # type: ignore[attr-defined]
        served.url = f"http://127.0.0.1:{server.server_address[1]}/set.bin"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield served
        served.released.set()
        server.shutdown()
        thread.join()


@pytest.fixture
def make(tmp_path: Path) -> Callable[[str, list[Entry]], Path]:
    """`make("zip", entries)`: the archive, alone in the folder `tmp_path / "in"`."""

    def call(kind: str, entries: list[Entry]) -> Path:
        archive = tmp_path / "in" / f"set.{kind}"
        archive.parent.mkdir(exist_ok=True)
        archive.write_bytes(packed(kind, entries))
        return archive

    return call
