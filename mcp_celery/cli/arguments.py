"""A tool's arguments on the command line: ``--arg name=value`` by the tool's schema, ``--json '{…}'`` as it is.

Also the other way: a command line that calls a tool, with a value for each required argument.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable, Mapping, Sequence
from datetime import date
from itertools import chain
from typing import Any, Final, cast

import click

MOST_NESTED: Final = 8
"""The depth to which an example value follows a schema, which may refer to itself."""
MOST_ITEMS: Final = 3
"""The most items of a list in an example value."""
EXAMPLES: Final[Mapping[str, object]] = {
    "date": date(2026, 1, 31).isoformat(),
    "date-time": "2026-01-31T12:00:00Z",
    "time": "12:00:00Z",
    "email": "name@example.com",
    "uri": "https://example.com",
    "uuid": "00000000-0000-4000-8000-000000000000",
}
"""Example values of strings, by JSON Schema's ``format``."""


class JSONCommand(click.Command):
    """A command whose ``--json`` stands alone, or takes a JSON object: ``--json '{…}'``."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse the command line."""
        following = [*args, ""][1:]
        marked = [
            "--json=" if arg == "--json" and not after.lstrip().startswith("{") else arg
            for arg, after in zip(args, following, strict=True)
        ]
        return super().parse_args(ctx, marked)


def parsed_object(texts: Sequence[str]) -> tuple[dict[str, Any] | None, bool]:
    """Read the values of ``--json``.

    Returns:
        The object, None where there is none; and whether a bare ``--json`` was among them.

    Raises:
        click.UsageError: It is no JSON object, or there are two.
    """
    objects = [text for text in texts if text]
    if len(objects) > 1:
        raise click.UsageError("--json: give one object only")
    if not objects:
        return None, bool(texts)
    try:
        parsed = json.loads(objects[0])
    except ValueError as error:
        raise click.UsageError(f"--json: {error}") from error
    if not isinstance(parsed, dict):
        raise click.UsageError("--json: expected an object, {…}")
    return cast("dict[str, Any]", parsed), len(texts) > 1


def split_pairs(pairs: Sequence[str], *, option: str = "--arg") -> dict[str, str]:
    """``name=value`` texts as a mapping.

    Args:
        pairs: The texts.
        option: What they were given as, for the error.

    Raises:
        click.UsageError: One of them has no ``=``.
    """
    split = [pair.partition("=") for pair in pairs]
    for name, equals, _ in split:
        if not (name and equals):
            raise click.UsageError(f"{option} {name!r}: expected name=value")
    return {name: value for name, _, value in split}


def typed_arguments(texts: Mapping[str, str], schema: Mapping[str, Any]) -> dict[str, Any]:
    """Texts as the types that a tool's schema wants: JSON where the value may be something else than a text.

    >>> typed_arguments({"year": "2026", "name": "2026"}, {"properties": {"name": {"type": "string"}}})
    {'year': 2026, 'name': '2026'}

    Args:
        texts: Argument names with what was typed.
        schema: The tool's input schema.
    """
    properties: Mapping[str, Any] = schema.get("properties") or {}
    return {name: _typed(text, properties.get(name)) for name, text in texts.items()}


def _typed(text: str, schema: Any) -> Any:
    if isinstance(schema, Mapping) and cast("Mapping[str, Any]", schema).get("type") == "string":
        return text
    try:
        return json.loads(text)
    except ValueError:
        return text  # the server has the last word


def call_command(
    url: str, tool: str, pairs: Iterable[str], *, program: str = "mcp-celery", options: Sequence[str] = ()
) -> str:
    """The command line that calls a tool.

    >>> call_command("http://127.0.0.1:8000", "greet", ["name=Ada King"])
    "mcp-celery call http://127.0.0.1:8000 greet --arg 'name=Ada King'"

    Args:
        url: The server's endpoint.
        tool: The tool's name.
        pairs: Its arguments, as ``name=value``.
        program: How to type ``mcp-celery``.
        options: Further options.
    """
    target, given = [url, tool], [*chain.from_iterable(("--arg", pair) for pair in pairs), *options]
    # Names of tools may begin with a hyphen, as options do.
    return shlex.join([program, "call", *([*given, "--", *target] if tool.startswith("-") else [*target, *given])])


def example_pairs(schema: Mapping[str, Any]) -> list[str]:
    """The required arguments of a tool as ``name=value``, each with a value of its type.

    >>> example_pairs({"properties": {"year": {"type": "integer"}, "label": {}}, "required": ["year"]})
    ['year=1']

    Args:
        schema: The tool's input schema.
    """
    properties: Mapping[str, Any] = schema.get("properties") or {}
    values = ((name, _example(properties.get(name), schema, MOST_NESTED)) for name in schema.get("required") or ())
    return [f"{name}={value if isinstance(value, str) else json.dumps(value)}" for name, value in values]


def _example(found: Any, root: Mapping[str, Any], depth: int) -> object:
    """A value that a schema accepts, as far as its type says."""
    if not isinstance(found, Mapping) or not depth:
        return "text"
    schema = cast("Mapping[str, Any]", found)
    if isinstance(reference := schema.get("$ref"), str):
        return _example(_referred(root, reference), root, depth - 1)
    for choices in (schema.get("enum"), schema.get("examples")):
        if isinstance(choices, list) and choices:
            return cast("list[object]", choices)[0]
    for exact in ("const", "default"):
        if exact in schema:
            return schema[exact]
    for several in ("anyOf", "oneOf", "allOf"):
        if choices := schema.get(several):
            return _example(choices[0], root, depth - 1)
    kind = schema.get("type")
    kinds = cast("list[object]", kind) if isinstance(kind, list) else [kind]
    return _of_type(kinds[0] if kinds else None, schema, root, depth)


def _of_type(kind: object, schema: Mapping[str, Any], root: Mapping[str, Any], depth: int) -> object:
    if kind in ("integer", "number"):
        return _number(schema)
    if kind == "array":
        return [_example(schema.get("items"), root, depth - 1)] * min(schema.get("minItems") or 0, MOST_ITEMS)
    if kind == "object":
        properties: Mapping[str, Any] = schema.get("properties") or {}
        return {name: _example(properties.get(name), root, depth - 1) for name in schema.get("required") or ()}
    if kind in ("boolean", "null"):
        return True if kind == "boolean" else None
    return EXAMPLES.get(str(schema.get("format")), "text")


def _number(schema: Mapping[str, Any]) -> object:
    least = max(schema.get("minimum", 1), schema.get("exclusiveMinimum", 0) + 1)
    return min(least, schema.get("maximum", least), schema.get("exclusiveMaximum", least + 1) - 1)


def _referred(root: Mapping[str, Any], reference: str) -> object:
    """What a reference within the schema names; None for any other reference."""
    place: Any = root
    for name in reference.removeprefix("#/").split("/"):
        place = cast("Mapping[str, Any]", place).get(name) if isinstance(place, Mapping) else None
    return place
