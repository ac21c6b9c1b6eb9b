"""Time of `cl-bench report` on many runs, and of opening its page: `python -m benchmarks.report --out FILE`.

The store is synthetic (8 protocols x 25 rows x 10 seeds = 2,000 runs of 10 tasks); every report is a process of its
own, timed from start to exit. If Chromium is installed, the page of 500 of these runs is opened in it without a window,
and timed until its tables are usable and until the first plot is drawn.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

from rich.console import Console
from rich.table import Table

from benchmarks.store import arrays, record
from cl_bench.store import Store

ROWS, SEEDS = 25, 10
STREAMS = [
    (benchmark, vit) for benchmark in ("photos", "sketches", "birds", "icons") for vit in ("vit_small", "vit_base")
]


def fill(folder: Path, streams: int) -> int:
    """Write the runs of the first `streams` protocols; return the number of runs."""
    store = Store(folder)
    for benchmark, vit in STREAMS[:streams]:
        for number in range(ROWS * SEEDS):
            run = record(number, ROWS, benchmark, vit)
            store.write(run, arrays(run))
    return streams * ROWS * SEEDS


def report(folder: Path, out: Path, *options: str) -> float:
    """Duration of one `cl-bench report`, in seconds."""
    command = [sys.executable, "-m", "cl_bench", "report", "--results", str(folder), "--out", str(out), *options]
    began = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - began


def opening(page: Path) -> tuple[float, float] | None:
    """Seconds until the tables of a page are usable, and until its first plot is drawn; None without a browser."""
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        return None
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        context = browser.new_context(viewport={"width": 1280, "height": 900})
        tab = context.new_page()
        began = time.perf_counter()
        tab.goto(f"file://{page}")
        tab.locator("#tools").wait_for(state="visible")
        usable = time.perf_counter() - began
        began = time.perf_counter()
        tab.locator(".plot").first.scroll_into_view_if_needed()
        tab.locator(".plot svg.main-svg").first.wait_for()
        drawn = time.perf_counter() - began
        browser.close()
    return usable, drawn


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument(
        "--repeats", type=int, default=3, help="repetitions, of which the median is reported (default: %(default)s)"
    )
    parser.add_argument("--pictures", action="store_true", help="also time drawing every figure as PNG, PDF and SVG")
    parser.add_argument("--out", type=Path, default=Path("report.json"))
    chosen = parser.parse_args()
    seconds: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as name:
        many, some, out = Path(name) / "many", Path(name) / "some", Path(name) / "out"
        runs = fill(many, len(STREAMS))
        fill(some, 2)
        seconds[f"report of {runs:,} runs"] = median(report(many, out) for _ in range(chosen.repeats))
        if chosen.pictures:
            seconds["the same with all pictures"] = report(many, out, "--pictures", "png,pdf,svg")
        size = (out / "index.html").stat().st_size
        report(some, out)
        opened = [opening(out / "index.html") for _ in range(chosen.repeats)]
        if all(opened):
            seconds["page of 500 runs: tables"] = median(one[0] for one in opened if one)
            seconds["page of 500 runs: first plot"] = median(one[1] for one in opened if one)
        small = (out / "index.html").stat().st_size
    table = Table("what", "seconds", title=f"{os.cpu_count()} cores")
    for what, value in seconds.items():
        table.add_row(what, f"{value:.2f}")
    Console().print(table, f"page: {size / 1e6:.1f} MB, of 500 runs {small / 1e6:.1f} MB")
    result = {"cores": os.cpu_count(), "runs": runs, "bytes": size, "bytes_500": small, "seconds": seconds}
    chosen.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
