"""Explains errors in the arguments of a call from the tool's schema. The server decides; this only explains."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, cast

from jsonschema.exceptions import ValidationError

from mcp_celery.cli.remote.tools import arguments_of, type_of
from mcp_celery.common.schemas import UnusableSchemaError, first_error


def unknown_names(names: Iterable[str], schema: Mapping[str, Any]) -> str | None:
    """Explain which names are no arguments of the tool; None: all are, or the tool takes any.

    >>> unknown_names(["lable"], {"properties": {"label": {"type": "string"}}})
    'argument `lable`: the tool has no such argument. It takes: label: string (optional)'

    Args:
        names: The names that were typed.
        schema: The tool's input schema.
    """
    properties = cast("Mapping[str, Any]", schema.get("properties") or {})
    if schema.get("additionalProperties") or schema.get("patternProperties"):
        return None
    unknown = next((name for name in names if name not in properties), None)
    return None if unknown is None else _with_list(f"argument `{unknown}`: the tool has no such argument", schema)


def explained(arguments: Mapping[str, Any], schema: Mapping[str, Any]) -> str | None:
    """Explain what is wrong with the arguments of a refused call; None: nothing that the schema says.

    >>> explained({"n": "x"}, {"properties": {"n": {"type": "integer"}}, "required": ["n"]})
    "argument `n`: expected an integer, got 'x'. It takes: n: integer"

    Args:
        arguments: What was sent.
        schema: The tool's input schema.
    """
    try:
        error = first_error(schema, arguments)
    except UnusableSchemaError:
        return None
    return None if error is None else _with_list(_told(error), schema)


def _told(error: ValidationError) -> str:
    if error.validator == "required" and not error.absolute_path:
        given = cast("Mapping[str, Any]", error.instance)
        missing = [name for name in cast("list[str]", error.validator_value) if name not in given]
        return f"argument `{missing[0]}` is missing"
    path = ".".join(str(part) for part in error.absolute_path)
    if error.validator in ("type", "anyOf", "oneOf", "enum"):
        return f"argument `{path}`: expected {_with_article(type_of(error.schema))}, got {error.instance!r}"
    return f"argument `{path}`: {error.message}" if path else error.message


def _with_article(kind: str) -> str:
    if kind.startswith('"'):
        return kind
    return f"{'an' if kind[:1] in 'aeiou' else 'a'} {kind}"


def _with_list(text: str, schema: Mapping[str, Any]) -> str:
    return f"{text}. It takes: {', '.join(arguments_of(schema)) or 'no arguments'}"
