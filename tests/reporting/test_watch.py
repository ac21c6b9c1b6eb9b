"""`cl-bench report --watch`: a page that follows a sweep in another process, with its unfinished runs."""

from __future__ import annotations

import os
import re
import signal
from pathlib import Path

import pytest

from cl_bench.reporting import under_way
from cl_bench.store import Store
from cl_bench.store.unfinished import unfinished
from tests.helpers import gate, processes
from tests.helpers.command import TRIAL, Cli, assert_refused

RUN = ["run", *TRIAL, "--device", "cpu", "--jobs", "1", *gate.GATED, "gated[epochs=1]"]
REFRESH = '<meta http-equiv="refresh" content="1">'


def test_a_page_follows_a_sweep_until_ctrl_c(tmp_path: Path) -> None:
    log, page = tmp_path / "log", tmp_path / "reports" / "index.html"

    def shows(*texts: str) -> bool:
        return page.exists() and all(text in page.read_text() for text in texts)

    gate.lay(tmp_path, 0, 1)
    run = processes.start(tmp_path, *RUN)
    watching = processes.start(tmp_path, "report", "--watch", "--interval", "0.2")
    gate.wait(lambda: shows("No runs yet", REFRESH), watching.is_alive, log)
    (tmp_path / "closed-0").unlink()
    gate.wait(lambda: shows("Unfinished: 1 run", "gated[epochs=1]", "<td>1 of 2</td>"), watching.is_alive, log)
    gate.open_gates(tmp_path)
    run.join()
    assert run.exitcode == 0, log.read_text()
    gate.wait(lambda: shows("1 run in 1 row", REFRESH) and not shows("Unfinished:"), watching.is_alive, log)

    assert watching.pid is not None
    os.kill(watching.pid, signal.SIGINT)
    watching.join()
    assert watching.exitcode == 130
    assert shows("1 run in 1 row", "</html>") and not shows('http-equiv="refresh"')
    assert not list(page.parent.rglob(".*")), "a file that was being written stays"
    assert re.search(r"gated\[epochs=1\] +icons-100 +0 +1 of 2 +[\d.]+ %", log.read_text())
    assert "watching results/runs; Ctrl-C ends this" in log.read_text()


def test_a_plain_report_neither_reloads_nor_shows_what_is_unfinished(tmp_path: Path, cl_bench: Cli) -> None:
    assert cl_bench("report").code == 0
    text = Path("reports/index.html").read_text()
    assert "No runs yet" in text and 'http-equiv="refresh"' not in text and "under-way" not in text
    assert_refused(cl_bench("report", "--watch", "--site", "x"), "leave out --site or --watch")


@pytest.mark.parametrize(
    "content", [b"", b"\xff" * 20, b"\x02\0\0\0\0\0\0\0{}", b'\x14\0\0\0\0\0\0\0{"__metadata__": {}}']
)
def test_a_checkpoint_that_cannot_be_read_is_left_out(tmp_path: Path, content: bytes) -> None:
    folder = tmp_path / ".checkpoints"
    folder.mkdir()
    (folder / "sdlora-icons-100-s0-0123456789abcdef.safetensors").write_bytes(content)
    os.mkfifo(folder / "coda-icons-100-s0-0123456789abcdef.safetensors")
    assert unfinished(Store(tmp_path)) == [] and under_way.look([tmp_path], 1).runs == ()
