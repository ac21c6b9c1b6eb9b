"""Helpers of all commands: consoles, options from the common list, and slow imports."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console, ConsoleOptions, RenderableType
from rich.markup import escape
from rich.segment import Segment

from cl_bench.cli import completion
from cl_bench.errors import printable
from cl_bench.options import ExecutionOptions, Option, RunOptions, options_of
from cl_bench.running.imports import quiet_imports
from cl_bench.running.progress_bars import RunBars

if TYPE_CHECKING:
    from rich.progress import Progress


class _PlainConsole(Console):
    """Console that escapes control characters, which names and results of others may contain.

    Line ends are kept, because they lay out the text.
    """

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterator[Segment]:
        for segment in super().render(renderable, options):
            if segment.control or segment.text.isprintable():
                yield segment
            else:
                lines = map(printable, segment.text.split("\n"))
                yield Segment("\n".join(lines), segment.style)


# Emoji are off: a name such as `a:fire:b` is printed as it is.
out = _PlainConsole(emoji=False)
err = _PlainConsole(stderr=True, highlight=False, soft_wrap=True, emoji=False)

OPTIONS = options_of(RunOptions) | options_of(ExecutionOptions)
"""Every option of `cl-bench run`, by field name."""


def takes(*names: str, **defaults: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Add options of the common list to a command, in addition to its own parameters.

    The command receives the given options as its first argument: texts by name (see `RunOptions.of`).

    Args:
        names: fields of `RunOptions` and `ExecutionOptions`.
        defaults: defaults of this command that differ from the list, by name.
    """

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        _, *parameters = inspect.signature(command, eval_str=True).parameters.values()
        own = [one.replace(kind=inspect.Parameter.KEYWORD_ONLY) for one in parameters]
        listed = [_parameter(name, OPTIONS[name], defaults.get(name)) for name in names]

        @functools.wraps(command)
        def call(**arguments: Any) -> None:
            given = {name: arguments.pop(name) for name in names}
            command({name: value for name, value in given.items() if value not in (None, [])}, **arguments)

        # Typer reads the parameters and their types from these attributes.
        call.__dict__.pop("__wrapped__")
        call.__signature__ = inspect.Signature([*own, *listed])  # type: ignore[attr-defined]
        call.__annotations__ = {one.name: one.annotation for one in (*own, *listed)}
        return call

    return decorate


def warn(error: Exception | str) -> None:
    """Print a warning line to stderr."""
    err.print(f"[yellow]warning:[/] {escape(' '.join(str(error).split()))}")


def _parameter(name: str, option: Option, default: str | None) -> inspect.Parameter:
    flags = [option.flag] if option.kind != "flag" or not option.no else [f"{option.flag}/{option.no}"]
    details: dict[str, Any] = {
        "help": escape(option.help),
        "rich_help_panel": option.panel,
        "show_default": escape(default or option.default) or False,
    }
    if option.kind == "flag":
        kind: Any = bool | None
    else:
        kind = str | None if option.kind == "text" else list[str] | None
        details["metavar"] = option.metavar
        details["autocompletion"] = completion.of_option(name, option)
    value: Any = default if default is None or option.kind == "text" else [default]
    annotation = Annotated[kind, typer.Option(*flags, **details)]
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=value, annotation=annotation)


def split_given(given: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Split given options into fields of `RunOptions` and of `ExecutionOptions`."""
    run, execution = options_of(RunOptions), options_of(ExecutionOptions)
    return {n: v for n, v in given.items() if n in run}, {n: v for n, v in given.items() if n in execution}


@contextmanager
def loading() -> Iterator[None]:
    """Show a status during imports of torch, timm and avalanche, which take seconds; use it only where needed."""
    with err.status("loading torch, timm and avalanche ..."), quiet_imports():
        yield


def run_progress(bars: Progress, runs: int) -> RunBars:
    """Progress view of several runs in these bars."""
    return RunBars(bars, runs, lambda line: err.print(escape(line)), warn)
