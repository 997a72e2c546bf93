"""What users type: arguments, answers, lines."""

from __future__ import annotations

import asyncio
import io
import json
import os
from contextlib import nullcontext
from datetime import date
from pathlib import Path
from typing import Annotated, Any, Literal, cast
from uuid import UUID

import click
import jsonschema
import mcp_types as types
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, Field
from rich.console import Console

from mcp_celery.cli.arguments import call_command, example_pairs, parsed_object, split_pairs, typed_arguments
from mcp_celery.cli.remote.lines import Lines
from mcp_celery.cli.remote.questions import Prompter, choices_of, value_of
from mcp_celery.cli.remote.render import printable
from mcp_celery.cli.remote.results import MOST_BYTES, print_result, print_structured

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


class Room(BaseModel):
    number: Annotated[int, Field(gt=100)]
    beds: Annotated[list[Literal["single", "double"]], Field(min_length=1)]
    inner: Room | None = None


class Booking(BaseModel):
    guest: str
    nights: Annotated[int, Field(ge=2)]
    discount: Annotated[float, Field(lt=0.5)]
    kind: Literal["full", "half"]
    code: int | None
    day: date
    key: UUID
    room: Room
    tags: list[str]
    paid: bool
    notes: str = "none"


def test_example_arguments_fit_the_schema_and_required_ones_alone_are_given() -> None:
    schema = Booking.model_json_schema()
    pairs = example_pairs(schema)
    assert pairs[:3] == ["guest=text", "nights=2", "discount=-0.5"]
    assert not any(pair.startswith("notes=") for pair in pairs)
    arguments = typed_arguments(split_pairs(pairs), schema)
    jsonschema.validate(arguments, schema)
    assert Booking.model_validate_json(json.dumps(arguments)).room.beds == ["single"]


@pytest.mark.parametrize(
    "schema",
    [
        {},
        {"required": ["a"]},
        {"required": ["a"], "properties": {"a": {"$ref": "#/$defs/A"}}, "$defs": {"A": {"$ref": "#/$defs/A"}}},
        {"required": ["a"], "properties": {"a": {"$ref": "https://example.com/schema"}}},
        {"required": ["a"], "properties": {"a": True}},
    ],
)
def test_a_schema_without_a_usable_type_has_a_text_as_example(schema: dict[str, Any]) -> None:
    assert example_pairs(schema) == ["a=text"] * len(schema.get("required", ()))


def test_a_command_that_calls_a_tool_can_be_typed() -> None:
    assert call_command("http://a", "t", ["n=1", "s=a b"], options=["-H", "@f"]) == (
        "mcp-celery call http://a t --arg n=1 --arg 's=a b' -H @f"
    )
    assert call_command("http://a", "-t", ["n=1"]) == "mcp-celery call --arg n=1 -- http://a -t"


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
        ("seven", {"type": "integer"}, "'seven' is not an integer"),
        ("7.5", {"type": "integer"}, "is not an integer"),
        ("nan", {"type": "number"}, "'nan' is not a number that JSON has"),
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


class Typed(Lines):
    """What somebody types, over and over."""

    def __init__(self, *lines: str) -> None:
        super().__init__()
        self._typed = [*lines]

    async def read(self) -> str | None:
        return self._typed.pop(0) if self._typed else None


async def asked(schema: Any, *lines: str) -> types.ElicitResult | types.ErrorData:
    """What the server is answered to a form."""
    prompter = Prompter(Console(file=io.StringIO(), width=200), Typed(*lines), nullcontext)
    params = types.ElicitRequestFormParams(message="?", requested_schema=schema)
    return await prompter.elicit(cast(Any, None), params)


