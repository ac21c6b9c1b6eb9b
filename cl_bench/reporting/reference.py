"""The reference results beside the user's own: which of them join a report, and where they come from."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cl_bench.reporting.protocol import Protocol
from cl_bench.store import REFERENCE, RunRecord, Store, compact

ORIGIN = REFERENCE.name
"""Name of the origin of reference runs, from the folder and from the package."""


@dataclass(frozen=True)
class ReferenceResults:
    """Reference results that may join the user's own.

    Attributes:
        path: results folder, with predictions, or compact file (see `store.compact`), without.
        alone: whether they are also read where the user has no runs.
        everywhere: whether all of them join; otherwise only those of a protocol in which the user has a run, and those
            from which the intransigence of such runs is computed.
    """

    path: Path
    alone: bool = False
    everywhere: bool = False

    @property
    def has_predictions(self) -> bool:
        """Whether there are predictions of each image."""
        return self.path.is_dir()

    def joining(self, own: Sequence[RunRecord], on_damaged: Callable[[str], None]) -> Iterator[RunRecord]:
        """The reference runs that join these runs of the user.

        Raises:
            UserError: the results cannot be read, or are of another version of cl-bench.
        """
        if not own and not self.alone:
            return
        keys = {record.key for record in own}
        protocols = {Protocol.of(record) for record in own}
        streams = {(one.benchmark, one.weights, one.split) for one in protocols}
        everything = self.everywhere or not own

        def needed(key: str, experiment: Mapping[str, Any]) -> bool:
            stream = experiment["benchmark"], experiment["weights"], experiment["split"]
            return key not in keys and (everything or stream in streams)

        for record in self._records(on_damaged, needed):
            protocol = Protocol.of(record)
            if everything or protocol in protocols or _whole(protocol) in protocols:
                yield record

    def _records(
        self, on_damaged: Callable[[str], None], needed: Callable[[str, Mapping[str, Any]], bool]
    ) -> Iterable[RunRecord]:
        if self.has_predictions:
            return Store(self.path).records(on_damaged)
        return compact.unpack(self.path, on_damaged, needed)


def of(own: Iterable[Path], *, alone: bool, everywhere: bool = False) -> ReferenceResults | None:
    """The reference results of the checkout, or else of the package; None if the folders hold those of the checkout."""
    if not REFERENCE.is_dir():
        return ReferenceResults(compact.PACKAGED, alone, everywhere)
    if any(folder.is_dir() and folder.samefile(REFERENCE) for folder in own):
        return None
    return ReferenceResults(REFERENCE, alone, everywhere)


def _whole(protocol: Protocol) -> Protocol:
    """The protocol without its cut to the first tasks: joint training on a part of the stream is a reference for it."""
    return replace(protocol, limits=protocol.limits.model_copy(update={"tasks": None}))
