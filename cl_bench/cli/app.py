"""The command-line program: its commands, and how errors and interrupts end it."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from contextlib import suppress
from typing import Annotated, Any

import typer
from rich.markup import escape
from typer.core import TyperGroup

from cl_bench import __version__
from cl_bench.cli import data, ls, results
from cl_bench.cli.audit import audit
from cl_bench.cli.bench import bench
from cl_bench.cli.cite import cite
from cl_bench.cli.compare import compare
from cl_bench.cli.errors import errors
from cl_bench.cli.figure import figure
from cl_bench.cli.new_method import new_method
from cl_bench.cli.repeat import repeat
from cl_bench.cli.report import report
from cl_bench.cli.run import run
from cl_bench.cli.shared import err, out
from cl_bench.cli.show import show
from cl_bench.cli.table import table
from cl_bench.cli.tune import tune
from cl_bench.errors import UserError, printable, unknown_name
from cl_bench.running import memory
from cl_bench.running.signals import INTERRUPTED, stop_command_on_signal


class _Interrupted(Exception):
    """Stands for Ctrl-C, because typer swallows `KeyboardInterrupt` and prints nothing or "Aborted."."""


class _Commands(TyperGroup):
    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as error:
            raise _Interrupted from error


app = typer.Typer(
    cls=_Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    help="Continual learning on pre-trained Vision Transformers, measured so that numbers can be trusted.",
)
app.add_typer(ls.app, name="ls")
app.add_typer(data.app, name="data")
app.add_typer(results.app, name="results")
app.command(epilog="Example: cl-bench report --results results/reference --pictures png,pdf")(report)
app.command(epilog="Example: cl-bench table sdlora-table2 --benchmark icons-100 --format tex")(table)
app.command(epilog="Example: cl-bench figure sdlora-fig2 --benchmark icons-100 --format pdf")(figure)
app.command(epilog=r"Example: cl-bench compare sdlora inflora 'coda\[align=true]' --margin 1")(compare)
app.command(epilog="Example: cl-bench errors sdlora --protocol icons-100-10x10 --out reports/errors")(errors)
app.command(epilog=r"Example: cl-bench run --methods 'sdlora\[rank=4|8],coda' --seeds 0-4")(run)
app.command(epilog="Example: cl-bench bench --methods sdlora,coda --device cpu")(bench)
app.command(epilog=r"Example: cl-bench tune --methods 'sdlora,finetune\[loss=masked]' --budget 16")(tune)
app.command(epilog=r"Example: cl-bench audit sdlora 'l2p\[as_published_leaky=true]'")(audit)
app.command(epilog="Example: cl-bench repeat 08f4ef8b --results results/reference")(repeat)
app.command()(show)
app.command(epilog="Example: cl-bench cite sdlora,coda imagenet-r vit_base_patch16_224.augreg_in21k > papers.bib")(cite)
app.command("new-method")(new_method)


def _print_version(wanted: bool) -> None:
    if wanted:
        version()
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", is_eager=True, callback=_print_version)
    ] = False,
) -> None:
    pass


@app.command()
def version() -> None:
    """Print the version."""
    out.print(__version__, highlight=False)


def main() -> None:
    """Entry point. Invalid input, Ctrl-C and SIGTERM each print one sentence; exit codes are 2, 130 and 143."""
    with stop_command_on_signal() as exit_code:
        try:
            sys.exit(app(prog_name="cl-bench", standalone_mode=False) or 0)
        except UserError as error:
            _refuse(str(error))
        except _ClickException as error:
            if not error.format_message():
                # A command without arguments: its help has been printed instead.
                sys.exit(2)
            _refuse(_sentence(error))
        except (KeyboardInterrupt, _Interrupted):
            # After SIGHUP, stderr may be closed.
            with suppress(OSError):
                err.print(INTERRUPTED)
            sys.exit(exit_code())
        except Exception as error:
            if not memory.is_exhausted(error):
                raise
            err.print(f"[bold red]error:[/] {escape(memory.describe(error))}")
            sys.exit(1)


_UsageError: Any = typer.BadParameter.__base__
_ClickException: Any = _UsageError.__base__


def _refuse(sentence: str) -> None:
    err.print(f"[bold red]error:[/] {escape(printable(sentence))}")
    sys.exit(2)


def _sentence(error: Any) -> str:
    """Message of the command-line parser as one sentence."""
    ctx = getattr(error, "ctx", None)
    if (name := getattr(error, "option_name", None)) and ctx is not None:
        flags = [flag for parameter in ctx.command.params for flag in parameter.opts if flag.startswith("--")]
        (requested,) = _field_names([name])
        return str(unknown_name("option", requested, _field_names(flags)))
    message = str(error.format_message()).strip().rstrip(".")
    link = " See" if message.endswith("?") else "; see"
    return f"{message[:1].lower()}{message[1:]}{link} '{ctx.command_path if ctx else 'cl-bench'} --help'"


def _field_names(flags: Iterable[str]) -> list[str]:
    """Names of options in suite files and Python, so that all messages are the same."""
    return [flag.lstrip("-").replace("-", "_") for flag in flags]
