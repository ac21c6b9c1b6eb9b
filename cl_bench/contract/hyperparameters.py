"""Validation of a method's hyper-parameters by the annotations of its fields."""

from __future__ import annotations

import dataclasses
import math
from functools import cache
from typing import Any, get_args, get_origin, get_type_hints

from pydantic import TypeAdapter, ValidationError

from cl_bench.errors import UserError, clipped


@cache
def _hints(cls: type[Any]) -> dict[str, Any]:
    """Types of all fields by name; cached, as resolving the annotations takes a millisecond."""
    return get_type_hints(cls, include_extras=True)


@cache
def validators(cls: type[Any]) -> dict[str, TypeAdapter[Any]]:
    """Pydantic's validator of each hyper-parameter, by name."""
    hints = _hints(cls)  # type: ignore[arg-type]
    return {field.name: TypeAdapter(hints[field.name]) for field in dataclasses.fields(cls)}


def _is_tuple(hint: Any) -> bool:
    """Whether a type is a tuple or an optional tuple."""
    return any(get_origin(part) is tuple for part in (hint, *get_args(hint)))


def _takes_bool(hint: Any) -> bool:
    """Whether a type accepts true and false."""
    return hint in (bool, Any, object) or any(isinstance(part, bool) or _takes_bool(part) for part in get_args(hint))


def validated(cls: type[Any], name: str, value: Any, shown: str | None = None) -> Any:
    """Validate a hyper-parameter's value and convert it to the field's type.

    Args:
        cls: the method's class.
        name: name of the hyper-parameter.
        value: a Python value, or a string as the user typed it: `none` is None, `1+2` a tuple.
        shown: name of the method in messages; None: the name of the class.

    Raises:
        UserError: the value is not one of the field's type, is not finite, or has more than 18 digits.
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
