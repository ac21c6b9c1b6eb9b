"""Finds methods: the files of `methods/`, entry points of other packages, and files that the user names."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib
import importlib.util
import inspect
import shlex
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType
from typing import Any

from cl_bench.contract.hyperparameters import validated, validators
from cl_bench.contract.method import Method
from cl_bench.contract.near_names import unknown_method
from cl_bench.contract.sources import ENTRY_POINTS, check_entry_point, check_file_name
from cl_bench.contract.sources import names as names
from cl_bench.errors import UserError, unknown_name
from cl_bench.experiment import FILE_REVISION, Value
from cl_bench.files import TEXT_BYTES, open_regular

FILE_MODULE = "cl_bench_method_file_"
"""Prefix of the module names under which a user's method files are imported."""


@dataclass(frozen=True)
class MethodEntry:
    """A method class, with the name and revision under which its results are stored.

    Attributes:
        name: name of the method on the command line and in records.
        cls: class of the method.
        revision: the class's `revision`; for a user's file, the hash of its content.
        file: the user's file that defines the method; None: the method is installed.
    """

    name: str
    cls: type[Method]
    revision: int | str
    file: Path | None = None

    def in_command(self, option: str = "") -> str:
        """The method in a command line, after an option or as an argument: `--methods mine --method-file mine.py`."""
        named = f"{option} {self.name}".lstrip()
        return f"{named} --method-file {shlex.quote(str(self.file))}" if self.file else named

    def configure(self, settings: Mapping[str, Any]) -> Method:
        """Make the method with these hyper-parameters; the others have their defaults.

        Args:
            settings: values by hyper-parameter; strings, as the user typed them, are converted.

        Raises:
            UserError: a hyper-parameter is unknown, has a value of a wrong type, or has no valid default.
        """
        self._check_defaults()
        known = validators(self.cls)  # type: ignore[arg-type]
        for name in settings:
            if name not in known:
                raise unknown_name(f"hyper-parameter of '{self.name}'", name, known)
        return self.cls(**{name: validated(self.cls, name, value, self.name) for name, value in settings.items()})

    @property
    def defaults(self) -> dict[str, Value]:
        """Default hyper-parameters by name.

        Raises:
            UserError: a hyper-parameter has no default, or a value in the class is none.
        """
        self._check_defaults()
        return self.cls().values()

    @property
    def stated(self) -> dict[str, Value]:
        """Defaults that the author of a method outside cl-bench has written, by name.

        What such a method inherits from cl-bench's own classes, shipped methods included, is not stated by its author.
        """
        own = [base for base in self.cls.__mro__ if not base.__module__.startswith("cl_bench.")]
        names = {name for base in own for name in inspect.get_annotations(base)}
        return {name: value for name, value in self.defaults.items() if name in names}

    def _check_defaults(self) -> None:
        for field in dataclasses.fields(self.cls):
            if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
                raise UserError(f"hyper-parameter '{field.name}' of method '{self.name}' has no default; give it one")
            value = getattr(self.cls, field.name, field.default)
            if field.default is not dataclasses.MISSING and value is not field.default:
                raise UserError(
                    f"'{field.name} = {value!r}' in {self.cls.__name__} does not set the default of a hyper-parameter; "
                    f"annotate it, '{field.name}: TYPE = {value!r}', in a class under @dataclass(frozen=True, "
                    "kw_only=True, eq=False)"
                )


def find(name: str) -> MethodEntry:
    """Find an installed method by name.

    Raises:
        UserError: no method has this name (the message suggests the closest ones), two have it, or its package does not
            import.
    """
    # The entry points are read once: that takes longer than anything else here.
    points = entry_points(group=ENTRY_POINTS)
    known = names(points)
    if name not in known:
        raise unknown_method(name, known, points)
    for point in points:
        if point.name == name:
            check_entry_point(point)
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
    """Find several methods by name; a user's file wins over another package's method of the same name.

    Raises:
        UserError: see `find` and `load_file`.
    """
    own = {entry.name: entry for entry in map(load_file, method_files)}
    return {name: own.get(name) or find(name) for name in wanted}


def load_file(path: Path) -> MethodEntry:
    """Import the method of a user's file; its name is the file's name, its revision the hash of the content.

    Raises:
        UserError: the file cannot be read, has the name of a shipped method, does not import, or does not define
            exactly one method.
    """
    try:
        with open_regular(path, TEXT_BYTES) as file:
            source = file.read()
    except OSError as error:
        raise UserError(f"method file '{path}' cannot be read ({error.strerror})") from error
    if not path.stem.isidentifier():
        raise UserError(f"method file '{path.name}' must be named like a Python module, e.g. my_method.py")
    check_file_name(path)
    spec = importlib.util.spec_from_file_location(FILE_MODULE + path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # dataclasses look up their module by name.
    sys.modules[spec.name] = module
    try:
        spec.loader.exec_module(module)
    except SyntaxError as error:
        raise UserError(f"method file '{path}' has a syntax error in line {error.lineno}: {error.msg}") from error
    except Exception as error:
        raise UserError(f"method file '{path}' does not import: {type(error).__name__}: {error}") from error
    cls = _only_method(module, str(path))
    return MethodEntry(path.stem, cls, revision_of(source), path)


def revision_of(source: bytes) -> str:
    """Revision of a method in a file with this content."""
    return FILE_REVISION + hashlib.sha256(source).hexdigest()[:16]


def _only_method(module: ModuleType, where: str) -> type[Method]:
    """The one method class that a module defines itself; imported ones do not count."""
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
