"""Apply every mistake of mutants.toml to a copy of the tree, and check that its tests fail.

    python -m tools.mutants [--only TEXT] [--jobs N]

A mutant is a one-line mistake that would falsify published numbers, with tests of which at least one must fail. Mutants
are chosen by hand: most of the thousands that a tool would generate only change a message or the speed, and testing all
of them takes days. All these tests must pass without a mistake. The tree itself is not changed.

Exit status: 0 if all mutants are killed, 1 if some survive, 2 if some could not be tried: the text to be replaced does
not occur exactly once, the tests do not run, or tests fail without a mistake.
"""

from __future__ import annotations

import argparse
import compileall
import os
import py_compile
import re
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing import connection, get_context
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
LIST = Path("tools") / "mutants" / "mutants.toml"
LONGEST = 1800
"""Timeout of a trial in seconds: a mistake may cause an endless loop."""
LIBRARIES = (
    "pytest", "hypothesis", "xdist.plugin", "torch", "torchvision", "timm", "avalanche.benchmarks",
    "avalanche.training.templates", "pandas", "pydantic", "scipy.stats", "statsmodels.api", "typer", "rich.console",
)  # fmt: skip
"""Imported once by the process from which every trial is forked, because importing takes longer than most tests."""


class Inapplicable(Exception):
    """Raised for a mutant that cannot be tried; the message says why."""


@dataclass(frozen=True)
class Mutant:
    """A one-line mistake.

    Attributes:
        name: short description.
        file: path of the file, relative to the root.
        old, new: text that is replaced (it must occur exactly once), and its replacement.
        tests: pytest identifiers of the tests, of which at least one must fail.
    """

    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]

    def applied(self, text: str) -> str:
        """The text with the mistake applied.

        Raises:
            Inapplicable: the text to be replaced does not occur exactly once.
        """
        if (found := text.count(self.old)) != 1:
            times = f"there {found} times" if found else "no longer there"
            raise Inapplicable(f"{self.file}: the text to be replaced is {times}: {self.old!r}; mend it in {LIST}")
        return text.replace(self.old, self.new)


def read(path: Path) -> list[Mutant]:
    """Read the mutants of a list file."""
    entries = tomllib.loads(path.read_text(encoding="utf-8"))["mutant"]
    return [Mutant(**entry | {"tests": tuple(entry["tests"])}) for entry in entries]


