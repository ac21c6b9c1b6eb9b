"""Cost of `cl-bench report` on many runs, and of opening its page: `python -m benchmarks.report --out FILE`.

Stores are synthetic: streams of 10 and 20 tasks in turn, in each of them ten methods with several options and five
seeds. Every report is a process of its own, measured from start to exit: wall and CPU seconds, and its peak memory. The
first report of a store reads its files; those after it find the index that the first has left. If Chromium is
installed, each page is opened in it without a window, and timed until its tables are usable and until its first plot is
drawn.
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
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.store import arrays, record
from cl_bench.store import Store
from cl_bench.store.index import SETTLED_NS

METHODS, SEEDS, BACKBONES = 10, 5, ("vit_small", "vit_base")
SHAPES = {1_000: (5, 4), 2_000: (10, 4), 10_000: (25, 8)}
"""Number of streams, and of options per method, by number of runs."""


@dataclass(frozen=True)
class Cost:
    """What one process took: seconds of the clock and of the CPUs, and its largest resident memory in bytes."""

    wall: float
    cpu: float
    memory: int


def fill(folder: Path, streams: int, options: int) -> int:
    """Write a store; return the number of its runs."""
    store, rows = Store(folder), METHODS * options
    for stream in range(streams):
        benchmark, backbone = f"images-{stream // 2}", BACKBONES[stream % 2]
        tasks = 10 if stream // 2 % 2 else 20
        for number in range(rows * SEEDS):
            run = record(number, rows, benchmark, backbone, tasks, METHODS)
            store.write(run, arrays(run))
    # Files that changed only just now are not indexed.
    time.sleep(SETTLED_NS / 1e9 + 0.1)
    return streams * rows * SEEDS


def report(folder: Path, out: Path, *options: str) -> Cost:
    """Run `cl-bench report` in a process of its own.

    Raises:
        SystemExit: it failed.
    """
    command = [sys.executable, "-m", "cl_bench", "report", "--results", str(folder), "--out", str(out), *options]
    began = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, used = os.wait4(process.pid, 0)
    wall = time.perf_counter() - began
    if status:
        sys.exit(f"'{' '.join(command)}' ended with {os.waitstatus_to_exitcode(status)}; its message is above")
    return Cost(wall, used.ru_utime + used.ru_stime, used.ru_maxrss * (1 if sys.platform == "darwin" else 1024))


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


def measure(folder: Path, out: Path, repeats: int, pictures: bool) -> dict[str, Cost]:
    """The costs of the reports of a store; of repeated ones, the one of median CPU time."""
    found = {"first": report(folder, out)}
    again = sorted((report(folder, out) for _ in range(repeats)), key=lambda cost: cost.cpu)
    found["again"] = again[len(again) // 2]
    if pictures:
        found["with all pictures"] = report(folder, out, "--pictures", "png,pdf,svg")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument(
        "--runs", default="1000,2000,10000", help=f"sizes of stores, of {', '.join(map(str, SHAPES))} (default: all)"
    )
    parser.add_argument(
        "--repeats", type=int, default=3, help="repeated reports; the median is shown (default: %(default)s)"
    )
    parser.add_argument("--pictures", action="store_true", help="also draw every figure as PNG, PDF and SVG")
    parser.add_argument("--stores", type=Path, help="folder where stores are kept for another time")
    parser.add_argument("--out", type=Path, default=Path("report.json"))
    chosen = parser.parse_args()
    sizes = sorted(int(size) for size in chosen.runs.split(","))
    if wrong := [size for size in sizes if size not in SHAPES]:
        parser.error(f"--runs names {wrong[0]}, expected some of {', '.join(map(str, SHAPES))}")
    table = Table("runs", "report", "wall, s", "CPU, s", "peak, MB", "page, MB", title=f"{os.cpu_count()} cores")
    result: dict[str, Any] = {"cores": os.cpu_count(), "stores": []}
    with tempfile.TemporaryDirectory() as name:
        out, stores = Path(name) / "out", chosen.stores or Path(name)
        for size in sizes:
            folder = stores / str(size)
            if not folder.exists():
                fill(folder, *SHAPES[size])
            costs = measure(folder, out, chosen.repeats, chosen.pictures)
            page = (out / "index.html").stat().st_size
            for kind, cost in costs.items():
                table.add_row(
                    f"{size:,}", kind, f"{cost.wall:.1f}", f"{cost.cpu:.1f}", f"{cost.memory / 1e6:.0f}",
                    f"{page / 1e6:.1f}",
                )  # fmt: skip
            opened = [opening(out / "index.html") for _ in range(chosen.repeats)]
            result["stores"].append(
                {"runs": size, "page": page, "costs": {kind: asdict(cost) for kind, cost in costs.items()}}
            )
            if all(opened):
                usable, drawn = (median(one[i] for one in opened if one) for i in (0, 1))
                result["stores"][-1] |= {"tables": usable, "first plot": drawn}
                table.add_row(f"{size:,}", f"opened: tables after {usable:.2f} s, a plot {drawn:.2f} s later")
    Console().print(table)
    chosen.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
