"""Python API: run methods, load stored results and render reports.

Options, defaults, keys and stored records are those of the command line.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cl_bench.errors import UserError, unknown_name
from cl_bench.grammar import parse_pictures
from cl_bench.options import ExecutionOptions, RunOptions, options_of
from cl_bench.running.progress import RunProgress
from cl_bench.running.sweep import Sweep, wanted_options
from cl_bench.store import RunRecord, folders_to_read

if TYPE_CHECKING:
    import pandas as pd

    from cl_bench.reporting.result_table import ResultTable
    from cl_bench.reporting.runs import Run
    from cl_bench.running.executors import Outcome
    from cl_bench.running.plan import PlannedRun

# Results are read without torch; pandas and the like take a second and are imported where they are used.


@dataclass(frozen=True, repr=False)
class Results:
    """Stored results of the runs that `run` was asked for.

    Attributes:
        records: one record per stored run, in the requested order: counts, times, settings.
        folder: results folder that holds the records.
        missing: names of requested runs that are not stored, because of `dry_run` or because they failed.
        command: command line that requests the same runs.
    """

    records: tuple[RunRecord, ...]
    folder: Path
    missing: tuple[str, ...] = ()
    command: str = field(default="", compare=False)

    def frame(self) -> pd.DataFrame:
        """One row per run and training stage, with metrics as fractions and the columns of `load`."""
        from cl_bench.reporting.frames import stage_frame

        return stage_frame(self._runs())

    def table(self) -> pd.DataFrame:
        """The table that `cl-bench run` prints: one row per method and protocol, best final accuracy first.

        Columns: `method` with its options; for each of `acc`, `aaa` and `forgetting` the mean in percent (`acc, %`) and
        the half-width of its 95 % Student-t interval in percentage points (`acc ±`); `seeds`, their number; `minutes`
        per run; `trainable`, the largest number of parameters trained in any stage; `tuning`, minutes of the search
        for hyper-parameters; and the protocol. Undefined values are NaN: the half-width of a single run, and anytime
        metrics of joint training.
        """
        from cl_bench.reporting.frames import table_frame

        return table_frame(self._tables())

    def report(self, out: str | Path = "reports", pictures: str | Sequence[str] = ()) -> Path:
        """Write a report on these runs only (see `cl_bench.report`).

        Args:
            out: folder to write to.
            pictures: formats of pictures: "png", "pdf", "svg", or several of them.

        Returns:
            Path of the report's `index.html`.

        Raises:
            UserError: no run is stored, `out` cannot be written, or a picture format is unknown.
        """
        from cl_bench.reporting import report as reports
        from cl_bench.reporting.runs import sections

        if not self.records:
            raise UserError(f"none of these runs is stored in '{self.folder}' yet, so there is nothing to report")
        command = f"{self.command} && cl-bench report --results {self.folder} --out {out}"
        places = {self.folder.name: str(self.folder)}
        made = reports.render_sections(sections(self._runs()), [], places, Path(out), command, _formats(pictures))
        return made.paths[0]

    def __len__(self) -> int:
        return len(self.records)

    def __repr__(self) -> str:
        missing = f", {len(self.missing)} missing" if self.missing else ""
        return f"<Results: {len(self)} run{'' if len(self) == 1 else 's'} in {self.folder}{missing}>"

    def _repr_html_(self) -> str:
        """Tables of the report as HTML, which notebooks show."""
        from cl_bench.reporting import result_table, text_tables

        return "\n".join(text_tables.html(result_table.text_table(table)) for table in self._tables())

    def _runs(self) -> list[Run]:
        from cl_bench.reporting.runs import label_runs

        return label_runs((record, self.folder.name) for record in self.records)

    def _tables(self) -> list[ResultTable]:
        from cl_bench.reporting import report as reports

        return reports.tables_of(self.records, origin=str(self.folder))


class RunsFailed(Exception):
    """Raised when some runs failed; all other runs are stored.

    Attributes:
        results: results of the stored runs.
        failures: one sentence per failed run, with its name and the reason.
    """

    def __init__(self, results: Results, failures: Sequence[str]) -> None:
        super().__init__(results, failures)
        self.results, self.failures = results, tuple(failures)

    def __str__(self) -> str:
        stored = len(self.results)
        wanted = stored + len(self.results.missing)
        reasons = "; ".join(self.failures)
        return f"{len(self.failures)} of {wanted} run(s): {reasons}; {stored} are stored in {self.results.folder}"


def run(
    methods: str | Sequence[str] | None = None,
    *,
    benchmark: str | Sequence[str] | None = None,
    seeds: int | str | range | Sequence[int] | None = None,
    suite: str | Path | None = None,
    progress: bool = True,
    **options: Any,
) -> Results:
    """Run methods on a benchmark like `cl-bench run`; runs that are already stored are not repeated.

    An interrupted run resumes from its last checkpoint.

        cl_bench.run("sdlora,coda[lr=0.1]", seeds=range(5), epochs=2, results="results/mine")

    Args:
        methods: methods with their hyper-parameters, as a text or a list of texts.
        benchmark: name from `cl-bench ls benchmarks`, or several; by default the embedded `icons-100`.
        seeds: seeds of class order and training: 3, range(5), [0, 2] or "0-4".
        suite: name or file of a suite, instead of methods.
        progress: whether to show progress bars in a terminal or notebook.
        options: options of `cl-bench run --help`, with underscores (`limit_tasks=2`, `device="cpu"`). Values are texts,
            numbers, paths, booleans, or lists of these; None stands for the default.

    Returns:
        The stored results. With `dry_run=True`, only those that were stored before, and the names of the missing runs.

    Raises:
        UserError: the input is invalid; nothing has been run.
        RunsFailed: some runs failed; all others are stored.
    """
    named = {"methods": methods, "benchmark": benchmark, "seeds": seeds}
    given = {name: value for name, value in {**named, **options}.items() if value is not None}
    of_runs, of_execution = options_of(RunOptions), options_of(ExecutionOptions)
    for name in given:
        if name not in of_runs and name not in of_execution:
            raise unknown_name("option", name, [*of_runs, *of_execution, "progress", "suite"])
    requested = {name: value for name, value in given.items() if name in of_runs}
    wanted = wanted_options(requested, None if suite is None else str(suite))
    how = ExecutionOptions.of({name: value for name, value in given.items() if name in of_execution})
    sweep = Sweep.of(wanted, how)
    for remark in sweep.remarks():
        _warn(remark)
    missing = sweep.missing(_warn)
    outcomes = [] if how.dry_run else _carry_out(sweep, missing, progress)
    records = sweep.records()
    stored = {record.key for record in records}
    left = tuple(run.name for run in sweep.planned if run.experiment.key not in stored)
    command = " && ".join(f"{one.command()} --results {how.folder}" for one in wanted)
    results = Results(tuple(records), how.folder, left, command)
    failures = [f"{outcome.run.name} failed: {outcome.failure}" for outcome in outcomes if outcome.failure]
    if failures:
        raise RunsFailed(results, failures)
    return results


def load(*folders: str | Path) -> pd.DataFrame:
    """Load stored runs as a tidy data frame with one row per run and training stage; needs no torch.

    Columns (see `cl_bench.reporting.frames.stage_frame`): `benchmark`, `scenario`, `tasks`, `backbone`, `precision`,
    `label` (the method with its options, unique within a protocol), `method`, `recipe`, `origin` (the folder's name),
    `key`, `seed`, `class_order` and other fields that define the run; `stage` from 0 and `tasks_seen`; metrics up to
    that stage as fractions (`acc`, `aaa`, `forgetting`, ...), NaN where undefined; times and sizes. The last row of
    each run holds the values that tables show.

    Args:
        folders: results folders; by default `CL_BENCH_RESULTS` (else results/runs) and results/reference. A run stored
            in several folders is read from the first. Damaged files are skipped with a warning that names them.

    Raises:
        UserError: a folder does not exist, or no folder holds a run.
    """
    from cl_bench.reporting.frames import stage_frame
    from cl_bench.reporting.report import load_runs
    from cl_bench.reporting.salvage import without_failing_runs

    read = folders_to_read(_existing(folders))
    runs, damaged = load_runs([(folder, folder.name) for folder in read])
    frame = without_failing_runs(stage_frame, runs, damaged.append)
    _warn_damaged(damaged)
    return frame


def report(
    *folders: str | Path,
    out: str | Path = "reports",
    pictures: str | Sequence[str] = (),
    reference: bool = True,
    rows: str | Sequence[str] = (),
    columns: str | Sequence[str] = (),
    highlight: str | Sequence[str] = (),
    against: str = "",
    siunitx: bool = False,
) -> Path:
    """Write the report of stored results like `cl-bench report`: page, tables, numbers of figures; needs no torch.

    Args:
        folders: results folders; by default results/runs.
        out: folder to write to.
        pictures: formats in which every figure is drawn as well: "png", "pdf", "svg", or several of them.
        reference: whether the reference results that come with cl-bench stand beside runs of the same protocol.
        rows: patterns of the rows to show, in this order, e.g. "sdlora*,coda"; by default all.
        columns: columns of tables, in this order, e.g. "acc,forgetting,minutes".
        highlight: patterns of the rows that stand out, in colour or bold.
        against: row that the others are compared with, in additional columns of tables.
        siunitx: write LaTeX tables for the package siunitx.

    Returns:
        Path of the report's `index.html`.

    Raises:
        UserError: see `load`; or `out` cannot be written, or a picture format, row or column is unknown.
    """
    from cl_bench.reporting import report as reports
    from cl_bench.reporting.selection import Selection

    chosen = [(value if isinstance(value, str) else ",".join(value)) or None for value in (rows, highlight, columns)]
    selection = Selection.parse(chosen[0], chosen[1], chosen[2], against or None)
    made = reports.report_folders(
        _existing(folders), Path(out), _formats(pictures), selection=selection, reference=reference, siunitx=siunitx
    )
    _warn_damaged(made.damaged)
    return made.paths[0]


class _Quiet(RunProgress):
    """Reports warnings and ignores all other progress events."""

    def warn(self, text: str) -> None:
        _warn(text)


def _carry_out(sweep: Sweep, missing: Sequence[PlannedRun], progress: bool) -> Sequence[Outcome]:
    """Execute the missing runs, with progress bars in a terminal or notebook."""
    from rich.console import Console

    from cl_bench.running.progress_bars import RunBars, decoding_bar, run_bars

    if not missing:
        return []
    with ExitStack() as stack:
        console = Console(stderr=True)
        shown: RunProgress = _Quiet()
        if progress and (console.is_terminal or console.is_jupyter):
            for line in sweep.hyperparameters():
                console.print(line, markup=False, highlight=False)
            with decoding_bar(console) as on_progress:
                sweep.decode(missing, on_progress)
            bars = stack.enter_context(run_bars(console))
            shown = RunBars(bars, len(missing), on_line=lambda line: None, on_warning=_warn)
        else:
            sweep.decode(missing, lambda done, total: None)
        return sweep.carry_out(missing, shown)


def _existing(folders: Sequence[str | Path]) -> list[Path]:
    """The named folders.

    Raises:
        UserError: a named folder does not exist.
    """
    named = [Path(folder) for folder in folders]
    for folder in named:
        if not folder.is_dir():
            raise UserError(f"results folder '{folder}' is not there; name one with stored results")
    return named


def _formats(pictures: str | Sequence[str]) -> tuple[str, ...]:
    """Picture formats from a text or a list; "none" and an empty value mean no pictures."""
    text = pictures if isinstance(pictures, str) else ",".join(pictures)
    return () if text in ("", "none") else parse_pictures(text, "pictures")


def _warn_damaged(sentences: Sequence[str]) -> None:
    for sentence in sentences:
        _warn(f"skipped a damaged result: {sentence}")


def _warn(text: str) -> None:
    warnings.warn(text, UserWarning, stacklevel=2)
