"""Values checked against JSON Schemas that other people wrote: nothing is fetched, and no pattern runs away.

jsonschema fetches a ``$ref`` of another document from the network or from a file, and matches ``pattern`` with Python's
engine, whose time may double with each character (``^(a+)+$``). Here a reference stays within its schema and the
metaschemas, and patterns are matched by Rust's engine, through pydantic-core, in time linear in the text.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final, cast

from jsonschema import Draft202012Validator, validators
from jsonschema.exceptions import SchemaError, ValidationError
from jsonschema_specifications import REGISTRY  # pyright: ignore[reportMissingTypeStubs]
from pydantic_core import SchemaError as PatternError
from pydantic_core import SchemaValidator, core_schema
from pydantic_core import ValidationError as NoMatch
from referencing.exceptions import Unresolvable
from referencing.jsonschema import DRAFT202012

_VALUES: Final = frozenset({"const", "enum", "default", "examples"})
"""Keywords whose values are not schemas."""


class UnusableSchemaError(ValueError):
    """A value that is not a schema, refers to another document, or has a pattern that needs more than linear time."""


def require_usable(schema: Any) -> None:
    """Refuse a schema against which nothing could be checked.

    Args:
        schema: A JSON Schema of draft 2020-12.

    Raises:
        UnusableSchemaError: The text names the keyword at fault.
    """
    try:
        Draft202012Validator.check_schema(schema)
    except SchemaError as error:
        raise UnusableSchemaError(f"it is not a JSON Schema: {error.message}") from None
    resolver = REGISTRY.resolver_with_root(DRAFT202012.create_resource(schema))
    for keyword, value in _keywords(schema):
        if keyword == "pattern":
            _matcher(value)
        else:
            try:
                resolver.lookup(value)
            except Unresolvable:
                raise UnusableSchemaError(f"its $ref {value!r} is not within it, and nothing is fetched") from None


def first_error(schema: Any, value: Any) -> ValidationError | None:
    """Check a value.

    Args:
        schema: A JSON Schema of draft 2020-12.
        value: What is checked.

    Returns:
        What is wrong first, None for nothing.

    Raises:
        UnusableSchemaError: As :func:`require_usable`, found while the value was checked.
    """
    checker = _checker(schema, registry=REGISTRY, format_checker=Draft202012Validator.FORMAT_CHECKER)
    try:
        return next(cast("Iterator[ValidationError]", checker.iter_errors(value)), None)
    except Unresolvable as error:
        raise UnusableSchemaError(f"its $ref {error.ref!r} is not within it, and nothing is fetched") from None
    except RecursionError:
        raise UnusableSchemaError("it refers to itself without end") from None


def _keywords(schema: Any) -> Iterator[tuple[str, str]]:
    """Every reference and every pattern within a schema."""
    if isinstance(schema, list):
        for one in cast("list[Any]", schema):
            yield from _keywords(one)
    elif isinstance(schema, dict):
        for keyword, value in cast("dict[str, Any]", schema).items():
            if keyword in ("$ref", "pattern") and isinstance(value, str):
                yield keyword, value
            elif keyword == "patternProperties" and isinstance(value, dict):
                found = cast("dict[str, Any]", value)
                yield from (("pattern", pattern) for pattern in found)
                yield from _keywords(list(found.values()))
            elif keyword not in _VALUES:
                yield from _keywords(value)


@functools.lru_cache(maxsize=256)
def _matcher(pattern: str) -> Callable[[str], bool]:
    try:
        validator = SchemaValidator(core_schema.str_schema(pattern=pattern, regex_engine="rust-regex"))
    except PatternError:
        raise UnusableSchemaError(
            f"its pattern {pattern!r} cannot be matched in linear time: it looks ahead or behind, refers to a group, "
            "or is no regular expression"
        ) from None

    def matches(text: str) -> bool:
        try:
            validator.validate_python(text)
        except NoMatch:
            return False
        return True

    return matches


def _pattern(_: Any, pattern: str, instance: Any, __: Any) -> Iterator[ValidationError]:
    if isinstance(instance, str) and not _matcher(pattern)(instance):
        yield ValidationError(f"{instance!r} does not match {pattern!r}")


def _pattern_properties(
    validator: Any, patterns: Mapping[str, Any], instance: Any, _: Any
) -> Iterator[ValidationError]:
    if not isinstance(instance, dict):
        return
    for pattern, subschema in patterns.items():
        for key, value in cast("dict[str, Any]", instance).items():
            if _matcher(pattern)(key):
                yield from validator.descend(value, subschema, path=key, schema_path=pattern)


_checker = cast(
    "Callable[..., Any]",
    validators.extend(Draft202012Validator, {"pattern": _pattern, "patternProperties": _pattern_properties}),
)
