"""The commands `cl-bench results ls|show|merge|verify|export|prune`: reading and maintaining stored results."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, get_args

import typer
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Table

from cl_bench.cli import completion
from cl_bench.cli.shared import err, out
from cl_bench.errors import UserError, counted, printable
from cl_bench.experiment import value_text
from cl_bench.options.execution import RESULTS_DEFAULT, RESULTS_VARIABLE, default_results
from cl_bench.store import DEFAULT_FOLDERS, default_folders

if TYPE_CHECKING:
    from cl_bench.store import RunRecord

# pandas and pyarrow are imported by the commands that need them.
_WIDEST = 60
"""Largest width of a column of `ls` in characters; a longer text shifts the rest of its own line only."""

app = typer.Typer(no_args_is_help=True, help="Stored results: list, show, merge, verify, export and prune them.")

Folders = Annotated[
    list[Path] | None,
    typer.Option("--results", help="Folders to read; may be given several times.", show_default=DEFAULT_FOLDERS),
]
Method = Annotated[
    list[str] | None,
    typer.Option("--method", help="Only runs of this method.", show_default=False, autocompletion=completion.METHOD),
]
Benchmark = Annotated[
    list[str] | None,
    typer.Option(
        "--benchmark",
        help="Only runs on this benchmark.",
        show_default=False,
        autocompletion=completion.BENCHMARK,
    ),
]
Backbone = Annotated[
    list[str] | None,
    typer.Option(
        "--backbone",
        help="Only runs with this backbone.",
        show_default=False,
        autocompletion=completion.BACKBONE,
    ),
]
Label = Annotated[list[str] | None, typer.Option("--label", help="Only rows of this name.", show_default=False)]
Seeds = Annotated[
    str | None, typer.Option("--seed", help="Only runs with these seeds: 0-4 or 0,2.", show_default=False)
]


def folders_of(results: Sequence[Path] | None) -> list[Path]:
    """The named results folders, or the existing default ones if none is named.

    Raises:
        UserError: a named path is not a folder.
    """
    for folder in results or []:
        if not folder.is_dir():
            raise UserError(f"--results '{folder}' is no folder; name one with stored results")
    return list(results or [folder for folder in default_folders() if folder.is_dir()])


def warn_damaged(sentence: str) -> None:
    """Print a warning that names a skipped record."""
    err.print(f"[yellow]warning:[/] skipped a damaged result: {escape(printable(sentence))}")


def show_run(key: str, folders: Sequence[Path]) -> bool:
    """Show the stored run whose key starts with `key`; False if there is none.

    Raises:
        UserError: several keys start with it.
    """
    from cl_bench import metrics
    from cl_bench.store import matching

    if len(key) < 4 or not all(c in "0123456789abcdef" for c in key):
        return False
    found = matching(key, folders, warn_damaged)
    if len(found) > 1:
        where = ", ".join(f"'{folder}'" for folder in folders)
        raise UserError(f"'{key}' fits {len(found)} runs in {where}; give more digits of the key")
    if not found:
        return False
    ((record, store),) = found
    out.print(f"[bold]{escape(printable(record.label))}[/] seed {record.experiment.seed}, key {record.key}")
    finished = f", finished {record.finished:%Y-%m-%d %H:%M} UTC" if record.finished else ""
    _say(f"{store.json_path(record.experiment)}{finished}")
    out.print_json(data=record.experiment.model_dump(mode="json"))
    table = Table("after", *(f"task {j + 1}" for j in range(len(record.total))), title="accuracy, %")
    for t, row in enumerate(metrics.accuracy_matrix(record.correct, record.total)):
        table.add_row(f"stage {t + 1}", *("" if value != value else f"{100 * value:.1f}" for value in row))
    out.print(table)
    out.print_json(data=record.environment)
    for line in _sessions(record):
        _say(line)
    return True


@app.command("ls", epilog="Example: cl-bench results ls --method sdlora --seed 0-4")
def ls_(
    results: Folders = None,
    method: Method = None,
    benchmark: Benchmark = None,
    backbone: Backbone = None,
    label: Label = None,
    seed: Seeds = None,
) -> None:
    """List stored runs: key, row, benchmark, seed, accuracy, time of completion, folder."""
    from cl_bench import metrics
    from cl_bench.reporting.salvage import sentence_about
    from cl_bench.store import Store

    wanted = _Filter.of(method, benchmark, backbone, label, seed)
    folders, mine = folders_of(results), default_results()
    if not results and not mine.is_dir() and (not folders or os.environ.get(RESULTS_VARIABLE)):
        raise UserError(
            f"there is no results folder '{mine}' yet; make results with `cl-bench run --methods NAME`, or name a "
            f"folder with --results or {RESULTS_VARIABLE}"
        )
    rows = [("key", "label", "benchmark", "seed", "acc, %", "finished, UTC", "origin")]
    for folder in folders:
        for record in Store(folder).records(warn_damaged):
            experiment = record.experiment
            if wanted.fits(experiment.method, experiment.benchmark, experiment.backbone, record.label, experiment.seed):
                try:
                    accuracy = f"{100 * metrics.acc(record.correct, record.total):.2f}"
                except Exception as error:
                    warn_damaged(sentence_about(str(folder), record, error))
                    continue
                finished = f"{record.finished:%Y-%m-%d %H:%M}" if record.finished else "-"
                names = record.key, record.label, experiment.benchmark, str(experiment.seed)
                rows.append((*names, accuracy, finished, str(folder)))
    # One line per run, for grep and sort.
    lines = [tuple(map(printable, row)) for row in rows]
    widths = [min(max(map(len, column)), _WIDEST) for column in zip(*lines, strict=True)]
    for line in lines if lines[1:] else []:
        _say("  ".join(map(str.ljust, line, widths)).rstrip())
    err.print(counted(len(rows) - 1, "run"))


@app.command(epilog="Example: cl-bench results show 08f4ef8b --results results/reference")
def show(
    key: Annotated[
        str,
        typer.Argument(help="Key of a run, or its first digits (at least 4).", autocompletion=completion.KEY),
    ],
    results: Folders = None,
) -> None:
    """Show one stored run: its experiment, accuracies and environment."""
    folders = folders_of(results)
    if not show_run(key, folders):
        where = ", ".join(f"'{folder}'" for folder in folders) or "no folder that is there"
        raise UserError(f"no run with the key '{key}' in {where}; 'cl-bench results ls' lists them")


@app.command(epilog="Example: cl-bench results merge /shared/results copies/laptop --into results/runs")
def merge(
    sources: Annotated[list[Path], typer.Argument(metavar="SOURCE...", help="Results folders to copy from.")],
    into: Annotated[Path, typer.Option(help="Results folder to copy to; created if missing.")],
    prefer: Annotated[
        str | None,
        typer.Option(
            help="Whose results are kept where both have different ones: source or dest.",
            show_default="keep, exit code 1",
            autocompletion=completion.one_of("source", "dest"),
        ),
    ] = None,
) -> None:
    """Merge results folders; existing results are replaced only with --prefer. Exit code 1 on conflicts or damage."""
    from cl_bench.store import Store, upkeep

    choice = next((known for known in get_args(upkeep.Prefer) if known == prefer), None)
    if prefer is not None and choice is None:
        raise UserError(f"--prefer '{prefer}' is unknown; expected source or dest")
    with _bar("merging", sum(len(Store(source).names()) for source in sources)) as advance:
        done = upkeep.merge(sources, into, choice, advance)
    for sentence in done.damaged:
        _say(f"not copied, damaged: {sentence}")
    for sentence in done.replaced:
        _say(f"replaced: {sentence}")
    for sentence in done.not_replaced:
        _say(f"{'kept the one there' if choice else 'conflict'}: {sentence}")
    counts = f"{done.copied} copied, {done.identical} there already, {len(done.replaced)} replaced"
    _say(f"{counts}, {len(done.not_replaced)} kept, {len(done.damaged)} damaged; into {into}")
    if done.not_replaced and not choice:
        err.print("nothing was overwritten; --prefer source or --prefer dest decides for all conflicts")
    raise typer.Exit(1 if done.damaged or (done.not_replaced and not choice) else 0)


@app.command(epilog="Example: cl-bench results verify --results results/reference")
def verify(results: Folders = None) -> None:
    """Check all records, hashes and shapes, and recount all predictions; exit code 1 if something is wrong."""
    from cl_bench.store import Store, upkeep

    faults = 0
    for store in map(Store, folders_of(results)):
        records = len(store.names())
        with _bar("verifying", records) as advance:
            found = list(upkeep.verify(store, advance))
        for sentence in found:
            _say(sentence)
        wrong = counted(len(found), "fault") if found else "nothing wrong"
        _say(f"{store.root}: {counted(records, 'record')}, {wrong}")
        faults += len(found)
    raise typer.Exit(1 if faults else 0)


@app.command(epilog="Example: cl-bench results export --long --out counts.parquet")
def export(
    output: Annotated[Path, typer.Option("--out", help="File to write.")],
    form: Annotated[
        str | None,
        typer.Option(
            "--format",
            help="csv or parquet.",
            show_default="by the file's name",
            autocompletion=completion.one_of("csv", "parquet"),
        ),
    ] = None,
    counts: Annotated[
        bool, typer.Option("--long", help="One row per run, stage and task, with counts, instead of one row per run.")
    ] = False,
    results: Folders = None,
    method: Method = None,
    benchmark: Benchmark = None,
    backbone: Backbone = None,
    label: Label = None,
    seed: Seeds = None,
) -> None:
    """Write stored runs as one tidy table, for pandas, R or a spreadsheet."""
    chosen = form or output.suffix[1:]
    if chosen not in ("csv", "parquet"):
        raise UserError(f"cannot tell the format of '{output}'; expected --format csv or --format parquet")
    wanted = _Filter.of(method, benchmark, backbone, label, seed)
    from cl_bench.files import write_atomically
    from cl_bench.reporting.frames import export_frame, task_frame
    from cl_bench.reporting.runs import Run, collect
    from cl_bench.reporting.salvage import without_failing_runs
    from cl_bench.reporting.spreadsheets import to_csv

    folders = folders_of(results)
    found = [
        run
        for run in collect([(folder, str(folder)) for folder in folders], warn_damaged)
        if wanted.fits(
            run.record.experiment.method,
            run.protocol.benchmark,
            run.protocol.backbone,
            run.label,
            run.record.experiment.seed,
        )
    ]
    if not found:
        where = ", ".join(f"'{folder}'" for folder in folders) or f"'{default_results()}'"
        raise UserError(f"no such runs in {where}; 'cl-bench results ls' lists what is there")

    def exported(runs: Sequence[Run]) -> tuple[bytes, str]:
        """Content of the file, and its size in words."""
        table = task_frame(runs) if counts else export_frame(runs)
        held = f"{counted(len(table), 'row')} of {counted(len(runs), 'run')}"
        if chosen == "csv":
            return to_csv(table).encode(), held
        buffer = io.BytesIO()
        table.to_parquet(buffer, index=False)
        return buffer.getvalue(), held

    content, held = without_failing_runs(exported, found, warn_damaged)
    try:
        write_atomically(output, content)
    except OSError as error:
        raise UserError(f"'{output}' cannot be written ({error.strerror}); name another file") from error
    err.print(escape(f"{held}: {output}"))


@app.command(epilog="Example: cl-bench results prune --results results/runs --yes")
def prune(
    results: Annotated[
        list[Path] | None,
        typer.Option(
            "--results",
            help="Folders; may be given several times.",
            show_default=RESULTS_DEFAULT,
        ),
    ] = None,
    damaged: Annotated[
        bool, typer.Option("--damaged", help="Include damaged records that cannot be repaired.")
    ] = False,
    unfinished: Annotated[
        bool, typer.Option("--unfinished", help="Include checkpoints that no run has resumed from for 30 days.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Delete the files; without --yes they are only listed.")] = False,
) -> None:
    """List, or with --yes delete, unused files: remains of writers killed over an hour ago, and stray npz files."""
    from cl_bench.store import Store, upkeep

    number = 0
    for store in map(Store, folders_of(results or [default_results()])):
        for leftover in upkeep.leftovers(store, damaged, unfinished):
            path, reason = leftover
            try:
                if yes and not upkeep.remove(leftover):
                    continue
            except OSError as error:
                raise UserError(f"'{path}' cannot be deleted ({error.strerror}); check its permissions") from error
            _say(f"{'deleted' if yes else 'would delete'} {path}: {reason}")
            number += 1
    note = "" if yes or not number else f"; --yes deletes {'it' if number == 1 else 'them'}"
    err.print(f"{counted(number, 'file')}{note}")


@dataclass(frozen=True)
class _Filter:
    """Selection of runs; an empty field selects all."""

    methods: tuple[str, ...]
    benchmarks: tuple[str, ...]
    backbones: tuple[str, ...]
    labels: tuple[str, ...]
    seeds: frozenset[int]

    @classmethod
    def of(
        cls,
        method: list[str] | None,
        benchmark: list[str] | None,
        backbone: list[str] | None,
        label: list[str] | None,
        seed: str | None,
    ) -> _Filter:
        from cl_bench.grammar import parse_seeds

        seeds = frozenset(parse_seeds(seed, "--seed") if seed is not None else ())
        return cls(tuple(method or ()), tuple(benchmark or ()), tuple(backbone or ()), tuple(label or ()), seeds)

    def fits(self, method: str, benchmark: str, backbone: str, label: str, seed: int) -> bool:
        pairs = ((self.methods, method), (self.benchmarks, benchmark), (self.backbones, backbone), (self.labels, label))
        return all(not chosen or value in chosen for chosen, value in pairs) and (not self.seeds or seed in self.seeds)


def _sessions(record: RunRecord) -> Iterator[str]:
    """One line per session of a run, with the differences of its environment; none if it was never interrupted."""
    if record.sessions > 1 and not record.earlier_sessions:
        yield f"{record.sessions} sessions; the environments of those before the last are not recorded"
    number = 1
    for session in record.earlier_sessions:
        last = number + session.processes - 1
        which = f"session {number}" if last == number else f"sessions {number} to {last}"
        inside = "" if session.phase is None else f", phase {session.phase} and epoch {session.epoch} of the next"
        shown = _values(session.environment, record.mixed) if session.environment else "environment not recorded"
        yield f"{which}, left after {counted(session.stages, 'stage')}{inside}: {shown}"
        number = last + 1
    if record.earlier_sessions:
        yield f"session {number}, to the end: {_values(record.environment, record.mixed)}"


def _values(environment: Mapping[str, object], names: Iterable[str]) -> str:
    """Values of an environment that differ between sessions."""
    shown = [f"{name} {value_text(environment[name])}" for name in sorted(names) if name in environment]
    return ", ".join(shown) or "the same environment"


@contextmanager
def _bar(what: str, total: int) -> Iterator[Callable[[], None]]:
    """Progress bar over `total` records; silent without a terminal."""
    columns = TextColumn(what), BarColumn(bar_width=24), TextColumn("{task.completed}/{task.total}")
    with Progress(*columns, console=err, disable=not err.is_terminal, transient=True) as bars:
        task = bars.add_task(what, total=total)
        yield lambda: bars.advance(task)


def _say(text: str) -> None:
    """Print one line, with control characters escaped."""
    out.print(printable(text), soft_wrap=True, highlight=False, markup=False)
