"""The commands `cl-bench data list|prepare|verify`: list, download and check data sets."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.table import Table

from cl_bench.cli import completion
from cl_bench.cli.shared import OPTIONS, err, out, warn
from cl_bench.errors import UserError, counted, printable

if TYPE_CHECKING:
    from cl_bench.streams.types import Archive, DataSet
    from cl_bench.streams.verify import Verification

app = typer.Typer(no_args_is_help=True, help="Data sets on disk: list, download and check them.")

DataRoot = Annotated[
    Path | None,
    typer.Option("--root", help="Folder with the data sets.", show_default="CL_BENCH_DATA, else data/"),
]
Name = Annotated[
    str,
    typer.Argument(help="Data set of 'cl-bench data list', or folder:PATH.", autocompletion=completion.DATA_SET),
]
SplitList = Annotated[
    Path | None,
    typer.Option(
        "--split-list",
        help="List of training and test images: text, CSV, JSON or YAML.",
        show_default="one in the data set's folder",
    ),
]
_HEADS = {
    "count": "Numbers of images",
    "classes": "Classes",
    "domains": "Domains without images, or without those of a class",
    "empty": "Class folders without images, to be filled or removed",
    "missing": "Missing images",
    "zero-byte": "Empty (zero-byte) images",
    "truncated": "Truncated images",
    "unreadable": "Unreadable images",
    "of unknown range": "Images of unknown range, to be converted to 8 bits per channel",
    "too large": "Images with too many pixels",
    "content": "Content",
    "duplicate": "Images with the same pixels",
    "unlisted": "Images that the split list does not name, and that are not used",
    "not read": "Files that are not read",
    "file": "Files other than the published ones",
}
_SHOWN = 20


@app.command("list", epilog="Example: cl-bench data list --root /data")
def list_(root: DataRoot = None) -> None:
    """List data sets: sizes, licence, whether they are present, and what their reader was checked on."""
    from cl_bench.streams import catalogue
    from cl_bench.streams.config import existing_root
    from cl_bench.streams.verify import presence

    top = existing_root(root)
    table = Table(box=None, header_style="bold", padding=(0, 1, 0, 0))
    table.add_column("data set", no_wrap=True)
    table.add_column("classes", justify="right")
    table.add_column("train/test", justify="right", no_wrap=True)
    # Wide enough for its longest word.
    table.add_column("licence", min_width=14)
    table.add_column("present", overflow="fold")
    table.add_column("checked on", no_wrap=True)
    notes = []
    with err.status("looking ..."):
        for name in catalogue.names():
            try:
                dataset = catalogue.find(name)
            except UserError as error:
                warn(error)
                continue
            found = presence(dataset, top)
            if found.fault:
                notes.append(f"{name}: {found.fault}")
            present = f"{found.state}: {found.folder.name}" if found.folder else found.state
            sizes = f"{dataset.train:,}/{dataset.test:,}"
            row = (name, str(dataset.classes), sizes, dataset.licence, present, dataset.checked)
            table.add_row(*map(escape, row))
    out.print(table)
    _say(f"\nData folder: {top}. Any tree of class folders: folder:PATH.")
    for note in notes:
        _say(printable(f"partly there, {note}"))


@app.command(epilog="Example: cl-bench data prepare imagenet-r --root /data")
def prepare(name: Name, root: DataRoot = None) -> None:
    """Download and unpack a data set, or say what to download and where to put it; exit code 1 if incomplete."""
    from cl_bench.streams import catalogue
    from cl_bench.streams.config import data_root
    from cl_bench.streams.verify import presence, verify

    dataset = catalogue.find(name)
    if not dataset.page:
        raise UserError(f"'{name}' is data of your own, so there is nothing to get; 'cl-bench data verify' checks it")
    top = data_root(root)
    if presence(dataset, top).state == "yes":
        err.print(f"{name} is there already")
    else:
        there = (top / folder for folder in dataset.folders if (top / folder).is_dir())
        folder = next(there, top / dataset.folders[0])
        err.print(escape(f"{dataset.title}\nlicence: {dataset.licence}; official page: {dataset.page}"))
        for archive in dataset.archives:
            _get(dataset, archive, folder)
        if dataset.manual:
            err.print(escape(dataset.manual))
            err.print(escape(f"The folder is '{folder}':\n" + "\nor\n".join(dataset.layouts.values())))
        if not folder.is_dir():
            raise typer.Exit(1)
    try:
        found = verify(dataset, top, quick=True)
    except UserError as error:
        err.print(f"[yellow]not ready yet:[/] {escape(str(error))}")
        raise typer.Exit(1) from error
    _show(dataset, found, everything=False)
    raise typer.Exit(0 if found.good else 1)


@app.command("verify", epilog="Example: cl-bench data verify cifar100 --root /data")
def verify_(
    name: Name,
    root: DataRoot = None,
    split_list: SplitList = None,
    scenario: Annotated[
        str | None,
        typer.Option(
            help="Scenario of folder:PATH; with domain-incremental, its folders are domains that hold class folders.",
            show_default="the data set's",
        ),
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Do not decode the images.")] = False,
    skip_bad: Annotated[
        bool,
        typer.Option("--skip-bad", help="Do not count unreadable images as faults; a run with --skip-bad omits them."),
    ] = False,
    everything: Annotated[
        bool, typer.Option("--all", help=f"Name all findings, not only {_SHOWN} of each kind.")
    ] = False,
) -> None:
    """Check the counts, the split, every image and the content of a data set; exit code 1 if something is wrong."""
    from cl_bench.streams import catalogue
    from cl_bench.streams.verify import verify

    wanted = OPTIONS["scenario"].parse(scenario, "--scenario") if scenario is not None else None
    dataset = catalogue.find(name, domains=wanted == "domain-incremental")
    with _bars("{task.completed}/{task.total} images") as bars:
        bar = bars.add_task("decoding", total=None, visible=not quick)
        found = verify(
            dataset,
            root,
            skip_bad,
            split_list,
            quick,
            lambda done, total: bars.update(bar, completed=done, total=total),
        )
    _show(dataset, found, everything)
    raise typer.Exit(0 if found.good else 1)


class _Bar:
    """Progress bar of a download or of unpacking."""

    def __init__(self, bars: Progress, task: TaskID) -> None:
        self.bars, self.task = bars, task

    def begin(self, total: int | None) -> None:
        self.bars.reset(self.task, total=total)

    def advance(self, size: int) -> None:
        self.bars.advance(self.task, size)


def _get(dataset: DataSet, archive: Archive, folder: Path) -> None:
    from cl_bench.streams.archives import unpack
    from cl_bench.streams.download import download

    target = folder / archive.file
    with _bars() as bars:
        bar = _Bar(bars, bars.add_task(escape(f"getting {archive.file}"), total=archive.size))
        download(archive.url, target, size=archive.size, checksum=archive.checksum, page=dataset.page, progress=bar)
        if archive.unpack:
            unpack(target, folder, progress=_Bar(bars, bars.add_task(escape(f"unpacking {archive.file}"), total=None)))
    if not err.is_terminal:
        err.print(escape(f"{'got and unpacked' if archive.unpack else 'got'} {target}"))


@contextmanager
def _bars(note: str | None = None) -> Iterator[Progress]:
    """Progress bars in bytes, or with a note; silent without a terminal."""
    amount = [DownloadColumn(), TransferSpeedColumn()] if note is None else [TextColumn(note)]
    columns = TextColumn("{task.description}"), BarColumn(bar_width=24), *amount, TimeRemainingColumn()
    with Progress(*columns, console=err, disable=not err.is_terminal) as bars:
        yield bars


def _show(dataset: DataSet, found: Verification, everything: bool) -> None:
    """Print the result of a check with all findings."""
    _say(printable(f"{dataset.name} in {found.folder} ({found.layout})"))
    images = f"{found.train:,} training and {counted(found.test, 'test image')}"
    _say(f"{counted(found.classes, 'class')}, {images}")
    if found.published:
        note = "as published"
    elif dataset.split_hashes:
        note = f"not {' or '.join(dataset.split_hashes)}; do not compare with results on those"
    else:
        note = "nothing published to compare with"
    _say(f"split: {found.split} ({note})")
    same = found.content is not None and found.content == dataset.content_hash
    if found.content is not None:
        known = "as published" if same else "expected another" if dataset.content_hash else "nothing to compare with"
        _say(f"content: {found.content[:12]} ({known})")
    for kind, group in groupby(found.findings, key=lambda finding: finding.kind):
        listed = list(group)
        if kind == "duplicate" and same and not everything:
            _say(f"{_HEADS[kind]}: {len(listed)} groups, as published (--all names them)")
            continue
        _say(f"{_HEADS[kind]}: {len(listed)}{f' ({found.not_read})' if kind == 'not read' else ''}")
        shown = listed if everything else listed[:_SHOWN]
        for finding in shown:
            _say(f"  {printable(finding.text)}")
        if len(shown) < len(listed):
            _say(f"  ... and {len(listed) - len(shown)} more (--all names them)")
    faults = sum(finding.fault for finding in found.findings)
    _say("nothing wrong" if found.good else f"{faults} fault{'s' if faults > 1 else ''}")


def _say(text: str) -> None:
    out.print(text, soft_wrap=True, highlight=False, markup=False)
