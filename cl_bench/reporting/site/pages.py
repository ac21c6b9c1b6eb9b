"""The pages of a static leaderboard: one per benchmark, method and backbone, an index, and the papers' tables.

Every link is relative, styles and scripts are shared files, and nothing is requested from another host, so the folder
can be hosted as it is or opened from a disk.
"""

from __future__ import annotations

import gzip
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from cl_bench.errors import counted, printable
from cl_bench.reporting import page, page_data, plots, result_table
from cl_bench.reporting.charts import Chart
from cl_bench.reporting.charts import to_csv as chart_to_csv
from cl_bench.reporting.confusions.on_page import ErrorsOnPage, on_page
from cl_bench.reporting.frames import export_frame
from cl_bench.reporting.intransigence import is_reference, references
from cl_bench.reporting.page_data import PageData, ProtocolData
from cl_bench.reporting.report import NoResults, load_runs, origins, paper_parts
from cl_bench.reporting.result_table import ResultTable
from cl_bench.reporting.runs import Run, Section, sections
from cl_bench.reporting.salvage import without_failing_runs
from cl_bench.reporting.site import facts, folder
from cl_bench.reporting.site.facts import Published, Standing
from cl_bench.reporting.spreadsheets import to_csv
from cl_bench.reporting.text_tables import TextTable

TITLE = "Continual-learning leaderboard"
MOST_ON_INDEX = 10
"""Rows of a table that the index shows; the page of the benchmark has all."""
_KINDS = ("methods", "benchmarks", "backbones")


def write(folders: Sequence[Path], out: Path, may_be_empty: bool = False) -> tuple[Path, list[str]]:
    """Write the site of all runs in the folders and of all published numbers.

    Args:
        folders: results folders; a run that lies in several is taken from the first.
        out: folder of the site (see `folder.write`).
        may_be_empty: write a site of published numbers alone if the folders hold no run.

    Returns:
        Path of the index, and one sentence per result file that was skipped.

    Raises:
        UserError: there is no valid run, `out` holds files of others, or it cannot be written.
    """
    named = origins(folders)
    try:
        runs, damaged = load_runs(named)
    except NoResults:
        if not may_be_empty:
            raise
        runs, damaged = [], []
    places = {origin: str(path) for path, origin in named}
    files = without_failing_runs(lambda some: build(some, damaged, places), runs, damaged.append)
    return folder.write(out, files)[0], damaged


def build(runs: Sequence[Run], damaged: Sequence[str], places: Mapping[str, str]) -> dict[str, bytes]:
    """All files of the site by path. The same records give the same bytes, whatever is installed beside them."""
    site = _Site(runs, damaged, {printable(origin): printable(path) for origin, path in places.items()})
    texts = {
        "index.html": site.index(),
        "published.html": site.papers(),
        **dict(site.benchmark_pages()),
        **dict(site.method_pages()),
        **dict(site.backbone_pages()),
        **site.files(),
        "assets/style.css": page.source("page.css") + page.source("site.css"),
        **{f"assets/{name}": page.source(name) for name in page.SCRIPTS},
        # Hosts that build sites themselves would leave some files out.
        ".nojekyll": "",
    }
    # Lone surrogates of damaged names cannot be encoded as UTF-8.
    files = {name: text.encode("utf-8", "backslashreplace") for name, text in texts.items()}
    return files | {"assets/plotly-cartesian.min.js": gzip.decompress(page.plotly())}


