"""Facts about a method that listings and citations show, without the method's class."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class MethodFacts:
    """Facts that `cl-bench ls methods` and `cl-bench cite` show of a method, named as in `contract.method.Method`.

    Attributes:
        defaults: default value of each hyper-parameter, by name; None for one that the source computes.
    """

    name: str
    paper: str
    forward_passes: int | str
    stores: str
    needs_num_tasks: bool
    citations: tuple[str, ...] | None
    cited_with: Mapping[str, tuple[str, ...]]
    bibtex: str
    exemplars: str
    defaults: Mapping[str, object] = field(default_factory=dict)

    @property
    def stored(self) -> str:
        """What the method stores about old tasks, with the size of its memory of exemplars if it has one."""
        return f"{self.stores}, {self.defaults[self.exemplars]:g} MB" if self.exemplars else self.stores


FACTS = ("paper", "forward_passes", "stores", "needs_num_tasks", "citations", "cited_with", "bibtex", "exemplars")
"""Names of the facts that are attributes of a method's class."""
