"""Import paths and names of version 0.1.0, for method files and Avalanche scripts that were written for it.

A method file's key is the hash of its text, so that its imports cannot be edited without another key.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

MOVED = {
    "adapters": ("models",),
    "adapters.growing": ("models.growing",),
    "adapters.heads": ("models.base", "models.heads"),
    "adapters.lora": ("models.lora",),
    "adapters.network": ("models.vit", "models.legacy"),
    "adapters.peft": ("models.adapters",),
    "adapters.prompts": ("models.prompts",),
    "adapters.statistics": ("models.statistics",),
    "audit": ("studies.audit",),
    "audit.checks": ("studies.audit.checks",),
    "audit.numbers": ("studies.audit.numbers",),
    "audit.observation": ("studies.audit.observation",),
    "audit.predictions": ("studies.audit.predictions",),
    "audit.trials": ("studies.audit.trials",),
    "bench": ("studies.bench",),
    "checkpoint": ("training.checkpoint",),
    "estimate": ("running.estimate",),
    "executors": ("running.executors",),
    "index": ("store.index",),
    "method": (
        "contract.method",
        "contract.gradient",
        "contract.alignment",
        "contract.task",
        "contract.phase",
        "contract.losses",
        "contract.schedules",
        "contract.hyperparameters",
        "contract.search",
        "models.base",
        "models.heads",
        "models.statistics",
    ),  # fmt: skip
    "parcels": ("running.transport",),
    "plan": ("running.plan",),
    "predictions": ("store.predictions",),
    "probes": ("training.probes",),
    "ray_executor": ("running.ray_executor",),
    "recipes": ("running.recipes",),
    "record": ("store.record",),
    "registry": ("contract.registry",),
    "repeat": ("studies.repeat",),
    "report": ("reporting.report",),
    "report.charts": ("reporting.charts",),
    "report.comparison": ("reporting.comparison",),
    "report.drawing": ("reporting.render.drawing",),
    "report.frame": ("reporting.runs", "reporting.protocol", "reporting.frames", "reporting.intransigence"),
    "report.interactive": ("reporting.render.interactive",),
    "report.lettering": ("reporting.render.text_layout",),
    "report.page": ("reporting.page",),
    "report.paper_figures": ("reporting.paper.figures", "reporting.paper.layouts"),
    "report.paper_tables": ("reporting.paper.tables", "reporting.paper.layouts"),
    "report.plots": ("reporting.plots",),
    "report.scatter": ("reporting.render.scatter",),
    "report.sheets": ("reporting.text_tables",),
    "report.styles": ("reporting.render.styles",),
    "report.tables": ("reporting.result_table",),
    "runner": ("running.runner", "running.device", "running.progress"),
    "space": ("contract.search",),
    "strategy": ("training.strategy", "training.evaluation"),
    "streams.build": ("streams.scenarios",),
    "streams.fetch": ("streams.download", "streams.archives", "streams.transfer"),
    "suites": ("running.suites", "options"),
    "tune": ("studies.tune",),
    "upkeep": ("store.upkeep",),
    "workers": ("running.workers",),
}
"""Old module -> the modules that hold its names now, both without `cl_bench.`."""

CALLABLE = ("cl_bench.report",)
"""Old modules that have the name of a function of `cl_bench.api`."""


_warned = False


def _warn(message: str) -> None:
    """Tell the user once in a process."""
    global _warned
    if not _warned:
        _warned = True
        warnings.warn(f"{message}; old names of cl-bench 0.1.0 still work", FutureWarning, stacklevel=3)


def renamed(module: str, names: Mapping[str, Any]) -> Callable[[str], Any]:
    """The `__getattr__` of a module some of whose names have been changed.

    Args:
        names: what the old names stand for.
    """

    def look_up(name: str) -> Any:
        if name not in names:
            raise AttributeError(f"module '{module}' has no attribute '{name}'")
        _warn(f"{module}.{name} is now {names[name].__name__}")
        return names[name]

    return look_up


class _CallableModule(ModuleType):
    """The module of an old path that has the name of a public function now, `cl_bench.report`: once it is imported, it
    stands in the package where the function would, so it can be called like that."""

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        function = self.__name__.removeprefix("cl_bench.")
        return getattr(import_module("cl_bench.api"), function)(*arguments, **options)


class _Loader(Loader):
    """Fills the module of an old path with a `__getattr__` that looks names up in the new ones."""

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return _CallableModule(spec.name) if spec.name in CALLABLE else None

    def exec_module(self, module: ModuleType) -> None:
        targets = [import_module(f"cl_bench.{path}") for path in MOVED[module.__name__.removeprefix("cl_bench.")]]
        _warn(f"{module.__name__} is now {targets[0].__name__}")

        def look_up(name: str) -> Any:
            # The import system asks for names such as __path__ itself.
            if not name.startswith("__"):
                for target in targets:
                    if hasattr(target, name):
                        return getattr(target, name)
            raise AttributeError(f"module '{module.__name__}' (now {targets[0].__name__}) has no attribute '{name}'")

        module.__getattr__ = look_up  # type: ignore[method-assign]


class _Finder(MetaPathFinder):
    """Asked last, for what no other finder knows."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        old = fullname.removeprefix("cl_bench.")
        if old == fullname or old not in MOVED:
            return None
        has_parts = any(name.startswith(f"{old}.") for name in MOVED)
        return ModuleSpec(fullname, _Loader(), is_package=has_parts)


def install() -> None:
    """Make the old paths importable, once in a process."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.append(_Finder())
