"""What users type: arguments, answers, lines."""

from __future__ import annotations

import asyncio
import io
import os
from pathlib import Path
from typing import Any

import click
import mcp_types as types
import pytest
from rich.console import Console

from mcp_celery.cli.arguments import parsed_object, split_pairs, typed_arguments
from mcp_celery.cli.lines import Lines
from mcp_celery.cli.questions import choices_of, value_of
from mcp_celery.cli.render import printable
from mcp_celery.cli.results import print_result, print_structured

pytestmark = pytest.mark.anyio


def test_arguments_take_the_types_of_the_schema() -> None:
    schema = {"properties": {"name": {"type": "string"}, "year": {"type": "integer"}, "tags": {"type": "array"}}}
    texts = {"name": "2026", "year": "2026", "tags": '["a"]', "unknown": "true", "odd": "{"}
    assert typed_arguments(texts, schema) == {
        "name": "2026",
        "year": 2026,
        "tags": ["a"],
        "unknown": True,
        "odd": "{",
    }
    assert split_pairs(["a=1", "b==", "c="]) == {"a": "1", "b": "=", "c": ""}
    with pytest.raises(click.UsageError):
        split_pairs(["=1"])


def test_an_object_and_a_bare_option_may_stand_together() -> None:
    assert parsed_object([]) == (None, False)
    assert parsed_object([""]) == (None, True)
    assert parsed_object(['{"a": 1}']) == ({"a": 1}, False)
    assert parsed_object(["", "{}"]) == ({}, True)


@pytest.mark.parametrize(
    ("text", "schema", "value"),
    [
        ("Yes", {"type": "boolean"}, True),
        ("0", {"type": "boolean"}, False),
        (" 7 ", {"type": "integer"}, 7),
        ("7.5", {"type": "number"}, 7.5),
        ("a, b,", {"type": "array", "items": {"enum": ["a", "b"]}}, ["a", "b"]),
        ("x", {}, "x"),
    ],
)
def test_answers_become_values(text: str, schema: dict[str, Any], value: object) -> None:
    assert value_of(text, schema) == value


@pytest.mark.parametrize(
    ("text", "schema", "says"),
    [
        ("perhaps", {"type": "boolean"}, "y or n"),
        ("seven", {"type": "integer"}, "'seven' is no integer"),
        ("7.5", {"type": "integer"}, "is no integer"),
        ("-1", {"type": "number", "minimum": 0}, "minimum"),
        ("c", {"type": "array", "items": {"enum": ["a"]}}, "not one of"),
        ("c", {"oneOf": [{"const": "a"}]}, "not valid"),
    ],
)
def test_wrong_answers_are_refused(text: str, schema: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        value_of(text, schema)


def test_choices_are_found_however_they_are_written() -> None:
    titled = [{"const": "r", "title": "Red"}, {"const": "g"}]
    for field in ({"oneOf": titled}, {"type": "array", "items": {"anyOf": titled}}):
        assert choices_of(field) == {"r": "Red", "g": "g"}
    assert choices_of({"enum": ["r", "g"], "enumNames": ["Red", "Green"]}) == {"r": "Red", "g": "Green"}
    assert choices_of({"items": {"enum": ["r"]}}) == {"r": "r"}
    assert choices_of({"type": "string"}) == {}


async def test_lines_of_a_pipe_come_as_they_are_asked_for() -> None:
    read_end, write_end = os.pipe()
    lines = Lines(read_end)
    assert not lines.is_terminal
    first = asyncio.create_task(lines.read())
    await asyncio.sleep(0)
    interrupting = asyncio.create_task(lines.read())
    await asyncio.sleep(0)
    os.write(write_end, b"now\nthen\nlater\nca")
    assert (await interrupting, await first) == ("now", "then"), "who asked last is served first"
    assert await lines.read() == "later"
    given_up = asyncio.create_task(lines.read())
    await asyncio.sleep(0)
    given_up.cancel()
    os.write(write_end, "fé\r\nno end".encode())
    os.close(write_end)
    assert [await lines.read() for _ in range(4)] == ["café", "no end", None, None]
    os.close(read_end)


async def test_lines_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "typed").write_text("one\n\ntwo")
    with (tmp_path / "typed").open() as file:
        lines = Lines(file.fileno())
        assert [await lines.read() for _ in range(4)] == ["one", "", "two", None]


def test_a_terminal_is_not_told_what_to_do() -> None:
    assert printable("a\x1b[2Jb\r\x07\u202e\n\tü") == "a [2Jb   \n\tü"
    assert printable("a\nb", lines=False) == "a b"


def shown(structured: object) -> str:
    out = io.StringIO()
    print_structured(Console(file=out, width=60), structured)
    return out.getvalue()


def test_structured_content_is_shown_by_its_shape() -> None:
    assert shown({"result": "text"}) == "text\n"
    assert shown({"result": [1, "two", None, {"a": 1}]}) == '1\ntwo\n\n{"a": 1}\n'
    assert "│ a │ 1 │" in shown({"a": 1})
    assert shown({"result": [{"a": 1}, {"b": [2]}]}).count("│") == 6


def test_a_content_that_is_no_base64_is_told(tmp_path: Path) -> None:
    result = types.CallToolResult(content=[types.ImageContent(data="?", mime_type="image/png")])
    with pytest.raises(ValueError, match="not base64"):
        print_result(Console(file=io.StringIO()), result, name="../x", folder=tmp_path)
    result.content = [types.AudioContent(data="AAAA", mime_type="audio/unheard-of")]
    out = io.StringIO()
    print_result(Console(file=out, width=300), result, name="../x", folder=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["x-1.bin"]
