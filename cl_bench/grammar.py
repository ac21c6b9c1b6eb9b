"""Parsers of option values: methods with alternatives, seeds, tasks, class orders, hyper-parameters.

Every parser takes a text, returns a typed value, and raises a `UserError` that names the option.
"""

from __future__ import annotations

import errno
import itertools
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cl_bench.errors import UserError, clipped, unknown_name
from cl_bench.experiment import MAX_SEED, NAMED_ORDER, Tasks

Parse = Callable[[str, str], Any]
"""Maps (text, flag of the option) to a value; raises UserError."""
MAX_ROWS = 1_000
"""Largest number of rows (methods with their options, streams, backbones) of one command."""
PICTURES = ("png", "pdf", "svg")
_NAMES = re.compile(r"(?:[^,\[\]]|\[[^\]]*\]?|\])+")
_SPEC = re.compile(r"\s*([A-Za-z_][\w-]*)\s*(?:\[([^\[\]]*)\])?\s*(?:,|$)")


@dataclass(frozen=True)
class MethodSpec:
    """One requested method with its options, e.g. `sdlora[rank=8]`; values are unparsed texts."""

    name: str
    options: dict[str, str]

    def __str__(self) -> str:
        options = ",".join(f"{name}={value}" for name, value in self.options.items())
        return f"{self.name}[{options}]" if options else self.name


def parse_methods(text: str, what: str = "--methods") -> list[MethodSpec]:
    """Parse methods such as `sdlora[rank=4|8,lr=0.1],coda`; alternatives separated by `|` span a grid.

    Args:
        text: methods with their options, separated by commas.
        what: name of the input in messages.

    Raises:
        UserError: the text does not follow the grammar, or names no method.
    """
    specs: list[MethodSpec] = []
    position, where = 0, f"{what} '{clipped(text, 1000)}'"
    while position < len(text):
        match = _SPEC.match(text, position)
        if match is None:
            raise UserError(
                f"{where} cannot be read from '{clipped(text[position:], 1000)}' on; "
                "expected NAME or NAME[key=value,key=a|b], separated by commas, e.g. 'sdlora[rank=4|8],coda'"
            )
        position = match.end()
        options = [pair for pair in (match[2] or "").split(",") if pair.strip()]
        if len(options) > MAX_ROWS:
            raise UserError(f"{where}: '{match[1]}' has {len(options):,} options; a method has a few dozen at most")
        pairs = [parse_pair(pair, where) for pair in options]
        alternatives = [[(name, value.strip()) for value in values.split("|")] for name, values in pairs]
        if len({name for name, _ in pairs}) < len(pairs) or not all(v for values in alternatives for _, v in values):
            raise UserError(f"{where}: '{match[2]}' sets an option twice or to nothing; write key=a|b,other=c")
        # Counted before they are made: nine options of nine values are 387 million rows.
        check_rows(len(specs) + math.prod(map(len, alternatives)), where)
        specs += [MethodSpec(match[1], dict(choice)) for choice in itertools.product(*alternatives)]
    if not specs:
        raise UserError(f"{what} is empty; expected e.g. 'sdlora,coda'")
    return specs


def split_names(text: str) -> list[str]:
    """Split a list at its commas, except those in brackets, which belong to the options of a method; no empty parts."""
    return [part.strip() for part in _NAMES.findall(text) if part.strip()]


def check_rows(rows: int, what: str) -> None:
    """Raise `UserError` if the number of rows exceeds `MAX_ROWS`.

    Args:
        rows: number of rows: methods with their options, times streams, times backbones.
        what: the input that requests them, for messages.
    """
    if rows > MAX_ROWS:
        number = f"{rows:,}" if rows < 10**15 else "more than 10^15"
        raise UserError(f"{what} asks for {number} rows, and a command takes {MAX_ROWS:,}; name fewer alternatives")


