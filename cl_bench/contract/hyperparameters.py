"""How the hyper-parameters of a method are checked: by the annotations of its fields."""

from __future__ import annotations

import dataclasses
import math
from functools import cache
from typing import Any, get_args, get_origin, get_type_hints

from pydantic import TypeAdapter, ValidationError

from cl_bench.errors import UserError, clipped


@cache
def _hints(cls: type[Any]) -> dict[str, Any]:
    """The types of all fields; reading them takes a millisecond."""
    return get_type_hints(cls, include_extras=True)


@cache
def validators(cls: type[Any]) -> dict[str, TypeAdapter[Any]]:
    """What checks each hyper-parameter, by name."""
    hints = _hints(cls)  # type: ignore[arg-type]
    return {field.name: TypeAdapter(hints[field.name]) for field in dataclasses.fields(cls)}


def _is_tuple(hint: Any) -> bool:
    """Whether a type is a tuple, or a tuple or None."""
    return any(get_origin(part) is tuple for part in (hint, *get_args(hint)))


def _takes_bool(hint: Any) -> bool:
    """Whether true and false are values of a type."""
    return hint in (bool, Any, object) or any(isinstance(part, bool) or _takes_bool(part) for part in get_args(hint))


def validated(cls: type[Any], name: str, value: Any, shown: str | None = None) -> Any:
    """A hyper-parameter's value, checked and converted; strings, as the user typed them, are accepted.

    Raises:
        UserError: not a value of the field's type; the message names the method as `shown`.
    """
    hint, where = _hints(cls)[name], f"{shown or cls.__name__}.{name}"  # type: ignore[arg-type]
    if isinstance(value, bool) and not _takes_bool(hint):
        raise UserError(f"{where} = {value} is not valid: input should not be true or false")
    if isinstance(value, int) and abs(value) >= 10**18:
        raise UserError(f"{where} is not valid: input should be a number of at most 18 digits")
    if isinstance(value, str):
        if value.lower() in ("none", "null"):
            value = None
        elif _is_tuple(hint):
            value = value.replace("+", ",").split(",")
    try:
        valid = validators(cls)[name].validate_python(value)  # type: ignore[arg-type]
    except ValidationError as error:
        message = error.errors()[0]["msg"]
        reason = f"{message[0].lower()}{message[1:]}"
    else:
        numbers = valid if isinstance(valid, tuple | list) else [valid]
        if all(math.isfinite(number) for number in numbers if isinstance(number, float)):
            return valid
        reason = "input should be a finite number"
    raise UserError(f"{where} = {clipped(repr(value))} is not valid: {reason}")
