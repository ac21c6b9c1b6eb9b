"""How tests start a browser: Debian's chromium, without whatever it would ask of a network by itself."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

from playwright.sync_api import Browser, BrowserContext, Page, sync_playwright

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
QUIET = (
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
)  # fmt: skip


def launch() -> Iterator[Browser]:
    """A running Chromium, closed when the generator is: the body of a fixture."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=list(QUIET))
        yield browser
        browser.close()


class Visit:
    """An open page with all errors and warnings that occurred on it."""

    def __init__(self, context: BrowserContext, site: Path, address: str = "") -> None:
        self.requests: list[str] = []
        self.faults: list[str] = []
        # No deadline, because a busy machine may take long; the time limit of all tests ends a page that hangs.
        context.set_default_timeout(0)
        self.page: Page = context.new_page()
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("pageerror", lambda error: self.faults.append(str(error)))
        # plotly uses `console.trace` for warnings.
        self.page.on(
            "console", lambda m: self.faults.append(m.text) if m.type in ("error", "warning", "trace") else None
        )
        self.page.on("dialog", lambda dialog: self.faults.append(f"dialog {dialog.message}"))
        self.page.goto(f"file://{site}/index.html{address}")

    def check(self) -> None:
        assert self.faults == []
        assert [url for url in self.requests if not url.startswith(("file://", "blob:file", "data:"))] == []
        assert len([url for url in self.requests if url.startswith("file://")]) == 1
