"""The command `cl-bench cite`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from cl_bench.cli import completion
from cl_bench.cli.results import folders_of, warn_damaged
from cl_bench.cli.shared import err, out, takes
from cl_bench.store import Store


@takes("method_file")
def cite(
    given: Mapping[str, Any],
    names: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="NAME",
            help=r"Methods, with options ('ranpac\[adaptation=ssf]'), benchmarks and backbones; none: cl-bench alone.",
            show_default=False,
            autocompletion=completion.CITABLE,
        ),
    ] = None,
    results: Annotated[
        list[Path] | None,
        typer.Option(help="Also all that the runs in this folder used.", show_default=False),
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="Every entry of the bibliography.")] = False,
) -> None:
    """Print the BibTeX entries of methods, data sets and backbones, and of cl-bench itself."""
    from cl_bench.reporting.citations import Citations

    cited = Citations([Path(file) for file in given.get("method_file", ())])
    cited.add_names(names or ())
    if results:
        cited.add_records(record for folder in folders_of(results) for record in Store(folder).records(warn_damaged))
    if everything:
        cited.add_everything()
    for note in cited.notes:
        err.print(note, markup=False)
    out.print(cited.bibtex, end="", markup=False, highlight=False, soft_wrap=True)
