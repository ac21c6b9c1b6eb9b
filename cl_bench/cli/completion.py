"""Shell completion: names that options and arguments accept, found without importing torch."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from cl_bench.errors import UserError
from cl_bench.grammar import OneOf, SomeOf, parse_yes_or_no
from cl_bench.options import Option

# What offers names is imported only when Tab is pressed.

Completer = Callable[[str], list[str]]
"""From the beginning of a word to all words that begin like that."""


def completer(names: Callable[[], Iterable[str]], separator: str = "") -> Completer:
    """Offers these names; a data set or a file that cannot be read offers none, instead of an error at the prompt.

    Args:
        names: called when Tab is pressed.
        separator: of several names in one word; then the last of them is completed.
    """

    def complete(incomplete: str) -> list[str]:
        before, found, last = incomplete.rpartition(separator) if separator else ("", "", incomplete)
        if before.count("[") > before.count("]") or "[" in last:
            # Inside the options of a method.
            return []
        try:
            return [f"{before}{found}{name}" for name in names() if name.startswith(last)]
        except (UserError, OSError):
            return []

    return complete


def one_of(*names: str, separator: str = "") -> Completer:
    """Completes one of these names, or several with a separator between them."""
    return completer(lambda: names, separator)


def _methods() -> list[str]:
    from cl_bench.contract import sources

    return sources.names()


def _benchmarks() -> list[str]:
    from cl_bench import streams

    return streams.names()


def _data_sets() -> list[str]:
    from cl_bench.streams import catalogue

    return catalogue.names()


def _backbones() -> list[str]:
    from cl_bench import backbones

    return [*backbones.names(), *backbones.timm_tags()]


def _suites() -> list[str]:
    from cl_bench.running import suites

    return suites.names()


def _recipes() -> list[str]:
    """The kinds of recipes, and the data sets that papers publish recipes for."""
    return ["auto", "tuned", "published", "own", "unified", *(f"published:{name}" for name in _data_sets())]


def _tables() -> Iterable[str]:
    from cl_bench.reporting.cells import TABLES
    from cl_bench.reporting.paper.layouts import table_names

    return [*TABLES, *table_names()]


def _figures() -> Iterable[str]:
    from cl_bench.reporting import plots
    from cl_bench.reporting.confusions import views
    from cl_bench.reporting.paper.layouts import figure_layouts

    return [*figure_layouts(), *plots.NAMES, *views.NAMES, "ranks"]


def _widths() -> list[str]:
    from cl_bench.reporting.render.venues import venues

    return [width for name in venues() for width in (name, f"{name}:column", f"{name}:page")]


def _metrics() -> Iterable[str]:
    from cl_bench import metrics

    return metrics.METRICS


def _columns() -> Iterable[str]:
    from cl_bench import metrics

    return [*metrics.METRICS, "seeds", "minutes", "trainable", "tuning", "difference", "holm"]


def _keys() -> list[str]:
    """Keys of the runs in the default results folders, as the names of their files say."""
    from cl_bench.store import Store, folders_to_read

    files = [name for folder in folders_to_read() for name in Store(folder).names()]
    return sorted({name.removesuffix(".json").rpartition("-")[2] for name in files})


def _citable() -> list[str]:
    return [*_methods(), *_benchmarks(), *_backbones()]


def _everything() -> list[str]:
    return [*_citable(), *_keys()]


METHODS = completer(_methods, ",")
METHOD = completer(_methods)
BENCHMARK = completer(_benchmarks)
DATA_SET = completer(_data_sets)
BACKBONE = completer(_backbones)
SUITE = completer(_suites)
TABLE = completer(_tables)
FIGURE = completer(_figures)
METRIC = completer(_metrics)
WIDTH = completer(_widths)
COLUMNS = completer(_columns, ",")
KEY = completer(_keys)
CITABLE = completer(_citable, ",")
ANYTHING = completer(_everything)
"""Of `cl-bench show`: methods, benchmarks, backbones and keys of stored runs."""

_BY_OPTION = {
    "methods": METHODS,
    "benchmark": BENCHMARK,
    "backbone": BACKBONE,
    "recipe": completer(_recipes),
    "order": one_of("natural", "permutation:"),
    "device": one_of("auto", "cpu", "cuda", "cuda:0"),
    "executor": one_of("here", "ray"),
    "normalise": one_of("checkpoint", "none"),
}


def of_option(name: str, option: Option) -> Completer | None:
    """What completes the values of an option of the list; None: nothing, or files, which the shell completes itself."""
    if isinstance(option.parse, OneOf):
        return one_of(*option.parse.names)
    if isinstance(option.parse, SomeOf):
        names = option.parse.names
        return completer(lambda: names, ",")
    if option.parse is parse_yes_or_no and option.kind != "flag":
        return one_of("yes", "no")
    return _BY_OPTION.get(name)
