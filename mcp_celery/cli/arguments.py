"""A tool's arguments from the command line: ``--arg name=value`` by the tool's schema, ``--json '{…}'`` as it is."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, cast

import click


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