def parse_settings(settings: Sequence[str], methods: Sequence[str]) -> dict[str, dict[str, str]]:
    """Parse `--set` values into options per method.

    `sdlora.rank=8` sets an option of one method, `lr=0.1` of all. In any order, the setting for one method wins.

    Raises:
        UserError: a setting is not `key=value`, or names a method that is not listed.
    """
    options: dict[str, dict[str, str]] = {name: {} for name in methods}
    pairs = [parse_pair(setting, f"--set '{setting}'") for setting in settings]
    for key, value in sorted(pairs, key=lambda pair: "." in pair[0]):
        method, dot, field = key.rpartition(".")
        if dot and method not in options:
            raise unknown_name("method in --set", method, methods, "It must be one of --methods.")
        for name in [method] if dot else methods:
            options[name][field] = value
    return options


def parse_seeds(text: str, what: str = "--seeds") -> list[int]:
    """Parse seeds such as `0-4` or `0,2,5`.

    Args:
        text: numbers and rising ranges, separated by commas.
        what: name of the input in messages.

    Raises:
        UserError: the text is not of this form, a range is empty, or a seed is too large.
    """
    seeds: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*([0-9]+)\s*(?:-\s*([0-9]+)\s*)?", part)
        # Python refuses to read numbers of thousands of digits.
        if match is not None and (len(match[1]) > 20 or len(match[2] or "") > 20 or int(match[2] or 0) > MAX_SEED):
            raise UserError(f"{what} '{clipped(text)}' is out of range; seeds are at most {MAX_SEED}")
        if match is None or int(match[2] or match[1]) < int(match[1]):
            raise UserError(f"{what} '{text}' cannot be read; expected numbers and rising ranges, e.g. 0-4 or 0,2,5")
        if int(match[1]) > MAX_SEED:
            raise UserError(f"{what} '{text}' is out of range; seeds are at most {MAX_SEED}")
        if len(seeds) + int(match[2] or match[1]) - int(match[1]) >= 10_000:
            raise UserError(f"{what} '{text}' asks for more than 10,000 seeds; name fewer")
        seeds += range(int(match[1]), int(match[2] or match[1]) + 1)
    return list(dict.fromkeys(seeds))


def format_seeds(seeds: Sequence[int]) -> str:
    """Shortest text that `parse_seeds` reads as these seeds, with rising runs as ranges: `0-4,7`."""
    runs: list[list[int]] = []
    for seed in seeds:
        if runs and seed == runs[-1][-1] + 1:
            runs[-1].append(seed)
        else:
            runs.append([seed])
    return ",".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)


def parse_tasks(text: str, what: str = "--tasks") -> Tasks:
    """Parse a number of equal tasks, `10`, or the number of classes of each task: `40,30,30` or `50,5x10`.

    Raises:
        UserError: the text is not of this form.
    """
    parts = [re.fullmatch(r"\s*(?:([0-9]{1,6})\s*x\s*)?([0-9]{1,6})\s*", part) for part in text.split(",")]
    pairs = [(int(part[1] or 1), int(part[2])) for part in parts if part is not None]
    if len(pairs) < len(parts) or not all(count and size for count, size in pairs):
        raise UserError(
            f"{what} '{text}' cannot be read; expected a number of tasks, e.g. 10, or the number of classes of each, "
            "e.g. 40,30,30 or 50,5x10 (50, then 5 tasks of 10)"
        )
    if "," not in text and "x" not in text:
        return pairs[0][1]
    if sum(count for count, _ in pairs) > 10_000:
        raise UserError(f"{what} '{text}' asks for more than 10,000 tasks; name fewer")
    return _shortest([size for count, size in pairs for _ in range(count)])


def format_tasks(tasks: Tasks) -> str:
    """Text that `parse_tasks` reads as these tasks."""
    return str(tasks) if isinstance(tasks, int) else ",".join(map(str, tasks))


def _shortest(sizes: Sequence[int]) -> Tasks:
    """Number of tasks if all have the same size, else their sizes; a second spelling would make a second key."""
    return len(sizes) if len(set(sizes)) == 1 else tuple(sizes)


