"""The command line and the run options in Markdown, from the parser itself and the list it is made from."""

from __future__ import annotations

import builtins
import inspect
import types
import typing
from collections.abc import Iterator, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

import typer
from rich.text import Text

from cl_bench.cli.app import app
from cl_bench.options import ExecutionOptions, Option, RunOptions, options_of
from tools.site.markup import code, plain, several, table


def commands() -> str:
    """All commands with their arguments and options, one section each."""
    root = typer.main.get_command(app)
    return "\n".join(_section(context) for context in _contexts(typer.Context(root, info_name="cl-bench")))


def _contexts(context: Any) -> Iterator[Any]:
    """Contexts of all commands below a group, in the order of `--help`."""
    for name in context.command.list_commands(context):
        command = context.command.get_command(context, name)
        inner = typer.Context(command, info_name=name, parent=context)
        if hasattr(command, "commands"):
            yield from _contexts(inner)
        else:
            yield inner


def _section(context: Any) -> str:
    command = context.command
    parts = [f"## {context.command_path}\n", *(plain(part) + "\n" for part in _text(command.help).split("\n\n"))]
    own = [parameter for parameter in command.params if not getattr(parameter, "hidden", False)]
    arguments = [one for one in own if one.param_type_name == "argument"]
    usage = [context.command_path, *(_argument(one, context) for one in arguments)]
    parts.append(f"```\n{' '.join(usage)} [OPTIONS]\n```\n")
    if arguments:
        rows = [(code(_value_name(one, context)), plain(_text(one.help)), _default(one)) for one in arguments]
        parts.append(table(("argument", "meaning", "default"), rows))
    panels: dict[str, list[Any]] = {}
    for one in own:
        if one.param_type_name == "option":
            panels.setdefault(getattr(one, "rich_help_panel", None) or "Options", []).append(one)
    for panel, options in panels.items():
        rows = [(code(_flags(one, context)), plain(_text(one.help)), _default(one)) for one in options]
        parts.append(f"**{panel}**\n")
        parts.append(table(("option", "meaning", "default"), rows))
    if command.epilog:
        head, _, example = _text(command.epilog).partition(": ")
        parts.append(f"{head}:\n\n```\n{example}\n```\n")
    return "\n".join(parts)


def _text(markup: str | None) -> str:
    """What a terminal shows of a help text."""
    return Text.from_markup(inspect.cleandoc(markup or "")).plain


def _flags(option: Any, context: Any) -> str:
    names = ", ".join(option.opts) + "".join(f" / {name}" for name in option.secondary_opts)
    return names if option.is_flag else f"{names} {_value_name(option, context)}"


def _argument(argument: Any, context: Any) -> str:
    name = _value_name(argument, context) + ("..." if argument.nargs != 1 else "")
    return name if argument.required else f"[{name}]"


_NAMES = {"str": "TEXT", "path": "PATH", "Path": "PATH", "float": "X", "int": "N"}


def _value_name(parameter: Any, context: Any) -> str:
    """What stands for a value: the word that the program gives it, an argument's name, or its type."""
    if parameter.metavar or parameter.param_type_name == "argument":
        return parameter.metavar or parameter.name.upper()
    kind = parameter.display_type(context).strip("<>").removeprefix("list[").removesuffix("]")
    return _NAMES.get(kind, kind.upper())


def _default(parameter: Any) -> str:
    if parameter.required:
        return "required"
    shown, value = getattr(parameter, "show_default", True), parameter.default
    if isinstance(shown, str):
        return plain(_text(shown))
    if shown is False or value is None or value is False or callable(value):
        return ""
    values = value if isinstance(value, list | tuple) else [value]
    return ", ".join(code(str(each)) for each in values)


def options() -> str:
    """Every option of a run as the command line, suite files and Python have it."""
    both = ((RunOptions, True), (ExecutionOptions, False))
    panels: dict[str, list[Sequence[str]]] = {}
    for cls, in_suites in both:
        hints = get_type_hints(cls)
        for one in fields(cls):
            option = options_of(cls)[one.name]
            flag = " / ".join(filter(None, (option.flag, option.no)))
            name = code(one.name) + ("" if in_suites else " (not in suites)")
            cells = (code(flag), name, kind(hints[one.name], option), plain(option.default), plain(option.help))
            panels.setdefault(option.panel, []).append(cells)
    heads = ("command line", "suite file, Python", "value", "default", "meaning")
    return "\n".join(f"## {panel}\n\n{table(heads, rows)}" for panel, rows in panels.items())


_KINDS = {"methods": "methods", "seeds": "seeds", "tasks": "tasks", "set": "setting"}
"""Options with a grammar of their own, and what their value is called."""


def kind(hint: Any, option: Option) -> str:
    """What values an option takes, in words."""
    name = option.flag.removeprefix("--")
    single = get_args(hint)[0] if get_origin(hint) is tuple else hint
    kinds = [_KINDS[name]] if name in _KINDS else [value(part) for part in _alternatives(single)]
    several = {"list": "; several: a list", "alternatives": "; several: each runs"}.get(option.kind, "")
    return f"{' or '.join(dict.fromkeys(kinds))}{several}"


def _alternatives(hint: Any) -> list[Any]:
    """The types of a union without None, which stands for an option that is not given."""
    union = get_origin(hint) in (typing.Union, types.UnionType)
    return [part for part in get_args(hint) if part is not types.NoneType] if union else [hint]


_LIMITS = {"gt": ">", "ge": "≥", "lt": "<", "le": "≤"}


def value(hint: Any) -> str:
    """A type in words, for readers who write its values on a command line or in a file."""
    arguments = get_args(hint)
    match get_origin(hint):
        case typing.Annotated:
            limits = [
                f"{sign} {getattr(part, name):g}"
                for part in arguments[1:]
                for name, sign in _LIMITS.items()
                if hasattr(part, name)
            ]
            return plain(" ".join([value(arguments[0]), *limits]))
        case typing.Literal:
            return ", ".join(code(str(choice)) for choice in arguments)
        case typing.Union | types.UnionType:
            parts = [value(part) for part in arguments if part is not types.NoneType]
            return " or ".join(dict.fromkeys([*parts, *(["none"] if types.NoneType in arguments else [])]))
        case builtins.tuple:
            return f"list of {several(value(arguments[0]))}"
    return {bool: "yes or no", int: "whole number", float: "number", Path: "path"}.get(hint, "text")
