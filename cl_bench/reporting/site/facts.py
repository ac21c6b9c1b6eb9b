"""What a site says of methods, benchmarks and backbones: standings, published numbers, facts of the package."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass

from cl_bench import streams
from cl_bench.backbones.citations import citations_of
from cl_bench.backbones.embedded import EMBEDDED
from cl_bench.contract import listing, sources
from cl_bench.errors import UserError
from cl_bench.reporting import bibliography
from cl_bench.reporting.paper.layouts import published_numbers, table_layouts
from cl_bench.reporting.protocol import file_name
from cl_bench.reporting.result_table import ResultRow, ResultTable
from cl_bench.streams import catalogue


@dataclass(frozen=True)
class Standing:
    """A row of a result table with its place.

    Attributes:
        place: place by final accuracy, from 1; None for rows that are not comparable, as joint training.
        places: number of rows that have a place.
    """

    row: ResultRow
    table: ResultTable
    place: int | None
    places: int


def standings(table: ResultTable) -> list[Standing]:
    """The rows of a table, best first, with their places; rows of equal accuracy share a place."""
    ordered = sorted(table.rows, key=lambda row: (-row.acc.mean, row.label))
    ranked = [row for row in ordered if row.sequential and not row.leaky]
    place = {row.label: 1 + sum(other.acc.mean > row.acc.mean for other in ranked) for row in ranked}
    return [Standing(row, table, place.get(row.label), len(ranked)) for row in ordered]


@dataclass(frozen=True)
class Published:
    """A row of a paper's table on one stream: means in percent with standard errors, None where not published."""

    table: str
    benchmark: str
    tasks: int
    backbone: str
    name: str
    label: str
    acc: tuple[float, float | None] | None
    aaa: tuple[float, float | None] | None

    @property
    def method(self) -> str:
        """Name of the method behind the label."""
        return self.label.partition("[")[0]


def published() -> list[Published]:
    """All published accuracies that come with the package, in the order of the papers' tables."""
    found = []
    for layout in table_layouts():
        for table in layout.tables.values():
            numbers = published_numbers(layout, table.number)
            for benchmark, tasks in table.streams:
                for label in table.rows:
                    acc, aaa = (numbers.get((benchmark, tasks, label, metric)) for metric in ("acc", "aaa"))
                    if acc or aaa:
                        name = layout.rows[label].name
                        row = Published(table.title, benchmark, tasks, layout.paper.backbone, name, label, acc, aaa)
                        found.append(row)
    return found


def slugs(names: Iterable[str]) -> dict[str, str]:
    """A file name, without suffix, for each name: readable, and different even where case does not count."""
    found: dict[str, str] = {}
    taken: set[str] = set()
    # Names in small letters, as those of shipped methods, come first and keep their own address.
    for name in sorted(set(names), key=lambda name: (name != name.casefold(), name)):
        slug = file_name(name).strip("._-") or "unnamed"
        if slug.casefold() in taken:
            slug = f"{slug}-{hashlib.sha256(name.encode(errors='surrogatepass')).hexdigest()[:8]}"
        taken.add(slug.casefold())
        found[name] = slug
    return found


@dataclass(frozen=True)
class Facts:
    """Facts of the package about a method, benchmark or backbone.

    Attributes:
        lines: sentences or phrases.
        bibtex: BibTeX entries of its papers; "" if there are none.
    """

    lines: tuple[str, ...]
    bibtex: str


def of_method(name: str, own: bool) -> Facts:
    """Facts of a method.

    Args:
        own: whether the runs were made with a method file of the user's own, which may have any name.
    """
    if own or name not in sources.names():
        return Facts(("A method of a contributor's own: it does not come with cl-bench.",), "")
    try:
        facts = listing.of_installed(name)
    except UserError:
        return Facts(("This method cannot be read in this installation of cl-bench.",), "")
    stores = f"Stores about old tasks: {facts.stores}." if facts.stores else ""
    bibtex = "\n\n".join(filter(None, [_entries(facts.citations or ()), facts.bibtex]))
    return Facts(tuple(filter(None, [facts.paper, stores])), bibtex)


def of_benchmark(name: str) -> Facts:
    """Facts of a benchmark."""
    if name.startswith(catalogue.FOLDER):
        return Facts(("Images of a contributor's own.",), "")
    with suppress(UserError):
        item = streams.find(name)
        lines = [item.description]
        if item.dataset is not None:
            data = item.dataset
            lines.append(f"{data.train:,} training and {data.test:,} test images. Licence: {data.licence}.")
        keys = item.citations if item.dataset is None else item.dataset.citations
        return Facts(tuple(lines), _entries(keys))
    return Facts(("A benchmark that does not come with cl-bench.",), "")


def of_backbone(name: str) -> Facts:
    """Facts of a backbone."""
    line = EMBEDDED[name].description if name in EMBEDDED else f"The weights that timm names {name}."
    if ":" in name:
        line = "Weights from a contributor's own file."
    return Facts((line,), _entries(citations_of(name).keys))


def _entries(keys: Sequence[str]) -> str:
    return "\n\n".join(_texts(keys))


def _texts(keys: Sequence[str]) -> Iterator[str]:
    shipped = bibliography.shipped()
    yield from (shipped[key].text for key in keys if key in shipped)