def copy(root: Path, to: Path) -> None:
    """Copy all files that git tracks, or would track."""
    line = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    for name in subprocess.run(line, cwd=root, check=True, capture_output=True).stdout.decode().split("\0"):
        if (root / name).is_file():
            (to / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(root / name, to / name)


class Trial:
    """Tests running in a tree with a mistake, or without one if `mutant` is None.

    Raises:
        Inapplicable: the mistake cannot be applied.
    """

    def __init__(self, mutant: Mutant | None, tests: Sequence[str], tree: Path) -> None:
        self.mutant, self.tree, self.original = mutant, tree, ""
        if mutant is not None:
            try:
                self.original = (tree / mutant.file).read_text(encoding="utf-8")
            except OSError as problem:
                raise Inapplicable(f"{mutant.file}: {problem.strerror}; mend it in {LIST}") from problem
            (tree / mutant.file).write_text(mutant.applied(self.original), encoding="utf-8")
        self.report = tree.with_suffix(".txt")
        self.report.unlink(missing_ok=True)
        context: Any = get_context("forkserver")
        self.process = context.Process(target=_test, args=(str(ROOT), str(tree), str(self.report), list(tests)))
        self.started = time.monotonic()
        self.process.start()

    @property
    def name(self) -> str:
        """Description of the trial."""
        return self.mutant.name if self.mutant else "all of these tests without a mistake"

    @property
    def seconds(self) -> float:
        """Seconds since the trial began."""
        return time.monotonic() - self.started

    def end(self) -> str:
        """End the trial and restore the tree; return the first failed test, or an empty text if all passed.

        Raises:
            Inapplicable: the tests were not completed.
        """
        late = self.process.is_alive()
        if late:
            self.process.kill()
        self.process.join()
        if self.mutant:
            (self.tree / self.mutant.file).write_text(self.original, encoding="utf-8")
        said = self.report.read_text(encoding="utf-8", errors="replace") if self.report.exists() else ""
        if late:
            raise Inapplicable(f"its tests have not ended after {self.seconds:.0f} s")
        failed = re.search(r"^(?:FAILED|ERROR) (\S+::.*?)(?: - .*)?$", said, re.MULTILINE)
        if self.process.exitcode not in (0, 1) or bool(self.process.exitcode) != bool(failed):
            why = re.findall(r"^(?:ERROR: |E  ).+", said, re.MULTILINE) or said.strip().splitlines()[-1:] or ["no word"]
            raise Inapplicable(f"its tests do not run ({why[0].strip()})")
        return failed[1] if failed else ""


def _test(root: str, tree: str, report: str, tests: list[str]) -> None:
    """Run tests in a tree, in a new process that has imported nothing from the root."""
    with open(report, "w") as file:  # noqa: PTH123
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
    os.chdir(tree)
    sys.path[:] = [tree, *(path for path in sys.path if path not in ("", root))]
    os.environ["PYTHONPATH"] = tree
    import pytest

    # The last of these plugins spends a second on garbage collection at the end.
    plugins = [word for name in ("cacheprovider", "anyio", "unraisableexception") for word in ("-p", f"no:{name}")]
    status = pytest.main(["-x", "-q", *plugins, *tests])
    sys.stdout.flush()
    os._exit(int(status))


def run(mutants: Sequence[Mutant], root: Path, jobs: int) -> int:
    """Try all mutants, print a line for each and a summary; return the exit status."""
    everything = tuple(dict.fromkeys(test for mutant in mutants for test in mutant.tests))
    waiting: list[Mutant | None] = [None, *mutants]
    running: list[Trial] = []
    survivors: list[Mutant] = []
    problems: list[str] = []

    def say(word: str, seconds: float, text: str) -> None:
        print(f"{word:<8} {seconds:6.1f} s  {text}", flush=True)

    def conclude(trial: Trial) -> None:
        failed = trial.end()
        if trial.mutant is None:
            say("FAILS" if failed else "passes", trial.seconds, f"{trial.name}{f'  ({failed})' if failed else ''}")
            if failed:
                raise Inapplicable(f"{failed} fails")
        elif failed:
            say("killed", trial.seconds, f"{trial.name}  ({failed.rpartition('::')[2]})")
        else:
            say("SURVIVES", trial.seconds, trial.name)
            survivors.append(trial.mutant)

    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        free = [Path(folder) / str(number) for number in range(jobs)]
        copy(root, free[0])
        # Compiled files identify their source by hash: with its time in whole seconds, the compiled file of one mutant
        # could be used for the next.
        checked = py_compile.PycInvalidationMode.CHECKED_HASH
        compileall.compile_dir(free[0], quiet=2, invalidation_mode=checked)
        for tree in free[1:]:
            shutil.copytree(free[0], tree)
        try:
            while waiting or running:
                while waiting and free:
                    mutant, tree = waiting.pop(0), free.pop()
                    try:
                        running.append(Trial(mutant, mutant.tests if mutant else everything, tree))
                    except Inapplicable as problem:
                        free.append(tree)
                        problems.append(f"{mutant.name if mutant else ''}: {problem}")
                connection.wait([trial.process.sentinel for trial in running], timeout=1)
                for trial in list(running):
                    if trial.process.is_alive() and trial.seconds < LONGEST:
                        continue
                    running.remove(trial)
                    free.append(trial.tree)
                    try:
                        conclude(trial)
                    except Inapplicable as problem:
                        problems.append(f"{trial.name}: {problem}")
        except KeyboardInterrupt:
            for trial in running:
                trial.process.kill()
                trial.process.join()
            print("interrupted; the tree is as it was", file=sys.stderr)
            return 130
    tried = f"{len(mutants)} mutants: {len(survivors)} survive, {len(problems)} errors"
    print(tried if survivors or problems else f"{len(mutants)} mutants, all killed")
    for mutant in survivors:
        print(
            f"survives: {mutant.name}\n  {mutant.file}: {mutant.new!r} for {mutant.old!r}\n  {' '.join(mutant.tests)}"
        )
    for problem in problems:
        print(f"error: {problem}")
    return 2 if problems else 1 if survivors else 0


def main(arguments: Sequence[str] | None = None, root: Path = ROOT) -> int:
    """Run the command; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tools.mutants", description="Try one-line mistakes in the maths.")
    parser.add_argument("--only", default="", metavar="TEXT", help="only mutants with this text in their name or file")
    parser.add_argument(
        "--jobs",
        type=int,
        default=min(2, os.cpu_count() or 1),
        help="number of concurrent trials (default: %(default)s)",
    )
    options = parser.parse_args(arguments)
    mutants = [mutant for mutant in read(root / LIST) if options.only in mutant.name or options.only in mutant.file]
    if not mutants:
        parser.error(f"--only: no mutant has '{options.only}' in its name or file")
    if options.jobs < 1:
        parser.error("--jobs: expected at least 1")
    # Tiny matrices are faster on one thread; and what is forked must have no threads.
    os.environ["OMP_NUM_THREADS"] = "1"
    get_context("forkserver").set_forkserver_preload(list(LIBRARIES))
    return run(mutants, root, options.jobs)
