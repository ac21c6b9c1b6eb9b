"""Running methods and reading their results from Python: `cl_bench.run`, `cl_bench.load` and `cl_bench.report`.

It does what the command line does, with the same options, defaults, keys and stored records.
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
    """Stored runs, as `run` returns them.

    Attributes:
        records: one for each run that is stored, in the order of what was asked for: counts, times, settings.
        folder: the results folder that holds them.
        missing: names of the runs that were asked for and are not stored: with `dry_run`, and where runs have failed.
        command: the command line that asks for the same.
    """

    records: tuple[RunRecord, ...]
    folder: Path
    missing: tuple[str, ...] = ()
    command: str = field(default="", compare=False)

    def frame(self) -> pd.DataFrame:
        """One row per run and training stage, metrics as fractions: the columns of `load`."""
        from cl_bench.reporting.frames import stage_frame

        return stage_frame(self._runs())

    def table(self) -> pd.DataFrame:
        """The table of `cl-bench run`, one row per method and protocol, best final accuracy first.

        Columns: `method`, with its options; mean in percent and half-width of the 95 % Student-t interval in
        percentage points, `acc, %` and `acc ±`, the same of `aaa` and `forgetting` (NaN where undefined: a half-width
        for one run, anytime metrics of joint training); `seeds`, how many; `minutes` of a run; `trainable`, the most
        numbers trained in any stage; `tuning`, minutes of the search for the hyper-parameters; and the protocol.
        """
        from cl_bench.reporting import result_table

        return result_table.frame(self._tables())

    def report(self, out: str | Path = "reports", pictures: str | Sequence[str] = ()) -> Path:
        """Write the page over these runs alone (see `report`).

        Returns:
            The path of its `index.html`.

        Raises:
            UserError: there is no run, `out` cannot be written, or no such format of pictures.
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
        """The tables as the report shows them, for a notebook."""
        from cl_bench.reporting import result_table, text_tables

        return "\n".join(text_tables.html(result_table.text_table(table)) for table in self._tables())

    def _runs(self) -> list[Run]:
        from cl_bench.reporting.runs import label_runs

        return label_runs((record, self.folder.name) for record in self.records)

    def _tables(self) -> list[ResultTable]:
        from cl_bench.reporting import report as reports

        return reports.tables_of(self.records, origin=str(self.folder))


