"""What the user chose to see in tables, figures and the page: rows and their order, columns, and what stands out.

A pattern is the label of a row, in which `*` stands for any characters and `?` for one. A pattern without brackets also
matches the method with any options (`sdlora` shows `sdlora` and `sdlora[rank=8]`); `sdlora[]` is the row without
options. Rows are chosen in the data, before anything is drawn, so that every format of a report shows the same ones.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from cl_bench.errors import UserError, named, suggestion
from cl_bench.grammar import split_names
from cl_bench.reporting.runs import Section


@dataclass(frozen=True)
class Selection:
    """Rows and columns chosen by the user.

    Attributes:
        rows: patterns of the rows to show, in the order of the rows; empty: all rows, in the usual order.
        highlight: patterns of the rows that stand out, in colour or bold, among those shown.
        columns: names of the columns of tables, in their order; empty: the usual ones.
        against: the row that all others are compared with: a label, or a pattern of one row. It is always shown. Empty:
            no comparison.
    """

    rows: tuple[str, ...] = ()
    highlight: tuple[str, ...] = ()
    columns: tuple[str, ...] = ()
    against: str = ""

    @classmethod
    def parse(
        cls,
        rows: str | None = None,
        highlight: str | None = None,
        columns: str | None = None,
        against: str | None = None,
    ) -> Selection:
        """Read the options of these names: lists separated by commas, and the name of one row.

        Raises:
            UserError: an option is given without a name.
        """
        listed = (_names("--rows", rows), _names("--highlight", highlight), _names("--columns", columns, "acc,aaa"))
        if against is not None and not against.strip():
            raise UserError("--against is empty; name the row that the others are compared with")
        return cls(*listed, against=(against or "").strip())

    def of(self, sections: Sequence[Section]) -> list[Section]:
        """The sections with the chosen rows only; sections without any are left out.

        Raises:
            UserError: a pattern matches no row of any section, or `against` not exactly one.
        """
        known = dict.fromkeys((label for section in sections for label in section.rows), "")
        baseline = one_row("--against", self.against, known) if self.against else ""
        self.check(known, baseline)
        chosen = []
        for section in sections:
            labels = self.shown(section.rows)
            if labels:
                against = baseline if baseline in section.rows else ""
                labels += [against] if against and against not in labels else []
                rows = {label: section.rows[label] for label in labels}
                highlight = tuple(matching(self.highlight, labels))
                mine = bool(self.rows)
                chosen.append(replace(section, rows=rows, chosen=mine, highlight=highlight, against=against))
        return chosen

    def shown(self, labels: Iterable[str], names: Mapping[str, str] | None = None) -> list[str]:
        """The labels of the rows to show, in the order of the patterns; all of them without patterns."""
        return matching(self.rows, labels, names) if self.rows else list(labels)

    def flags(self) -> list[str]:
        """The selection as options of the command line."""
        listed = {"--rows": self.rows, "--columns": self.columns, "--highlight": self.highlight}
        flags = [part for option, names in listed.items() if names for part in (option, ",".join(names))]
        return [*flags, *(["--against", self.against] if self.against else [])]

    def rows_of(self, names: Mapping[str, str]) -> Selection | None:
        """The patterns that match rows of a table or figure with rows of its own; None if it has none of the chosen.

        Args:
            names: see `check`.
        """
        rows = tuple(pattern for pattern in self.rows if matching([pattern], names, names))
        if self.rows and not rows:
            return None
        shown = self.shown(names, names)
        highlight = tuple(pattern for pattern in self.highlight if matching([pattern], shown, names))
        return Selection(rows, highlight)

    def check(self, names: Mapping[str, str], baseline: str = "") -> None:
        """Raise `UserError` if a pattern of `rows`, or one of `highlight` among the rows shown, matches nothing.

        Args:
            names: by label of each existing row, another name that tables print for it; empty if there is none.
            baseline: label of a row that is shown in any case.
        """
        _check("--rows", self.rows, names)
        _check("--highlight", self.highlight, names)
        shown = {label: names[label] for label in [*self.shown(names, names), *([baseline] if baseline else [])]}
        for pattern in self.highlight:
            if not matching([pattern], shown, shown):
                raise UserError(f"--highlight '{pattern}' is none of the rows shown; add it to --rows")


def matching(patterns: Iterable[str], labels: Iterable[str], names: Mapping[str, str] | None = None) -> list[str]:
    """The labels that a pattern matches, in the order of the patterns, each once.

    Args:
        names: other names of rows, by label, that patterns may match as well.
    """
    labels, names = list(labels), names or {}
    return list(
        dict.fromkeys(
            label
            for pattern in patterns
            for label in labels
            if matches(pattern, label) or (names.get(label) and matches(pattern, names[label]))
        )
    )


def matches(pattern: str, label: str) -> bool:
    """Whether a pattern matches the label of a row."""
    method = label.partition("[")[0]
    if pattern.endswith("[]"):
        return label == method and _fits(pattern[:-2], label)
    return _fits(pattern, label) or ("[" not in pattern and _fits(pattern, method))


def one_row(option: str, pattern: str, labels: Iterable[str]) -> str:
    """The label of the one row that a pattern names; a label itself comes before rows that it matches as a pattern.

    Raises:
        UserError: the pattern matches no row, or several.
    """
    labels = list(labels)
    found = [pattern] if pattern in labels else matching([pattern], labels)
    if not found:
        raise unknown_row(option, pattern, labels)
    if len(found) > 1:
        raise UserError(f"{option} '{pattern}' matches {len(found)} rows ({named(found)}); name one of them")
    return found[0]


def unknown_row(option: str, pattern: str, labels: Iterable[str]) -> UserError:
    """The error for a pattern that matches no row, with the nearest labels."""
    known = sorted(set(labels))
    # The name of a method without its options is near to a misspelled one; whole labels may be long.
    near = {label.partition("[")[0]: label for label in reversed(known)} | {label: label for label in known}
    guess = suggestion(pattern, list(near), at_most=3)
    there = "" if guess else f"; there {'is' if len(known) == 1 else 'are'} {named(known)}" if known else ""
    return UserError(f"{option}: no row matches '{pattern}'{there}.{guess} See 'cl-bench results ls'.")


def _fits(pattern: str, text: str) -> bool:
    # Not fnmatch, to which the brackets of options are a set of characters.
    expression = "".join({"*": ".*", "?": "."}.get(character, re.escape(character)) for character in pattern)
    return re.fullmatch(expression, text, re.DOTALL) is not None


def _names(option: str, text: str | None, example: str = "'sdlora,coda*'") -> tuple[str, ...]:
    if text is None:
        return ()
    found = tuple(split_names(text))
    if not found:
        raise UserError(f"{option} is empty; give names separated by commas, e.g. {option} {example}")
    return found


def _check(option: str, patterns: Iterable[str], names: Mapping[str, str]) -> None:
    for pattern in patterns:
        if not matching([pattern], names, names):
            raise unknown_row(option, pattern, [*names, *(name for name in names.values() if name)])
