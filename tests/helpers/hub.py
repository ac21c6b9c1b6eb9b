"""A server with the protocol of the Hugging Face hub, which redirects files to another server, as the hub does."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from typing import Any

from tests.helpers.downloads import Site


@dataclass
class Hub:
    """Repositories of one file each, and how the server behaves.

    Attributes:
        files: name of the file, by repository; every file has the content of `store`.
        store: the other server, which sends the files.
        gated: whether access is restricted.
        busy: number of requests that are answered with 503 first.
        requests: method and path of every request.
    """

    store: Site
    files: dict[str, str] = field(default_factory=dict)
    gated: bool = False
    busy: int = 0
    sha256: str | None = None
    requests: list[str] = field(default_factory=list)
    url: str = ""


class HubHandler(BaseHTTPRequestHandler):
    """Serves `server.hub`; the headers of a redirection describe the file."""

    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        hub: Hub = self.server.hub  # type: ignore[attr-defined]
        hub.requests.append(f"{self.command} {self.path}")
        repository, _, rest = self.path.lstrip("/").partition("/resolve/main/")
        commit = {"X-Repo-Commit": "c" * 40}
        if hub.busy:
            hub.busy -= 1
            self._answer(503)
        elif repository not in hub.files:
            self._answer(401, {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Repository not found"})
        elif hub.gated:
            self._answer(401, {"X-Error-Code": "GatedRepo", "X-Error-Message": "Access is restricted"})
        elif rest != hub.files[repository]:
            self._answer(404, commit | {"X-Error-Code": "EntryNotFound"})
        else:
            content = hub.store.content
            sha256 = hub.sha256 or hashlib.sha256(content).hexdigest()
            linked = {"X-Linked-Size": str(len(content)), "X-Linked-ETag": f'"{sha256}"', "ETag": '"git"'}
            self._answer(302, commit | linked | {"Location": f"{hub.store.url}?signature=1"})

    do_GET = do_HEAD

    def _answer(self, status: int, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, text in {**(headers or {}), "Content-Length": "0"}.items():
            self.send_header(name, text)
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        pass
