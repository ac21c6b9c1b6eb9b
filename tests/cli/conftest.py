"""Shared fixtures: `cl-bench data` in this process, on small data sets."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from typer.testing import CliRunner

from cl_bench.cli.data import app
from cl_bench.errors import UserError
from cl_bench.streams import catalogue
from cl_bench.streams.types import DataSet
from tests.helpers.command import Outcome


@pytest.fixture
def data(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Outcome]:
    """`data("list", "--root", ...)`: `cl-bench data ...`; a `UserError` ends as it does there."""

    def call(*arguments: object, columns: int = 200) -> Outcome:
        monkeypatch.setenv("COLUMNS", str(columns))
        result = CliRunner().invoke(app, [str(argument) for argument in arguments])
        if isinstance(result.exception, UserError):
            return Outcome(2, result.stdout, f"error: {result.exception}")
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return Outcome(result.exit_code, result.stdout, result.stderr)

    return call


@pytest.fixture
def use(monkeypatch: pytest.MonkeyPatch) -> Callable[[DataSet], None]:
    """Put a small data set in the place of the real one."""
    return lambda dataset: monkeypatch.setitem(catalogue.shipped(), dataset.name, dataset)
