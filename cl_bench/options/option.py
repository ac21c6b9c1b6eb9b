"""What one option is, and how a list of options is read from texts and written as a command line."""

from __future__ import annotations

import itertools
import math
import re
import shlex
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal, Self

from cl_bench import grammar
from cl_bench.errors import UserError, clipped, unknown_name
from cl_bench.grammar import MethodSpec, parse_yes_or_no

Panel = Literal["What to run", "Data", "Backbone", "Hyper-parameters", "Trial", "Where and how"]
"""Headings under which `--help` and the docs list options, in this order."""


@dataclass(frozen=True)
class Option:
    """One option: how it is parsed, shown and described.

    Attributes:
        panel: heading under which the option is listed.
        help: one sentence.
        parse: reads one text.
        default: the default in words, for help texts; empty if none is shown.
        kind: `text` takes one value, `list` joins its values, `alternatives` makes runs of each, `flag` is a switch.
        metavar: placeholder of the value in `--help`.
        no: flag that switches the option off; empty if there is none.
        flag: name on the command line, with its dashes.
    """

    panel: Panel
    help: str
    parse: grammar.Parse
    default: str
    kind: Literal["text", "list", "alternatives", "flag"]
    metavar: str
    no: str
    flag: str = ""


def option(
    panel: Panel,
    help_: str,
    parse: grammar.Parse,
    default: Any = None,
    *,
    shown: str = "",
    kind: Literal["text", "list", "alternatives", "flag"] = "text",
    metavar: str = "TEXT",
    no: str = "",
) -> Any:
    """Declare a field of `Options`, described as an `Option`; `shown` is its default in words."""
    if not shown and default not in (None, False, MISSING) and not isinstance(default, tuple):
        shown = f"{default:g}" if isinstance(default, float) else str(default)
    described = Option(panel, help_, parse, shown, kind, metavar, no)
    return field(default=default, metadata={"option": described})


def flag(panel: Panel, help_: str) -> Any:
    """Declare a field of `Options` that is a switch, off by default."""
    return option(panel, help_, parse_yes_or_no, False, kind="flag")


def parse_methods(text: str, flag: str) -> tuple[MethodSpec, ...]:
    """The methods of a list such as `sdlora[rank=4|8],coda`."""
    return tuple(grammar.parse_methods(text, flag))


def parse_seeds(text: str, flag: str) -> tuple[int, ...]:
    """The seeds of a list such as `0-4,7`."""
    return tuple(grammar.parse_seeds(text, flag))


def parse_order(text: str, flag: str) -> str:
    """A named order, or the path of a file; the file is read once the classes are known."""
    return text if grammar.is_order_file(text) else grammar.parse_order(text)


def parse_setting(text: str, flag: str) -> str:
    """The text itself, once it is known to be a pair `NAME=VALUE`."""
    grammar.parse_pair(text, f"{flag} '{text}'")
    return text


def parse_minutes(text: str, flag: str) -> int:
    """Minutes of a time in one of Slurm's forms: M, M:SS, H:MM:SS, D-H, D-H:MM or D-H:MM:SS; seconds are rounded up.

    Raises:
        UserError: the text has another form, or the time is 0.
    """
    read = re.fullmatch(r"(?:(\d{1,3})-)?(\d{1,6})(?::(\d{1,2}))?(?::(\d{1,2}))?", text)
    total = 0
    if read:
        parts = [int(part) for part in read.groups()[1:] if part is not None]
        if read[1] is None and len(parts) < 3:
            parts = [0, *parts]
        hours, minutes, seconds = [*parts, 0, 0][:3]
        total = math.ceil(60 * (24 * int(read[1] or 0) + hours) + minutes + seconds / 60)
    if total == 0:
        raise UserError(f"{flag} '{clipped(text)}' is no time; expected minutes or D-HH:MM:SS, e.g. 90 or 1-12:00:00")
    return total


class Options:
    """Reading and writing of options; each field of a subclass is an option."""

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> Self:
        """Read options from texts, numbers, booleans, or lists of these, as suite files and Python give them.

        Args:
            given: values by field name; a missing option has its default.

        Raises:
            UserError: an option does not exist, a value cannot be read, or a required option is missing.
        """
        read = cls.read(given)
        for one in fields(cls):  # type: ignore[arg-type]
            if one.name not in read and one.default is MISSING:
                raise UserError(f"option '{one.name}' is missing; say what to run, e.g. {one.name}: sdlora")
        return cls(**read)

    @classmethod
    def read(cls, given: Mapping[str, Any]) -> dict[str, Any]:
        """Values of the given options by name, without defaults (see `of`)."""
        known = options_of(cls)
        for name in given:
            if name not in known:
                raise unknown_name("option", str(name), known)
        return {name: _read(known[name], value) for name, value in given.items()}

    def given(self) -> dict[str, Any]:
        """Values of the options that differ from their defaults, by name."""
        return {
            one.name: getattr(self, one.name)
            for one in fields(self)  # type: ignore[arg-type]
            if getattr(self, one.name) != one.default
        }

    def flags(self, without: Iterable[str] = ()) -> tuple[str, ...]:
        """Options that differ from their defaults, as words of a command line."""
        parts: list[str] = []
        for name, value in self.given().items():
            if name in without:
                continue
            option = options_of(type(self))[name]
            if option.kind == "flag":
                parts.append(option.flag if value else option.no)
                continue
            for text in _texts_of(name, value, option):
                parts += [option.flag, text]
        return tuple(parts)

    def command(self) -> str:
        """The `cl-bench run` command line with the same options."""
        return shlex.join(["cl-bench", "run", *self.flags()])


def _read(option: Option, value: Any) -> Any:
    several = list(value) if isinstance(value, list | tuple | range) else [value]
    texts = [_text(one, option) for one in several]
    if option.kind == "flag":
        return parse_yes_or_no(texts[0] if len(texts) == 1 else "", option.flag)
    if not texts:
        raise UserError(f"{option.flag} is an empty list; give a value or leave it out")
    if option.kind == "text":
        # A list of seeds is one value.
        return option.parse(",".join(texts), option.flag)
    read = [option.parse(text, option.flag) for text in texts]
    return tuple(itertools.chain(*read)) if option.parse is parse_methods else tuple(read)


def _text(value: Any, option: Option) -> str:
    if isinstance(value, bool) and option.parse is parse_yes_or_no:
        return "yes" if value else "no"
    if isinstance(value, str | float | Path) or (isinstance(value, int) and abs(value) < 10**18):
        return str(value).lower() if isinstance(value, bool) else str(value)
    shown = "nothing" if value is None else "too large a number" if isinstance(value, int) else clipped(repr(value))
    raise UserError(f"{option.flag} cannot be read ({shown}); expected a text, a number or a list of them")


def _texts_of(name: str, value: Any, option: Option) -> list[str]:
    """Texts that `_read` turns into this value."""
    if name == "methods":
        return [",".join(map(str, value))]
    if name == "seeds":
        return [grammar.format_seeds(value)]
    if name == "tasks":
        return [grammar.format_tasks(tasks) for tasks in value]
    if option.kind == "text" and isinstance(value, tuple):
        return [",".join(value)]
    several = value if option.kind in ("list", "alternatives") else [value]
    return [_text(one, option) if isinstance(one, bool) else f"{one}" for one in several]


def options_of(cls: type[Options]) -> dict[str, Option]:
    """Options of a class by field name, in their order, with their flags."""
    return {
        one.name: replace(one.metadata["option"], flag=f"--{one.name.replace('_', '-')}")
        for one in fields(cls)  # type: ignore[arg-type]
    }
