"""Fields of stored files in Markdown, from the models that read and write them."""

from __future__ import annotations

import inspect
import json
from typing import Any

from pydantic import BaseModel

from cl_bench.experiment import Experiment, ImageTransforms, Limits, Session
from cl_bench.running.recipes import Tuned
from cl_bench.store.record import RunRecord
from tools.site.docstrings import sections
from tools.site.markup import code, plain, several, table


def record() -> str:
    """The run record and the objects in it."""
    inner = (Experiment, ImageTransforms, Limits, Session)
    return "\n".join([_model(RunRecord), *(f"### {cls.__name__}\n\n{_model(cls)}" for cls in inner)])


def recipes() -> str:
    """An entry of a recipes file."""
    return _model(Tuned)


def _model(cls: type[BaseModel]) -> str:
    """The fields of a model: name, JSON type, default, meaning."""
    text, meanings = sections(inspect.getdoc(cls) or "")
    schema = cls.model_json_schema(mode="serialization")
    rows = []
    for name, field in cls.model_fields.items():
        default = "required" if field.is_required() else code(_json(field.get_default(call_default_factory=True)))
        kind = _kind(schema["properties"][name], schema.get("$defs", {}))
        rows.append((code(name), kind, default, plain(meanings.get(name, ""))))
    return f"{plain(text)}\n\n{table(('field', 'type', 'default', 'meaning'), rows)}"


def _json(value: Any) -> str:
    """A default as it is written in JSON."""
    return "{}" if isinstance(value, BaseModel) else json.dumps(value, ensure_ascii=False)


def _kind(schema: dict[str, Any], models: dict[str, Any]) -> str:
    """A JSON type in words."""
    if reference := schema.get("$ref"):
        name = reference.rpartition("/")[2]
        if models.get(name, {}).get("properties"):
            return f"[{name}](#{name.lower()})"
        return _kind(models.get(name, {}), models)
    if options := schema.get("anyOf"):
        return " or ".join(dict.fromkeys(_kind(option, models) for option in options))
    if choices := schema.get("enum"):
        return ", ".join(code(str(choice)) for choice in choices)
    if "const" in schema:
        return code(str(schema["const"]))
    match schema.get("type"):
        case "array":
            items = schema.get("items") or {}
            return f"list of {several(_kind(items, models))}" if items else "list"
        case "object":
            inner = schema.get("additionalProperties")
            kinds = _kind(inner, models) if isinstance(inner, dict) and inner else ""
            return f"object of {several(kinds)}" if kinds and " or " not in kinds else "object"
        case "string":
            return "date and time" if schema.get("format") == "date-time" else "text"
        case found:
            return {"integer": "whole number", "boolean": "true or false", "null": "null"}.get(found, found or "any")
