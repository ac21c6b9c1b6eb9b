"""Saves and restores the state of the modules behind a method, to imitate the start of a new process."""

from __future__ import annotations

import sys
import sysconfig
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from functools import _lru_cache_wrapper
from pathlib import Path
from types import CellType, FunctionType, ModuleType, SimpleNamespace
from typing import Any

import numpy as np
from torch import Tensor, nn

from cl_bench.contract.method import Method

_LARGE = 1_000_000
"""Arrays with more numbers than this are taken for data sets and not copied."""

_LIBRARIES = [Path(sysconfig.get_path(name)) for name in ("stdlib", "platstdlib", "purelib", "platlib")]


class ModuleState:
    """The current state of everything that a method's module refers to, saved so that it can be restored.

    Saved are globals, attributes of classes, functions and objects, elements of containers, small arrays, and cells of
    closures. The search follows references into other modules if these belong to no library: files of the user, and
    modules of the method's own package.
    """

    def __init__(self, method: Method) -> None:
        classes = [cls for cls in type(method).__mro__ if issubclass(cls, Method) and not _of_harness(cls.__module__)]
        self._roots = {cls.__module__.partition(".")[0] for cls in classes} - {"cl_bench"}
        self._restorers: list[Callable[[], None]] = []
        # Holds all objects that were met, so that none is freed and its id reused.
        met: dict[int, Any] = {}
        stack: list[Any] = [*classes, *(sys.modules.get(cls.__module__) for cls in classes)]
        while stack:
            value = stack.pop()
            if id(value) not in met:
                met[id(value)] = value
                stack += self._take(value)

    def restore(self) -> None:
        """Restore the saved state."""
        for restore in self._restorers:
            restore()

    def _own(self, module: str | None) -> bool:
        """Whether a module belongs to the method or the user, and not to the harness or a library."""
        if module is None or _of_harness(module):
            return False
        if module.partition(".")[0] in self._roots or module.startswith("cl_bench.methods."):
            return True
        file = getattr(sys.modules.get(module), "__file__", None)
        return file is not None and not any(Path(file).is_relative_to(folder) for folder in _LIBRARIES)

    def _take(self, value: Any) -> Iterable[Any]:
        """Save how a value is restored, and return the objects that it refers to."""
        if isinstance(value, Tensor | np.ndarray):
            return self._array(value)
        if isinstance(value, dict):
            return self._mapping(value, value.__setitem__, value.__delitem__)
        if isinstance(value, list | deque | set):
            return self._elements(value)
        if isinstance(value, tuple | frozenset):
            return value
        if isinstance(value, CellType):
            return self._cell(value)
        if isinstance(value, ModuleType):
            names = vars(value) if self._own(value.__name__) else {}
            return self._mapping(names, names.__setitem__, names.__delitem__)
        if not self._own(getattr(value, "__module__", None)) and not isinstance(value, nn.Module | SimpleNamespace):
            return ()
        home = sys.modules.get(str(getattr(value, "__module__", None)))
        if isinstance(value, type):
            names = vars(value)  # type: ignore[assignment]
            inside = self._mapping(names, lambda *item: setattr(value, *item), lambda name: delattr(value, name))
            return [home, *inside]
        if isinstance(value, _lru_cache_wrapper):
            return [home, *self._cached(value)]
        held = getattr(value, "__dict__", {})
        inside = self._mapping(held, held.__setitem__, held.__delitem__)
        if isinstance(value, FunctionType):
            return [home, *inside, *(value.__closure__ or ()), value.__defaults__, value.__kwdefaults__]
        return inside

    def _mapping(self, live: Any, put: Callable[[Any, Any], Any], drop: Callable[[Any], Any]) -> Sequence[Any]:
        saved = {name: value for name, value in live.items() if not str(name).startswith("__")}

        def restore() -> None:
            for name in [name for name in live if name not in saved and not str(name).startswith("__")]:
                drop(name)
            for name, value in saved.items():
                if name not in live or live[name] is not value:
                    put(name, value)

        self._restorers.append(restore)
        return list(saved.values())

    def _elements(self, live: Any) -> Sequence[Any]:
        saved = list(live)

        def restore() -> None:
            if len(saved) != len(live) or any(now is not then for now, then in zip(live, saved, strict=True)):
                live.clear()
                (live.update if isinstance(live, set) else live.extend)(saved)

        self._restorers.append(restore)
        return saved

    def _array(self, live: Any) -> Sequence[Any]:
        if (live.numel() if isinstance(live, Tensor) else live.size) <= _LARGE:
            saved = live.detach().clone() if isinstance(live, Tensor) else live.copy()

            def restore() -> None:
                if isinstance(live, Tensor):
                    live.data = saved.clone()
                elif live.flags.writeable:
                    live[...] = saved

            self._restorers.append(restore)
        return ()

    def _cell(self, live: CellType) -> Sequence[Any]:
        if live == CellType():
            return ()
        saved = live.cell_contents
        self._restorers.append(lambda: setattr(live, "cell_contents", saved))
        return (saved,)

    def _cached(self, live: Any) -> Sequence[Any]:
        saved = live.cache_info().currsize
        self._restorers.append(lambda: live.cache_clear() if live.cache_info().currsize > saved else None)
        return (live.__wrapped__,)


def _of_harness(module: str) -> bool:
    return module.partition(".")[0] == "cl_bench" and not module.startswith("cl_bench.methods.")
