"""The sentence for a method that does not exist, with the papers of the closest ones.

Two papers may have almost the same name, and a method may have another name than its paper.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from difflib import SequenceMatcher
from importlib.metadata import EntryPoints

from cl_bench.contract import reading
from cl_bench.errors import UserError, unknown_name

_CLOSE, _AS_CLOSE = 0.4, 0.7
"""Similarity of the first suggestion at least, and of the others."""
_MOST = 3
_HINT = "'cl-bench ls methods' describes them."


def unknown_method(
    name: str, known: Iterable[str], points: EntryPoints, kind: str = "method", hint: str = _HINT
) -> UserError:
    """A `UserError` for a method that does not exist; it suggests those with a similar name or paper.

    Args:
        known: names of the installed methods, and of other things that could be meant.
        points: entry points of the group `sources.ENTRY_POINTS`.
        kind: what could be meant.
        hint: last sentence of the message, e.g. the command that lists the names.
    """
    papers = {one: _paper(one, points) for one in sorted(known)}
    scores = {one: max(_similarity(name, key) for key in (one, _title(paper))) for one, paper in papers.items()}
    ranked = sorted(papers, key=lambda one: (-scores[one], one))[:_MOST]
    close = [one for place, one in enumerate(ranked) if scores[one] >= (_AS_CLOSE if place else _CLOSE)]
    stated = "; ".join(f"'{one}' is {papers[one]}" for one in close if papers[one])
    sentences = " ".join(sentence for sentence in (stated and f"{stated}.", hint) if sentence)
    return unknown_name(kind, name, papers, sentences, close)


def _paper(name: str, points: EntryPoints) -> str:
    with suppress(UserError):
        if (facts := reading.of_installed(name, points)) is not None:
            return facts.paper
    return ""


def _title(paper: str) -> str:
    """The name that a paper gives its method: `CLoRA` of `CLoRA (ACL 2025, arXiv 2410.16801)`."""
    return paper.partition(" (")[0]


def _similarity(one: str, other: str) -> float:
    """Share of common letters and digits in common order, 0 to 1."""
    return SequenceMatcher(None, _plain(one), _plain(other)).ratio() if other else 0.0


def _plain(text: str) -> str:
    return "".join(letter for letter in text.casefold() if letter.isalnum())
