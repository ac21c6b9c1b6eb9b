"""The bibliography against an independent BibTeX parser, and against what methods, data sets and backbones say."""

from __future__ import annotations

import ast
import re
import tomllib
from collections.abc import Iterator
from fnmatch import fnmatchcase

import pytest
import yaml
from pybtex.database import Entry, parse_string

from cl_bench import __version__, backbones, streams
from cl_bench.backbones.citations import ARCHITECTURE, citations_of
from cl_bench.contract import listing
from cl_bench.errors import UserError
from cl_bench.reporting import bibliography
from cl_bench.reporting.bibliography import HARNESS
from cl_bench.streams import catalogue
from tests.helpers import ROOT

NEEDED = {
    "inproceedings": {"author", "title", "booktitle", "year"},
    "article": {"author", "title", "journal", "year"},
    "techreport": {"author", "title", "institution", "year"},
    "misc": {"author", "title"},
}
ARXIV = re.compile(r"\b\d{4}\.\d{4,5}\b")
FILE = ROOT / "cl_bench" / "assets" / "bibliography" / "references.bib"
WEIGHTS = tomllib.loads((FILE.parent / "backbones.toml").read_text())["weights"]
METHODS = {facts.name: facts for facts in listing.installed()[0]}


@pytest.fixture(scope="module")
def entries() -> dict[str, Entry]:
    """The entries as pybtex reads what `cl-bench cite --all` prints."""
    text = "\n\n".join(reference.text for reference in bibliography.shipped().values())
    return dict(parse_string(text, "bibtex").entries)


def keys_of(name: str) -> set[str]:
    """All keys that a method may cite, whatever its options are."""
    facts = METHODS[name]
    return {*(facts.citations or ()), *(key for keys in facts.cited_with.values() for key in keys)}


def docstring(module: str) -> str:
    """The docstring of a method's or data set's file."""
    path = ROOT / module
    return ast.get_docstring(ast.parse(path.read_text())) or ""


def surname(entry: Entry) -> str:
    return " ".join(entry.persons["author"][0].last_names)


def test_another_parser_reads_the_same_entries(entries: dict[str, Entry]) -> None:
    assert list(entries) == list(bibliography.shipped()) == list(parse_string(FILE.read_text(), "bibtex").entries)
    for key, entry in entries.items():
        present = {*entry.fields, *entry.persons}
        assert NEEDED[entry.type] <= present, key
        assert all(person.last_names for person in entry.persons["author"]), key
        assert not any("others" in str(person).lower() for person in entry.persons["author"]), key
        assert entry.fields["title"].isascii() and all(str(p).isascii() for p in entry.persons["author"]), key


def test_each_paper_is_there_once(entries: dict[str, Entry]) -> None:
    titles = [reference.title for reference in bibliography.shipped().values()]
    numbers = [entry.fields["eprint"] for entry in entries.values() if "eprint" in entry.fields]
    assert len(set(titles)) == len(titles) and all(titles) and len(set(numbers)) == len(numbers)


def test_arxiv_numbers_fit_the_years(entries: dict[str, Entry]) -> None:
    for key, entry in entries.items():
        if number := entry.fields.get("eprint"):
            assert ARXIV.fullmatch(number) and entry.fields["archiveprefix"] == "arXiv"
            assert 0 <= int(entry.fields["year"]) - 2000 - int(number[:2]) <= 2, key
        if (year := entry.fields.get("year")) and re.search(r"\d{4}[a-z]", key):
            assert year in key, key


def test_every_entry_belongs_to_something_and_every_key_has_an_entry() -> None:
    used = {HARNESS, *ARCHITECTURE}
    for name in METHODS:
        used |= keys_of(name)
    for name in streams.names():
        item = streams.find(name)
        used |= set(item.citations if item.dataset is None else item.dataset.citations)
    for name in backbones.names():
        used |= set(citations_of(name).keys)
    for one in WEIGHTS:
        used |= set(one["papers"])
    assert used == set(bibliography.shipped())


def test_every_method_declares_its_papers(entries: dict[str, Entry]) -> None:
    for name, facts in METHODS.items():
        assert facts.citations is not None, name
        text = docstring(f"methods/{name.replace('-', '_')}.py") + facts.paper
        cited = {entries[key].fields.get("eprint"): entries[key] for key in keys_of(name)}
        assert set(ARXIV.findall(text)) <= set(cited), name
        if not facts.citations:
            assert re.search(r"\((floor|ceiling)\)", facts.paper), name
        # "(Smith et al., CVPR 2023, arXiv 2211.13218)"
        for author, number in re.findall(r"([A-Z]\w+)(?: et al\.| & \w+),[^()]*\(?[^()]*arXiv\s(\d{4}\.\d{5})", text):
            assert surname(cited[number]) == author, (name, number)


