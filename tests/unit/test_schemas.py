"""JSON Schemas of other people: nothing is fetched for one, and no pattern takes longer than its text is long."""

from __future__ import annotations

import socket
import threading
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

from mcp_celery.cli.remote.questions import value_of
from mcp_celery.common.schemas import UnusableSchemaError, first_error, require_usable

RUNAWAY = {"type": "string", "pattern": "^(a+)+$"}
NESTED: dict[str, Any] = {"$defs": {"word": {"type": "string"}}, "properties": {"a": {"$ref": "#/$defs/word"}}}


@pytest.fixture
def visited() -> Generator[tuple[str, list[object]]]:
    """A URL, and who came to fetch it."""
    visitors: list[object] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def accept() -> None:
            while True:
                try:
                    connection, visitor = listener.accept()
                except OSError:
                    return
                visitors.append(visitor)
                connection.close()

        thread = threading.Thread(target=accept)
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}/schema.json", visitors
        finally:
            listener.shutdown(socket.SHUT_RDWR)
    thread.join()


def test_a_reference_to_another_document_is_an_error_and_nothing_is_fetched(
    visited: tuple[str, list[object]], tmp_path: Path
) -> None:
    url, visitors = visited
    (secret := tmp_path / "secret.json").write_text('{"type": "string"}')
    for place in (url, secret.as_uri(), "other.json", "#/$defs/missing"):
        for schema in ({"$ref": place}, {"properties": {"a": {"$ref": place}}}, {"allOf": [{"$ref": place}]}):
            with pytest.raises(UnusableSchemaError, match=r"\$ref .* is not within it, and nothing is fetched"):
                require_usable(schema)
            with pytest.raises(UnusableSchemaError, match="nothing is fetched"):
                first_error(schema, {"a": "x"})
        with pytest.raises(ValueError, match="nothing is fetched"):
            value_of("x", {"$ref": place})
    assert visitors == []


def test_a_reference_within_a_schema_is_followed() -> None:
    require_usable(NESTED)
    assert first_error(NESTED, {"a": "x"}) is None
    assert first_error(NESTED, {"a": 1}) is not None
    require_usable({"$ref": "https://json-schema.org/draft/2020-12/schema"})


def test_a_schema_that_never_ends_is_an_error() -> None:
    with pytest.raises(UnusableSchemaError, match="refers to itself"):
        first_error({"$ref": "#"}, 1)


def test_a_pattern_with_exponential_backtracking_is_matched_at_once() -> None:
    """Python's engine would take centuries over these forty characters."""
    require_usable(RUNAWAY)
    text = "a" * 40 + "!"
    assert first_error(RUNAWAY, text) is not None
    assert first_error(RUNAWAY, "a" * 40) is None
    assert first_error({"patternProperties": {RUNAWAY["pattern"]: {"type": "number"}}}, {text: "x", "aa": 1}) is None
    assert first_error({"patternProperties": {RUNAWAY["pattern"]: {"type": "number"}}}, {"aa": "x"}) is not None
    assert first_error({"propertyNames": RUNAWAY}, {text: "x"}) is not None
    with pytest.raises(ValueError, match="does not match"):
        value_of(text, RUNAWAY)


@pytest.mark.parametrize("pattern", ["(?=a)b", r"(a)\1", "(", "(a{1000}){1000}{1000}"])
def test_a_pattern_that_has_no_linear_match_is_an_error(pattern: str) -> None:
    schemas: list[Any] = [
        {"pattern": pattern},
        {"properties": {"x": {"pattern": pattern}}},
        {"patternProperties": {pattern: {}}},
    ]
    for schema in schemas:
        with pytest.raises(UnusableSchemaError):
            require_usable(schema)
    with pytest.raises(UnusableSchemaError, match="pattern"):
        first_error({"pattern": pattern}, "text")


@pytest.mark.parametrize("schema", [{"type": "objekt"}, {"required": 3}, 3])
def test_a_value_that_is_no_schema_is_an_error(schema: Any) -> None:
    with pytest.raises(UnusableSchemaError, match="not a JSON Schema"):
        require_usable(schema)


def test_values_that_only_look_like_keywords_are_left_alone() -> None:
    require_usable(
        {"const": {"pattern": "(", "$ref": "http://x"}, "enum": [{"$ref": "y"}], "properties": {"pattern": {}}}
    )