@pytest.mark.parametrize(
    ("form", "says"),
    [
        ({"properties": 7}, "7 is not of type 'object'"),
        ({"properties": {"a": True}}, "its field 'a' is True and not an object"),
        ({"required": 7}, "7 is not of type 'array'"),
        ({"properties": {"a": {"enum": 7}}}, "7 is not of type 'array'"),
        ({"properties": {"a": {"minLength": "x"}}}, "'x' is not of type 'integer'"),
        ({"properties": {"a": {"pattern": "("}}}, "is not a 'regex'"),
        ({"properties": {"a": {"pattern": "(?=a)"}}}, "cannot be matched in linear time"),
        ({"properties": {"a": {"$ref": "https://evil.example/x"}}}, "nothing is fetched"),
        ({"properties": {"a": {"$dynamicRef": "#nowhere"}}}, "nothing is fetched"),
        ({"properties": {"a": {"$ref": "#/$defs/a"}}, "$defs": {"a": {"$ref": "#/$defs/a"}}}, "without end"),
        ({"properties": {"a": {"title": ["x" * 5000]}}}, "…"),
    ],
)
async def test_a_schema_that_is_no_form_is_refused(form: Any, says: str) -> None:
    answer = await asked(form, "x", "x")
    assert isinstance(answer, types.ErrorData)
    assert answer.message.startswith("the server's form cannot be asked: ")
    assert says in answer.message
    assert len(answer.message) < 400


async def test_a_form_may_define_what_its_fields_share() -> None:
    form = {"properties": {"a": {"$ref": "#/$defs/colour"}}, "$defs": {"colour": {"enum": ["red"]}}}
    assert await asked(form, "blue", "red") == types.ElicitResult(action="accept", content={"a": "red"})


KEYWORDS = [
    "properties",
    "required",
    "type",
    "enum",
    "enumNames",
    "oneOf",
    "anyOf",
    "items",
    "const",
    "title",
    "default",
    "description",
    "format",
    "pattern",
    "minLength",
    "$ref",
    "$defs",
    "#/$defs/a",
    "a",
    "string",
    "array",
    "number",
]
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-1, 2) | st.sampled_from(KEYWORDS),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYWORDS), inner, max_size=4),
    max_leaves=12,
)


@settings(deadline=None)
@given(
    form=st.dictionaries(st.sampled_from(KEYWORDS), VALUES, max_size=4),
    fields=st.dictionaries(st.sampled_from(["a", "b"]), VALUES, max_size=2),
    lines=st.lists(st.sampled_from(["x", "", "1", "a,b", "nan", "y"]), max_size=4),
)
def test_no_form_makes_the_command_crash(form: dict[str, Any], fields: dict[str, Any], lines: list[str]) -> None:
    answer = asyncio.run(asked({"properties": fields, **form}, *lines))
    assert isinstance(answer, types.ElicitResult | types.ErrorData)


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


async def test_lines_of_a_file_are_read_to_its_end(tmp_path: Path) -> None:
    (tmp_path / "typed").write_text("one\n\ntwo")
    with (tmp_path / "typed").open() as file:
        lines = Lines(file.fileno())
        assert [await lines.read() for _ in range(4)] == ["one", "", "two", None]


def test_control_characters_are_not_printed() -> None:
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


def test_a_content_that_is_not_base64_is_an_error(tmp_path: Path) -> None:
    result = types.CallToolResult(content=[types.ImageContent(data="?", mime_type="image/png")])
    with pytest.raises(ValueError, match="not base64"):
        print_result(Console(file=io.StringIO()), result, name="../x", folder=tmp_path)
    result.content = [types.AudioContent(data="AAAA", mime_type="audio/unheard-of")]
    out = io.StringIO()
    print_result(Console(file=out, width=300), result, name="../x", folder=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["x-1.bin"]


def test_a_content_that_is_too_large_is_not_saved(tmp_path: Path) -> None:
    large = types.ImageContent(data="A" * (MOST_BYTES // 3 * 4 + 4), mime_type="image/png")
    small = types.ImageContent(data="AAAA", mime_type="image/png")
    result = types.CallToolResult(content=[small, large, small])
    out = io.StringIO()
    print_result(Console(file=out, width=300), result, name="x", folder=tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"x-1.png", "x-2.png"}
    assert "(a file too many: not saved)\n" in out.getvalue()
    assert "Not saved: 1 contents. At most 100 files and 64 MiB" in out.getvalue()