def parse_order(text: str) -> str:
    """Check the name of a class order: `natural` or `permutation:K`.

    Raises:
        UserError: the text is neither.
    """
    if not re.fullmatch(NAMED_ORDER, text) or len(text) > 40 or int(text.partition(":")[2] or 0) > MAX_SEED:
        raise UserError(
            f"--order '{text}' is no class order; expected natural, permutation:K with K at most {MAX_SEED}, or a file "
            "with one class per line"
        )
    return text


def is_order_file(text: str) -> bool:
    """Whether the text is the path of an existing file."""
    try:
        return Path(text).is_file()
    except (OSError, ValueError):
        # Too long for a path, or with characters that no path has.
        return False


def parse_pair(text: str, where: str) -> tuple[str, str]:
    """Split `key=value`; `where` begins the message of the `UserError` for other texts."""
    key, equals, value = (part.strip() for part in text.partition("="))
    if not equals or not key or not value:
        raise UserError(f"{where}: '{text}' is not of the form key=value")
    return key, value


# --- single values ----------------------------------------------------------------------------------------------


def parse_text(text: str, flag: str) -> str:
    """Parse any text that is not empty."""
    if not text.strip():
        raise UserError(f"{flag} is empty; give a value or leave it out")
    return text


def parse_path(text: str, flag: str) -> Path:
    """Parse a path, which need not exist."""
    path = Path(parse_text(text, flag))
    try:
        path.lstat()
    except ValueError as error:
        raise UserError(f"{flag} '{clipped(text)}' can be no path ({error}); mend it") from error
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            raise UserError(f"{flag} '{clipped(text)}' can be no path ({error.strerror}); mend it") from error
    return path


@dataclass(frozen=True)
class OneOf:
    """Parser of one of several names.

    Attributes:
        what: the kind of thing that has the name, for messages.
        names: accepted names.
    """

    what: str
    names: tuple[str, ...]

    def __call__(self, text: str, flag: str) -> str:
        if text not in self.names:
            raise unknown_name(self.what, text, self.names)
        return text


def one_of(what: str, *names: str) -> OneOf:
    """Parser of one of these names."""
    return OneOf(what, names)


@dataclass(frozen=True)
class SomeOf:
    """Parser of one or several names, separated by commas; repeated ones count once.

    Attributes:
        what: the kind of thing that has the name, for messages.
        names: accepted names.
    """

    what: str
    names: tuple[str, ...]

    def __call__(self, text: str, flag: str) -> tuple[str, ...]:
        one = OneOf(self.what, self.names)
        return tuple(dict.fromkeys(one(part.strip(), flag) for part in text.split(",")))


def some_of(what: str, *names: str) -> SomeOf:
    """Parser of some of these names."""
    return SomeOf(what, names)


def parse_yes_or_no(text: str, flag: str) -> bool:
    """Parse `yes` or `no` (or `true`, `false`)."""
    known = {"yes": True, "no": False, "true": True, "false": False}
    if text.lower() not in known:
        raise UserError(f"{flag} '{text}' is unknown; expected yes or no")
    return known[text.lower()]


def parse_whole_number(text: str, flag: str) -> int:
    """Parse a whole number of at least 1."""
    if not text.strip().isascii() or not text.strip().isdigit() or len(text) > 9 or int(text) < 1:
        raise UserError(f"{flag} '{text}' is not valid; expected a whole number of at least 1")
    return int(text)


def number_between(least: float = 0, most: float = math.inf, what: str = "") -> Parse:
    """Parser of a finite number in a range, which `what` describes in words."""
    expected = what or f"a number of at least {least:g}" + ("" if math.isinf(most) else f" and at most {most:g}")

    def parse(text: str, flag: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not least <= value <= most or math.isinf(value):
            raise UserError(f"{flag} '{text}' is not valid; expected {expected}")
        return value

    return parse


def parse_pictures(text: str, flag: str = "--pictures") -> tuple[str, ...]:
    """Parse picture formats separated by commas; repeated ones count once.

    Raises:
        UserError: a format is unknown.
    """
    return SomeOf(flag, PICTURES)(text, flag)