def test_the_papers_that_docstrings_name_are_found_by_this_test() -> None:
    """At least one in each method with a paper of its own, or the test above would check nothing."""
    named = [name for name in METHODS if ARXIV.search(docstring(f"methods/{name.replace('-', '_')}.py"))]
    assert len(named) >= 14


def test_every_data_set_declares_its_papers(entries: dict[str, Entry]) -> None:
    for name, dataset in catalogue.shipped().items():
        assert dataset.citations, name
        text = docstring(f"cl_bench/streams/datasets/{name.replace('-', '_')}.py")
        if match := re.search(r"\((\w+)(?: et al\.)?, (\d{4})\)", text):
            paper = entries[dataset.citations[0]]
            assert (surname(paper), paper.fields["year"]) == match.groups(), name
    for name in streams.names():
        item = streams.find(name)
        assert item.citations if item.dataset is None else item.dataset.citations, name


def test_every_embedded_backbone_cites_the_architecture_and_its_data() -> None:
    for name in backbones.names():
        found = citations_of(name)
        assert found.complete and set(ARCHITECTURE) < set(found.keys), name


@pytest.mark.parametrize(
    "name, keys",
    [
        ("vit_base_patch16_224.orig_in21k", {"deng2009imagenet"}),
        ("vit_base_patch16_224.augreg_in21k", {"steiner2022augreg", "deng2009imagenet"}),
        (
            "vit_base_patch16_224.augreg_in21k_ft_in1k",
            {"steiner2022augreg", "deng2009imagenet", "russakovsky2015imagenet"},
        ),
        ("vit_base_patch16_224.mae", {"he2022mae", "russakovsky2015imagenet"}),
        ("vit_base_patch16_224.dino", {"caron2021dino", "russakovsky2015imagenet"}),
        ("vit_base_patch14_dinov2.lvd142m", {"oquab2024dinov2"}),
        ("vit_base_patch14_reg4_dinov2.lvd142m", {"oquab2024dinov2", "darcet2024registers"}),
        ("vit_base_patch16_clip_224.openai", {"radford2021clip"}),
        ("deit_base_patch16_224.fb_in1k", {"touvron2021deit", "russakovsky2015imagenet"}),
        ("vit_base_patch16_224:ibot_teacher.pth", {"zhou2022ibot"}),
    ],
)
def test_weights_cite_the_papers_that_they_come_from(name: str, keys: set[str]) -> None:
    found = citations_of(name)
    assert found.complete and set(found.keys) == {*ARCHITECTURE, *keys}


def test_most_weights_of_timm_are_known_and_the_others_say_so() -> None:
    found = {name: citations_of(name).complete for name in backbones.timm_tags()}
    assert all(found[name] for name in backbones.VIT_B16)
    assert sum(found.values()) > 0.7 * len(found) and not all(found.values())
    assert citations_of("vit_base_patch16_224").complete and not citations_of("vit_base_patch16_224:mine.pth").complete


def test_every_pattern_of_weights_fits_some() -> None:
    for pattern in (pattern for one in WEIGHTS for pattern in one["names"] if ":" not in pattern):
        assert any(fnmatchcase(name, pattern) for name in backbones.timm_tags()), pattern


def test_the_entry_of_the_harness_agrees_with_citation_cff(entries: dict[str, Entry]) -> None:
    cff = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    entry = entries[HARNESS]
    assert next(iter(entries)) == HARNESS
    assert re.sub("[{}]", "", entry.fields["title"]) == cff["title"]
    assert [str(person).strip("{}") for person in entry.persons["author"]] == [one["name"] for one in cff["authors"]]
    assert entry.fields["note"] == f"Version {cff['version']}" == f"Version {__version__}"
    assert entry.fields["year"] == str(cff["date-released"])[:4]
    assert entry.fields.get("url") == cff.get("url")


def faults() -> Iterator[tuple[str, str]]:
    yield "@article{a, title = {b", "line 1"
    yield "\n@article{a, title = {b}}\n\n@book{a, title = {c}}", "line 4 on: Duplicate entry key 'a'"
    yield "Smith et al., 2023", "no entry"


@pytest.mark.parametrize("text, reason", [*faults()])
def test_text_that_is_no_bibtex_is_named(text: str, reason: str, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(UserError, match=reason) as caught:
        bibliography.parse(text, "method 'mine'")
    assert "BibTeX of method 'mine'" in str(caught.value) and caplog.records == []


def test_entries_keep_their_text() -> None:
    text = "@article{a,\n  title = {One {Two}}, author={Me}\n}"
    found = bibliography.parse(f'% a comment\n{text}\n\n@misc{{b, title = "One two"}}\n', "mine")
    assert [one.text for one in found.values()] == [text, '@misc{b, title = "One two"}']
    assert {one.title for one in found.values()} == {"one two"}