class RunsFailed(Exception):
    """Some runs have failed; the others are stored.

    Attributes:
        results: of the runs that are stored.
        failures: one sentence for each of the others, which names it and says why.
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
    """Run methods on a benchmark, as `cl-bench run` does; what is stored already is not run again.

    `run("sdlora,coda[lr=0.1]", seeds=range(5), epochs=2, results="results/mine")`. A run that was interrupted goes on
    from its last checkpoint.

    Args:
        methods: names with their options, as text or a list.
        benchmark: see `cl-bench ls benchmarks`; by default the embedded `icons-100`.
        seeds: each sets class order and training seed: 3, range(5), [0, 2] or "0-4".
        suite: instead of methods: the name or file of a suite.
        progress: show bars in a terminal or notebook.
        options: those of `cl-bench run --help` by the names that suite files use too (`limit_tasks=2`, `device="cpu"`);
            texts, numbers, paths, truth values, or lists of these. None: left out.

    Returns:
        The stored results. With `dry_run=True`, those that are there already, and what is missing.

    Raises:
        UserError: bad input; nothing has been run.
        RunsFailed: runs have failed while they were carried out; the others are stored.
    """
    named = {"methods": methods, "benchmark": benchmark, "seeds": seeds}
    given = {name: value for name, value in {**named, **options}.items() if value is not None}
    of_runs, of_execution = options_of(RunOptions), options_of(ExecutionOptions)
    for name in given:
        if name not in of_runs and name not in of_execution:
            raise unknown_name("option", name, [*of_runs, *of_execution, "progress", "suite"])
    asked = {name: value for name, value in given.items() if name in of_runs}
    wanted = wanted_options(asked, None if suite is None else str(suite))
    how = ExecutionOptions.of({name: value for name, value in given.items() if name in of_execution})
    sweep = Sweep.of(wanted, how)
    for remark in sweep.remarks():
        _warn(remark)
    missing = sweep.missing(_warn)
    outcomes = [] if how.dry_run else _carry_out(sweep, missing, progress)
    records = sweep.records()
    stored = {record.key for record in records}
    left = tuple(run.name for run in sweep.planned if run.experiment.key not in stored)
    command = " && ".join(f"{one.command()} --results {how.results}" for one in wanted)
    results = Results(tuple(records), how.results, left, command)
    failures = [f"{outcome.run.name} failed: {outcome.failure}" for outcome in outcomes if outcome.failure]
    if failures:
        raise RunsFailed(results, failures)
    return results


def load(*folders: str | Path) -> pd.DataFrame:
    """Stored runs as a tidy data frame, one row per run and training stage; needs no torch.

    Columns (see `cl_bench.reporting.frames.stage_frame`): `benchmark`, `scenario`, `tasks`, `backbone`, `precision`,
    `label` (the method with its options, unique within a protocol), `method`, `recipe`, `origin` (the folder's name),
    `key`, `seed`, `class_order` and more that says what the run is; `stage` from 0 and `tasks_seen`; metrics as if the
    stream had ended there, as fractions (`acc`, `aaa`, `forgetting`, ...), NaN where undefined; times and sizes. The
    last row of each run has what tables show.

    Args:
        folders: results folders; by default results/runs and results/reference. A run that lies in several of them is
            taken from the first. Damaged files are left out with a warning that names them.

    Raises:
        UserError: a folder that is not there, or no run in any.
    """
    from cl_bench.reporting.frames import stage_frame
    from cl_bench.reporting.report import load_runs
    from cl_bench.reporting.salvage import without_failing_runs

    read = _existing(folders)
    runs, damaged = load_runs([(folder, folder.name) for folder in read])
    frame = without_failing_runs(stage_frame, runs, damaged.append)
    _warn_damaged(damaged)
    return frame


def report(*folders: str | Path, out: str | Path = "reports", pictures: str | Sequence[str] = ()) -> Path:
    """Write the page, tables and numbers of figures from stored results, as `cl-bench report` does; needs no torch.

    Args:
        folders: as for `load`.
        out: the folder to write to.
        pictures: also draw every figure: "png", "pdf", "svg", or several of them.

    Returns:
        The path of the page, `index.html`.

    Raises:
        UserError: as `load`; `out` cannot be written; no such format of pictures.
    """
    from cl_bench.reporting import report as reports

    made = reports.report_folders(_existing(folders), Path(out), _formats(pictures))
    _warn_damaged(made.damaged)
    return made.paths[0]


class _Quiet(RunProgress):
    """Tells what the user should know, and nothing else."""

    def warn(self, text: str) -> None:
        _warn(text)


def _carry_out(sweep: Sweep, missing: Sequence[PlannedRun], progress: bool) -> Sequence[Outcome]:
    """Carry out what is missing, with bars where somebody sees them."""
    from rich.console import Console

    from cl_bench.running.progress_bars import RunBars, decoding_bar, run_bars

    if not missing:
        return []
    with ExitStack() as stack:
        console = Console(stderr=True)
        shown: RunProgress = _Quiet()
        if progress and (console.is_terminal or console.is_jupyter):
            with decoding_bar(console) as on_progress:
                sweep.decode(missing, on_progress)
            bars = stack.enter_context(run_bars(console))
            shown = RunBars(bars, len(missing), on_line=lambda line: None, on_warning=_warn)
        else:
            sweep.decode(missing, lambda done, total: None)
        return sweep.carry_out(missing, shown)


def _existing(folders: Sequence[str | Path]) -> list[Path]:
    """The folders that are named, else the default ones.

    Raises:
        UserError: one that is named is not there.
    """
    named = [Path(folder) for folder in folders]
    for folder in named:
        if not folder.is_dir():
            raise UserError(f"results folder '{folder}' is not there; name one with stored results")
    return folders_to_read(named)


def _formats(pictures: str | Sequence[str]) -> tuple[str, ...]:
    """Formats of pictures as a text or a list; none for "none" or an empty one."""
    text = pictures if isinstance(pictures, str) else ",".join(pictures)
    return () if text in ("", "none") else parse_pictures(text, "pictures")


def _warn_damaged(sentences: Sequence[str]) -> None:
    for sentence in sentences:
        _warn(f"skipped a damaged result: {sentence}")


def _warn(text: str) -> None:
    warnings.warn(text, UserWarning, stacklevel=2)