@dataclass(frozen=True)
class _Site:
    runs: Sequence[Run]
    damaged: Sequence[str]
    places: Mapping[str, str]

    @cached_property
    def sections(self) -> list[Section]:
        """The protocols that have a table, whole streams first, then those with most rows."""
        joint = {run.label for run in self.runs if not run.sequential}
        found = sections(self.runs)
        found = [section for section in found if not is_reference(section, joint)] or found
        return sorted(found, key=lambda one: (bool(one.protocol.limits_text()), -len(one.rows), one.slug))

    @cached_property
    def tables(self) -> dict[str, ResultTable]:
        """Result tables by slug."""
        return {section.slug: result_table.build(section) for section in self.sections}

    @cached_property
    def standard(self) -> dict[str, dict[str, Chart]]:
        """Charts of counts by slug and name."""
        return {section.slug: plots.standard(section) for section in self.sections}

    @cached_property
    def errors(self) -> dict[str, ErrorsOnPage]:
        """What stored predictions show, by slug of the protocols that have any."""
        stores = [Path(place) for place in self.places.values()]
        return {section.slug: part for section in self.sections if (part := on_page(section, stores)) is not None}

    @cached_property
    def charts(self) -> dict[str, dict[str, Chart]]:
        """All charts by slug and name."""
        predicted = {slug: part.charts for slug, part in self.errors.items()}
        return {slug: some | predicted.get(slug, {}) for slug, some in self.standard.items()}

    @cached_property
    def paper_parts(self) -> tuple[list[TextTable], list[Chart]]:
        """Tables and figures of papers."""
        return paper_parts(self.runs)

    @cached_property
    def published(self) -> list[Published]:
        """Published numbers."""
        return facts.published()

    @cached_property
    def standings(self) -> list[Standing]:
        """All rows of all tables."""
        return [standing for table in self.tables.values() for standing in facts.standings(table)]

    @cached_property
    def paths(self) -> dict[str, dict[str, str]]:
        """Paths of pages by kind and name."""
        names = {
            "methods": [*(one.row.method for one in self.standings), *(one.method for one in self.published)],
            "benchmarks": [
                *(one.protocol.benchmark for one in self.sections),
                *(one.benchmark for one in self.published),
            ],
            "backbones": [*(one.protocol.backbone for one in self.sections), *(one.backbone for one in self.published)],
        }
        return {
            kind: {name: f"{kind}/{slug}.html" for name, slug in facts.slugs(names[kind]).items()} for kind in _KINDS
        }

    def _render(self, template: str, path: str, title: str, description: str, **values: Any) -> str:
        return (
            page.environment()
            .get_template(f"site/{template}.html.j2")
            .render(
                {"data": None, "interactive": False}
                | values
                | {
                    "title": title,
                    "description": description,
                    "site": TITLE,
                    "root": "../" * path.count("/"),
                    "linked": True,
                    "paths": self.paths,
                    "runs": len(self.runs),
                    "origins": sorted({run.origin for run in self.runs}),
                    "scripts": page.SCRIPTS,
                }
            )
        )

    def index(self) -> str:
        """The front page: the best rows of each protocol, and lists of all other pages."""
        whole = [self.tables[one.slug] for one in self.sections if not one.protocol.limits_text()]
        return self._render(
            "index",
            "index.html",
            "Leaderboard",
            f"Continual-learning methods on pre-trained Vision Transformers: {len(self.paths['methods'])} methods on "
            f"{len(self.paths['benchmarks'])} benchmarks, every number from stored counts.",
            leaderboards=[(table, facts.standings(table)) for table in whole],
            most=MOST_ON_INDEX,
            damaged=self.damaged,
            best={name: self._best(name) for name in self.paths["methods"]},
            counts=self._counts(),
        )

    def _best(self, method: str) -> Standing | None:
        """The row of a method with its best place on a whole stream."""
        placed = [
            one
            for one in self.standings
            if one.row.method == method and one.place is not None and not one.table.protocol.limits_text()
        ]
        return min(placed, key=lambda one: (one.place, -one.places), default=None)

    def _counts(self) -> dict[str, dict[str, tuple[int, int]]]:
        """Numbers of stored and of published rows by kind and name."""
        found: dict[str, defaultdict[str, list[int]]] = {kind: defaultdict(lambda: [0, 0]) for kind in _KINDS}
        for one in self.standings:
            protocol = one.table.protocol
            for kind, name in zip(_KINDS, (one.row.method, protocol.benchmark, protocol.backbone), strict=True):
                found[kind][name][0] += 1
        for row in self.published:
            for kind, name in zip(_KINDS, (row.method, row.benchmark, row.backbone), strict=True):
                found[kind][name][1] += 1
        return {kind: {name: (own, theirs) for name, (own, theirs) in names.items()} for kind, names in found.items()}

    def benchmark_pages(self) -> Iterator[tuple[str, str]]:
        """Pages with the whole tables, figures and runs of a benchmark."""
        for name, path in self.paths["benchmarks"].items():
            mine = [section for section in self.sections if section.protocol.benchmark == name]
            tables = [self.tables[section.slug] for section in mine]
            data, joint = PageData(), references(run for section in mine for run in section.runs)
            for section, table in zip(mine, tables, strict=True):
                data.add(ProtocolData.of(section, table, self.charts[section.slug], self.places, joint))
            pages = {method: f"../{page}" for method, page in self.paths["methods"].items()}
            rows = sum(len(section.rows) for section in mine)
            yield (
                path,
                self._render(
                    "benchmark",
                    path,
                    name,
                    f"{name}: {counted(rows, 'row')} of continual-learning methods, figures, runs, published numbers.",
                    facts=facts.of_benchmark(name),
                    protocols=[
                        page.protocol_parts(
                            one, self.tables[one.slug], self.standard[one.slug], self.errors.get(one.slug)
                        )
                        for one in mine
                    ],
                    published=[one for one in self.published if one.benchmark == name],
                    papers=[],
                    overall=[],
                    data=page.DataBlocks.of(data, pages=pages) if mine else None,
                    interactive=bool(mine),
                ),
            )

    def method_pages(self) -> Iterator[tuple[str, str]]:
        """Pages with every place of a method."""
        own = {run.record.experiment.method for run in self.runs if run.record.experiment.method_file}
        for name, path in self.paths["methods"].items():
            mine = [one for one in self.standings if one.row.method == name]
            published = [one for one in self.published if one.method == name]
            yield (
                path,
                self._render(
                    "method",
                    path,
                    name,
                    f"{name}: place, accuracy, forgetting in {len(mine)} stored and {len(published)} published rows.",
                    facts=facts.of_method(name, name in own),
                    standings=mine,
                    published=published,
                ),
            )

    def backbone_pages(self) -> Iterator[tuple[str, str]]:
        """Pages with the standings on every benchmark with a backbone."""
        for name, path in self.paths["backbones"].items():
            tables = [self.tables[one.slug] for one in self.sections if one.protocol.backbone == name]
            yield (
                path,
                self._render(
                    "backbone",
                    path,
                    name,
                    f"{name}: continual-learning methods on this backbone, in {len(tables)} tables.",
                    facts=facts.of_backbone(name),
                    leaderboards=[(table, facts.standings(table)) for table in tables],
                    published=[one for one in self.published if one.backbone == name],
                ),
            )

    def papers(self) -> str:
        """The papers' tables with published numbers beside ours, and their figures."""
        papers, overall = self.paper_parts
        data = PageData()
        data.add_papers(overall)
        return self._render(
            "published",
            "published.html",
            "Published numbers",
            "Numbers of papers on continual learning, beside those of stored runs where the protocol is the paper's.",
            published=self.published,
            papers=papers,
            overall=list(map(page.FigureText.of, overall)),
            data=page.DataBlocks.of(data) if overall else None,
            interactive=bool(overall),
        )

    def files(self) -> dict[str, str]:
        """Tables and numbers of figures that pages link to, and all runs as one table."""
        papers, overall = self.paper_parts
        tables = [*map(result_table.text_table, self.tables.values()), *papers]
        charts = [(f"{slug}-{name}", chart) for slug, some in self.charts.items() for name, chart in some.items()]
        charts += [(chart.name, chart) for chart in overall]
        found = page_data.files_of_tables(tables)
        found |= {f"figures/{name}.csv": chart_to_csv(chart) for name, chart in charts}
        return found | ({"runs.csv": to_csv(export_frame(self.runs))} if self.runs else {})
