"""Libraries that timm and Avalanche import and hardly use; they are imported when one of their names is first used.

Importing Avalanche or timm also imports wandb, scipy, torchmetrics and other libraries that few programs use: a third
of the time. Within `deferred_imports`, placeholders stand for the modules of `LEAVES` and `STARRED`. At its end they
are no longer in `sys.modules`, so whoever imports such a module later gets the module itself. What still refers to a
placeholder, the globals of timm and Avalanche, imports the module when it uses it. A library that is not installed
raises ImportError at once, as always.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

LEAVES = ("GPUtil", "qpsolvers", "wandb")
"""Libraries that are imported by a plain `import NAME` and used in few functions."""
STARRED: Mapping[str, Sequence[str]] = {
    "avalanche.benchmarks": ("classic",),
    # acc_matrix is cheap, but needs avalanche.training, which needs avalanche.evaluation.
    "avalanche.evaluation.metrics": ("acc_matrix", "topk_acc"),
    "avalanche.logging": ("tensorboard_logger",),
}
"""Submodules by the package that does `from .SUBMODULE import *`; it gets their names when it lacks one."""


_used: set[str] = set()
"""Names whose modules have been used; they are no longer deferred."""


class _Placeholder(ModuleType):
    """Stands for a module, and imports it to answer for its attributes."""

    def __getattr__(self, name: str) -> Any:
        # The import system asks whether a module is a package.
        if name == "__path__" and (self.__spec__ is None or self.__spec__.submodule_search_locations is None):
            raise AttributeError(f"module '{self.__name__}' has no attribute '{name}'")
        return getattr(_import(self.__name__), name)

    def __dir__(self) -> list[str]:
        return dir(_import(self.__name__))


def _import(name: str) -> ModuleType:
    """The module itself, not its placeholder."""
    _used.add(name)
    _remove(name)
    return import_module(name)


def _remove(name: str) -> None:
    """Remove the placeholder of a module, if there is one, from where an import would find it."""
    package, _, child = name.rpartition(".")
    if type(sys.modules.get(name)) is _Placeholder:
        del sys.modules[name]
    if package in sys.modules and type(vars(sys.modules[package]).get(child)) is _Placeholder:
        delattr(sys.modules[package], child)


class _PlaceholderLoader(Loader):
    def exec_module(self, module: ModuleType) -> None:
        if module.__name__ in LEAVES:
            # An import of a submodule imports the library first.
            vars(module).pop("__path__", None)
        else:
            # `from .SUBMODULE import *` binds nothing.
            vars(module)["__all__"] = ()
        module.__class__ = _Placeholder


class _PackageLoader(Loader):
    """Executes a package that imports its deferred submodules when it lacks a name.

    Args:
        loader: loader of the package.
        submodules: names of the submodules in the package.
    """

    def __init__(self, loader: Loader, submodules: Sequence[str]) -> None:
        self._loader, self._submodules = loader, submodules

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        if module.__spec__ is not None:
            module.__spec__.loader = module.__loader__ = self._loader
        self._loader.exec_module(module)
        names = vars(module)

        def complete() -> dict[str, Any]:
            for submodule in self._submodules:
                public = vars(_import(f"{module.__name__}.{submodule}"))
                for name in public.get("__all__") or [each for each in public if not each.startswith("_")]:
                    names.setdefault(name, public[name])
            return names

        def missing(name: str) -> Any:
            # `import *` asks for `__all__` first, and then reads the names that are there.
            if name in complete():
                return names[name]
            raise AttributeError(f"module '{module.__name__}' has no attribute '{name}'")

        names.update(__getattr__=missing, __dir__=lambda: sorted(complete()))
        for submodule in self._submodules:
            _remove(f"{module.__name__}.{submodule}")


class _Finder(MetaPathFinder):
    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        parent, _, child = name.rpartition(".")
        deferred = name in LEAVES or child in STARRED.get(parent, ())
        if name in _used or not (deferred or name in STARRED):
            return None
        spec = PathFinder.find_spec(name, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = _PlaceholderLoader() if deferred else _PackageLoader(spec.loader, STARRED[name])
        return spec


@contextmanager
def deferred_imports() -> Iterator[None]:
    """Defer the modules of `LEAVES` and `STARRED` that are first imported in this block."""
    finder = _Finder()
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)
        for name in LEAVES:
            _remove(name)
