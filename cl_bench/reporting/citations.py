"""The papers that a run rests on: of its method with its options, its data set and backbone, and cl-bench itself."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

from cl_bench import backbones, streams
from cl_bench.backbones.citations import citations_of
from cl_bench.contract import listing, sources
from cl_bench.contract.listing import MethodFacts
from cl_bench.errors import UserError, suggestion, unknown_name
from cl_bench.grammar import parse_methods, split_names
from cl_bench.reporting import bibliography
from cl_bench.reporting.bibliography import HARNESS, Reference
from cl_bench.store import RunRecord
from cl_bench.streams import catalogue


@dataclass
class Citations:
    """References in the order in which they were asked for, each once.

    Attributes:
        method_files: the user's own methods, which come before installed ones of the same name.
        references: by key; cl-bench itself comes first.
        notes: sentences on what has no reference, each once.
    """

    method_files: Sequence[Path] = ()
    references: dict[str, Reference] = field(default_factory=lambda: {HARNESS: bibliography.shipped()[HARNESS]})
    notes: dict[str, None] = field(default_factory=dict)

    @property
    def bibtex(self) -> str:
        """The references as one BibTeX text."""
        return "\n\n".join(reference.text for reference in self.references.values()) + "\n"

    def add_everything(self) -> None:
        """Add all references that come with the package."""
        for reference in bibliography.shipped().values():
            self._add(reference)

    def add_names(self, texts: Iterable[str]) -> None:
        """Add what stands behind names as they are typed: methods with their options, benchmarks, backbones.

        Args:
            texts: one name each, or several with commas: `sdlora[rank=4],coda`.

        Raises:
            UserError: a name or an option of a method that does not exist.
        """
        for text in texts:
            parts = split_names(text)
            if not parts:
                raise UserError(f"'{text}' names nothing; expected methods, benchmarks or backbones, e.g. sdlora,coda")
            for part in parts:
                self._add_name(part)

    def add_records(self, records: Iterable[RunRecord]) -> None:
        """Add what stored runs used: their methods with the values of all options, benchmarks and backbones.

        What is not installed here any more is noted, not refused.
        """
        experiments = [record.experiment for record in records]
        methods = {(run.method, run.method_file, repr(run.hyperparameters)): run.hyperparameters for run in experiments}
        for (name, file, _), values in sorted(methods.items(), key=lambda item: item[0]):
            if name in self._own:
                self._add_method(self._own[name], values)
            elif name in self._installed and not file:
                self._add_method(listing.of_installed(name), values)
            else:
                known = f"--method-file {file}" if file else "--method-file"
                self._note(f"method '{name}' is not installed; name its file with {known}, or cite it yourself")
        for name in sorted({one.benchmark for one in experiments}):
            self._add_benchmark(name)
        for name in sorted({one.backbone for one in experiments}):
            self._add_backbone(name)

    def _add_name(self, text: str) -> None:
        name = text.partition("[")[0].strip()
        if "[" in text or name in self._own or name in self._installed:
            for spec in parse_methods(text, "method"):
                if spec.name not in self._own and spec.name not in self._installed:
                    raise self._unknown(spec.name)
                facts = self._own.get(spec.name) or listing.of_installed(spec.name)
                for option in spec.options:
                    if option not in facts.defaults:
                        raise unknown_name(f"hyper-parameter of '{spec.name}'", option, facts.defaults)
                self._add_method(facts, {option: _value(value) for option, value in spec.options.items()})
        elif text in self._benchmarks or text.startswith(catalogue.FOLDER):
            self._add_benchmark(text)
        elif text.partition(":")[0] in self._backbones:
            self._add_backbone(text)
        else:
            raise self._unknown(text)

    def _unknown(self, text: str) -> UserError:
        guess = suggestion(text, [*self._own, *self._installed, *self._benchmarks, *self._backbones], at_most=3)
        return UserError(
            f"unknown method, benchmark or backbone '{text}'.{guess} 'cl-bench ls methods', 'ls benchmarks' and "
            "'ls backbones' list the names."
        )

    def _add_method(self, facts: MethodFacts, options: Mapping[str, object]) -> None:
        """Add the papers of a method.

        Args:
            options: values of hyper-parameters that may differ from the defaults.
        """
        name = facts.name
        if facts.citations is None and not facts.bibtex:
            self._note(
                f"method '{name}' declares no citation; cite its paper yourself, or give it a 'bibtex' attribute"
            )
        elif not facts.citations and not facts.bibtex:
            self._note(f"method '{name}' is a baseline without a paper of its own")
        self._add_all(_keys(facts, {**facts.defaults, **options}), facts.bibtex, f"method '{name}'")

    def _add_benchmark(self, name: str) -> None:
        if name.startswith(catalogue.FOLDER):
            self._note(f"'{name}' is data of your own; cite its source yourself")
            return
        if name not in self._benchmarks:
            self._note(f"benchmark '{name}' is not installed here; cite its source yourself")
            return
        item = streams.find(name)
        keys, own = (item.citations, "") if item.dataset is None else (item.dataset.citations, item.dataset.bibtex)
        if not keys and not own:
            self._note(f"benchmark '{name}' declares no citation; cite its source yourself")
        self._add_all(keys, own, f"benchmark '{name}'")

    def _add_backbone(self, name: str) -> None:
        found = citations_of(name)
        self._add_all(found.keys, "", f"backbone '{name}'")
        if ":" in name:
            self._note(f"the weights of '{name}' come from a file; cite their paper, too, if it is not listed")
        elif not found.complete:
            self._note(f"the source of the weights '{name}' is not known here; cite it as timm's model card says")

    def _add_all(self, keys: Iterable[str], bibtex: str, where: str) -> None:
        """Add entries by key, and all of an own BibTeX text.

        Raises:
            UserError: a key that does not exist, or BibTeX that cannot be read.
        """
        own = bibliography.parse(bibtex, where) if bibtex else {}
        for key in [*keys, *own]:
            reference = own.get(key) or bibliography.shipped().get(key)
            if reference is None:
                raise unknown_name(f"citation of {where}", key, [*own, *bibliography.shipped()])
            self._add(reference)

    def _add(self, reference: Reference) -> None:
        """Add a reference unless the paper is there; if another paper has its key, the key gets a letter."""
        same = self.references.get(reference.key) or next(
            (one for one in self.references.values() if one.title and one.title == reference.title), None
        )
        if same is not None and (same.title == reference.title or same.text == reference.text):
            return
        key = next(key for key in _spellings(reference.key) if key not in self.references)
        if key != reference.key:
            self._note(f"two papers have the key '{reference.key}'; the second is '{key}' here")
            reference = replace(reference, key=key, text=reference.text.replace(reference.key, key, 1))
        self.references[key] = reference

    def _note(self, sentence: str) -> None:
        self.notes[sentence] = None

    @cached_property
    def _own(self) -> dict[str, MethodFacts]:
        return {facts.name: facts for facts in map(listing.of_file, self.method_files)}

    @cached_property
    def _installed(self) -> list[str]:
        return sources.names()

    @cached_property
    def _benchmarks(self) -> list[str]:
        return streams.names()

    @cached_property
    def _backbones(self) -> list[str]:
        tags = backbones.timm_tags()
        return [*backbones.names(), *tags, *sorted({tag.partition(".")[0] for tag in tags})]


def _keys(facts: MethodFacts, options: Mapping[str, object]) -> Iterator[str]:
    """Keys of a method, and those of the values that its options have."""
    yield from facts.citations or ()
    for condition, keys in facts.cited_with.items():
        name, unequal, value = condition.partition("!=")
        if not unequal:
            name, _, value = condition.partition("=")
        if name in options and (options[name] == _value(value)) != bool(unequal):
            yield from keys


def _value(text: str) -> object:
    """What the text of an option stands for: a truth value, number, tuple, or the text itself."""
    words = {"true": True, "yes": True, "false": False, "no": False, "none": None}
    if text.lower() in words:
        return words[text.lower()]
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def _spellings(key: str) -> Iterator[str]:
    """A key, then the same with a letter after it."""
    yield key
    yield from (f"{key}{letter}" for letter in "bcdefghijklmnopqrstuvwxyz")
