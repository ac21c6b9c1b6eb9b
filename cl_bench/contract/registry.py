"""How methods are found: the files of `methods/`, entry points of other packages, and files that the user names."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib
import importlib.util
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType
from typing import Any

from cl_bench.contract.hyperparameters import validated, validators
from cl_bench.contract.method import Method
from cl_bench.contract.sources import ENTRY_POINTS
from cl_bench.contract.sources import names as names
from cl_bench.errors import UserError, unknown_name
from cl_bench.experiment import Value
from cl_bench.files import TEXT_BYTES, open_regular

FILE_MODULE = "cl_bench_method_file_"
"""How the names of modules begin that are files of the user's."""


@dataclass(frozen=True)
class MethodEntry:
    """A method class with the name and revision under which its results are stored."""

    name: str
    cls: type[Method]
    revision: int | str

    def configure(self, settings: Mapping[str, Any]) -> Method:
        """The method with these hyper-parameters (strings, as typed by the user, are accepted).

        Raises:
            UserError: an unknown or ill-typed hyper-parameter, or one without default.
        """
        self._check_defaults()
        known = validators(self.cls)  # type: ignore[arg-type]
        for name in settings:
            if name not in known:
                raise unknown_name(f"hyper-parameter of '{self.name}'", name, known)
        return self.cls(**{name: validated(self.cls, name, value, self.name) for name, value in settings.items()})

    @property
    def defaults(self) -> dict[str, Value]:
        """The hyper-parameters that the method has if nothing is set.

        Raises:
            UserError: a field of the method has no default.
        """
        self._check_defaults()
        return self.cls().values()

    def _check_defaults(self) -> None:
        for field in dataclasses.fields(self.cls):
            if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
                raise UserError(f"hyper-parameter '{field.name}' of method '{self.name}' has no default; give it one")


def find(name: str) -> MethodEntry:
    """The installed method with this name.

    Raises:
        UserError: there is none; the closest name is suggested.
    """
    # Reading the entry points of all installed packages takes longer than anything else here.
    points = entry_points(group=ENTRY_POINTS)
    known = names(points)
    if name not in known:
        raise unknown_name("method", name, known, "'cl-bench ls methods' describes them.")
    for point in points:
        if point.name == name:
            try:
                cls = point.load()
            except Exception as error:
                raise UserError(
                    f"method '{name}' (entry point {point.value}) does not import: {type(error).__name__}: {error}; "
                    "repair or uninstall its package"
                ) from error
            if not (isinstance(cls, type) and issubclass(cls, Method)):
                raise UserError(
                    f"method '{name}' (entry point {point.value}) is not a subclass of "
                    "cl_bench.contract.method.Method; repair or uninstall its package"
                )
            return MethodEntry(name, cls, cls.revision)
    stem = name.replace("-", "_")
    cls = _only_method(importlib.import_module(f"cl_bench.methods.{stem}"), f"methods/{stem}.py")
    return MethodEntry(name, cls, cls.revision)


def lookup(wanted: Iterable[str], method_files: Iterable[Path] = ()) -> dict[str, MethodEntry]:
    """Methods by name; those of the user's files come first.

    Raises:
        UserError: see `find` and `load_file`.
    """
    own = {found.name: found for found in map(load_file, method_files)}
    return {name: own.get(name) or find(name) for name in wanted}


def load_file(path: Path) -> MethodEntry:
    """A method from a user's file; its name is the file's, its revision the hash of the content.

    Raises:
        UserError: no such file, it does not import, or it does not define exactly one method.
    """
    try:
        with open_regular(path, TEXT_BYTES) as file:
            source = file.read()
    except OSError as error:
        raise UserError(f"method file '{path}' cannot be read ({error.strerror})") from error
    if not path.stem.isidentifier():
        raise UserError(f"method file '{path.name}' must be named like a Python module, e.g. my_method.py")
    spec = importlib.util.spec_from_file_location(FILE_MODULE + path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # dataclasses look their module up by name.
    sys.modules[spec.name] = module
    try:
        spec.loader.exec_module(module)
    except SyntaxError as error:
        raise UserError(f"method file '{path}' has a syntax error in line {error.lineno}: {error.msg}") from error
    except Exception as error:
        raise UserError(f"method file '{path}' does not import: {type(error).__name__}: {error}") from error
    cls = _only_method(module, str(path))
    return MethodEntry(path.stem, cls, revision_of(source))


def revision_of(source: bytes) -> str:
    """The revision of a method in a file of this content."""
    return "file:" + hashlib.sha256(source).hexdigest()[:16]


def _only_method(module: ModuleType, where: str) -> type[Method]:
    found = [
        value
        for value in vars(module).values()
        if isinstance(value, type) and issubclass(value, Method) and value.__module__ == module.__name__
    ]
    if len(found) != 1:
        listed = ", ".join(cls.__name__ for cls in found) or "none"
        raise UserError(
            f"'{where}' must define exactly one subclass of cl_bench.contract.method.Method, found {listed}; "
            "'cl-bench new-method NAME' writes a working example"
        )
    return found[0]
