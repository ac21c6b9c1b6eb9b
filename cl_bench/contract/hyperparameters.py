"""How the hyper-parameters of a method are checked: by the annotations of its fields."""

from __future__ import annotations

import dataclasses
import math
from functools import cache
from typing import Any, get_args, get_origin, get_type_hints

from pydantic import TypeAdapter, ValidationError

from cl_bench.errors import UserError


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


def validated(cls: type[Any], name: str, value: Any, shown: str | None = None) -> Any:
    """A hyper-parameter's value, checked and converted; strings, as the user typed them, are accepted.

    Raises:
        UserError: not a value of the field's type; the message names the method as `shown`.
    """
    if isinstance(value, str):
        if value.lower() in ("none", "null"):
            value = None
        elif _is_tuple(_hints(cls)[name]):  # type: ignore[arg-type]
            value = value.replace("+", ",").split(",")
    try:
        valid = validators(cls)[name].validate_python(value)  # type: ignore[arg-type]
    except ValidationError as error:
        message = error.errors()[0]["msg"]
        raise UserError(
            f"{shown or cls.__name__}.{name} = {value!r} is not valid: {message[0].lower()}{message[1:]}"
        ) from error
    if isinstance(valid, float) and not math.isfinite(valid):
        raise UserError(f"{shown or cls.__name__}.{name} = {value!r} is not valid: input should be a finite number")
    return valid
