"""The command line: `cl-bench run`, and all the other commands that `cl-bench --help` lists."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape
from typer.core import TyperGroup

from cl_bench import __version__
from cl_bench.cli import data, ls, study
from cl_bench.cli import report as report_cli
from cl_bench.cli import results as results_cli
from cl_bench.cli import run as run_cli
from cl_bench.cli.results import RESULTS
from cl_bench.cli.shared import MethodFiles, err, out, quiet_imports
from cl_bench.errors import UserError


class _Interrupted(Exception):
    """Ctrl-C under another name: typer swallows `KeyboardInterrupt`, and says nothing or "Aborted."."""


class _Commands(TyperGroup):
    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as error:
            raise _Interrupted from error


app = typer.Typer(
    cls=_Commands,
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    help="Continual learning on pre-trained Vision Transformers, measured so that numbers can be trusted.",
)
app.add_typer(ls.app, name="ls")
app.add_typer(data.app, name="data")
app.add_typer(results_cli.app, name="results")
report_cli.add_to(app)
run_cli.add_to(app)
study.add_to(app)


def main() -> None:
    """Entry point: bad input ends in one sentence and exit code 2."""
    try:
        app()
    except UserError as error:
        err.print(f"[bold red]error:[/] {escape(str(error))}")
        sys.exit(2)
    except (KeyboardInterrupt, _Interrupted):
        err.print("interrupted; what was finished is stored, and the same command goes on from there")
        sys.exit(130)


@app.command()
def show(
    name: Annotated[str, typer.Argument(help="A method, benchmark, backbone, or the (start of the) key of a run.")],
    benchmark: Annotated[str, typer.Option(help="Benchmark whose recipe a method is shown with.")] = "icons-100",
    backbone: Annotated[str | None, typer.Option(help="And backbone.", show_default="the benchmark's")] = None,
    results: Annotated[Path, typer.Option(help="Results folder in which runs are looked up.")] = RESULTS,
    method_file: MethodFiles = None,
) -> None:
    """Show one method, benchmark, backbone or stored run in full."""
    if results_cli.show_run(name, [results]):
        return
    with quiet_imports():
        from cl_bench.cli.console import show_thing

    show_thing(name, benchmark, backbone, method_file or [], out)


@app.command("new-method")
def new_method(
    name: Annotated[str, typer.Argument(help="Name of the method, a Python identifier.")],
    folder: Annotated[Path, typer.Option(help="Where to write NAME.py.")] = Path(),
) -> None:
    """Write a small working method to start from."""
    import re
    from importlib.resources import files
    from string import Template

    if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
        raise UserError(
            f"'{name}' cannot name a method; expected a letter, then letters, digits and _, all lower-case ASCII, "
            "such as my_method"
        )
    path = folder / f"{name}.py"
    template = Template((files("cl_bench") / "assets" / "new_method.py.txt").read_text())
    class_name = "".join(part.capitalize() for part in name.split("_"))
    try:
        with path.open("x") as file:
            file.write(template.substitute(name=name, class_name=class_name))
    except FileExistsError as error:
        raise UserError(f"'{path}' exists already; remove it or choose another name") from error
    except OSError as error:
        raise UserError(f"'{path}' cannot be written ({error.strerror})") from error
    out.print(f"wrote {path}\ntry it: cl-bench run --method-file {path} --methods {name}", highlight=False)


@app.command()
def version() -> None:
    """Print the version."""
    out.print(__version__, highlight=False)


if __name__ == "__main__":
    main()
