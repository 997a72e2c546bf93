"""What is taken for the same answer, and what is not."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Final

import pytest

from tests.differential.calls import NO_ANSWER, SERVER_ERROR, Number, Outcome, decoded
from tests.differential.differences import Pair, compare, compare_fatal, compare_listed

pytestmark = pytest.mark.smoke

INTERNAL: Final = Number("-32603")


def text(value: str, *, is_error: bool = False, **more: Any) -> Outcome:
    return Outcome("result", {"content": [{"type": "text", "text": value}], "isError": is_error, **more})


def error(code: int, message: str, **more: Any) -> Outcome:
    return Outcome("error", {"code": Number(str(code)), "message": message, **more})


def pair(plain: Outcome, other: Outcome, **more: Any) -> Pair:
    """A task of 2026-07-28, unless another is asked for."""
    ended = replace(other, status=other.status or "completed") if other.kind == "result" else other
    known: dict[str, Any] = {"logs": False, "revision": "2026-07-28", "way": "task", **more}
    return Pair(plain=plain, other=ended, **known)


CORE: Final[dict[str, Any]] = {"revision": "2025-11-25"}
CRASH: Final = text("Error executing tool t0001", is_error=True)
OWN_ERRORS: Final = [
    Outcome("result", {"content": content, "isError": True, "structuredContent": {"why": "x"}})
    for content in ([], [{"type": "image", "data": "", "mimeType": "image/png"}], CRASH.content["content"] * 2)
]
"""Of a tool that gives an error instead of raising it."""
REFUSED: Final = error(-32602, "Invalid arguments for tool 't0001': a: Field required")
NOT_SERIALIZED: Final = error(-32603, "The job's result could not be serialized")


@pytest.mark.parametrize(
    "same",
    [
        pair(text("x"), text("x")),
        pair(text("<A object at 0x7f0000000001>"), text("<A object at 0x7f0000000002>")),
        pair(text("x", _meta={"io.modelcontextprotocol/serverInfo": {}}), text("x")),
        pair(text("x"), text("x", _meta={"io.modelcontextprotocol/related-task": {}}), **CORE),
        pair(CRASH, REFUSED, **CORE),
        pair(text("caf\udce9"), text("caf?")),
        pair(Outcome("broken", NO_ANSWER), text("caf?"), **CORE),
        pair(error(0, "why"), NOT_SERIALIZED, **CORE),
        pair(Outcome("broken", SERVER_ERROR), NOT_SERIALIZED),
        pair(Outcome("broken", SERVER_ERROR), error(-32050, "x")),
        pair(CRASH, text("done"), logs=True, **CORE),
        *(pair(one, replace(one, status="failed"), logs=True, **CORE) for one in OWN_ERRORS),
        pair(error(1, "x" * 2001), error(1, "x" * 2000)),
        pair(text("2026-07-28"), text("2025-11-25")),
    ],
)
def test_documented_differences_are_no_faults(same: Pair) -> None:
    assert compare(same) == ""


@pytest.mark.parametrize(
    "different",
    [
        pair(text("x"), text("y")),
        pair(text("x", structuredContent={"n": Number("1")}), text("x", structuredContent={"n": Number("1.0")})),
        pair(text("x", structuredContent={"n": Number("1")}), text("x", structuredContent={"n": "1"})),
        pair(text("x", structuredContent=None), text("x")),
        pair(text("x", _meta={"a": 1}), text("x")),
        pair(text("x"), replace(text("x"), status="failed")),
        pair(text("x", is_error=True), text("x", is_error=True), **CORE),
        pair(CRASH, REFUSED),
        pair(CRASH, replace(REFUSED, status="failed", message=REFUSED.content["message"]), **CORE),
        pair(CRASH, error(-32602, "another")),
        pair(text("?"), text("caf\udce9")),
        pair(Outcome("broken", NO_ANSWER), Outcome("lost", ""), **CORE),
        pair(Outcome("broken", SERVER_ERROR), error(-32050, "x", data=1)),
        pair(Outcome("lost", ""), text("x")),
        pair(text("x"), NOT_SERIALIZED),
        pair(error(-32050, "x"), NOT_SERIALIZED),
        pair(CRASH, text("done"), **CORE),
        pair(CRASH, text("done"), logs=True),
        *(pair(one, text("done"), logs=True, **CORE) for one in OWN_ERRORS),
        pair(error(1, "x" * 2001), error(1, "x" * 1999)),
        pair(error(1, "x"), replace(error(1, "x"), status="failed", message="y")),
        pair(error(1, "x"), error(2, "x")),
    ],
)
def test_differences_that_are_not_documented_are_faults(different: Pair) -> None:
    assert compare(different)


@pytest.mark.parametrize("way", ["server", "worker"])
def test_foreground_calls_have_fewer_differences(way: str) -> None:
    related = text("x", _meta={"io.modelcontextprotocol/related-task": {}})
    assert compare(pair(text("x"), replace(related, status=None), way=way, **CORE))


def test_a_call_that_would_end_a_plain_server_has_an_error_with_a_reason() -> None:
    assert compare_fatal(error(-32603, "why")) == ""
    assert all(map(compare_fatal, [error(-32603, ""), text("x"), Outcome("broken", SERVER_ERROR), Outcome("lost", "")]))


def test_tools_are_listed_with_their_support_of_tasks_and_else_as_they_are() -> None:
    plain = Outcome("result", {"name": "t", "inputSchema": {}})
    assert compare_listed(plain, Outcome("result", {**plain.content, "execution": {}})) == ""
    assert compare_listed(plain, Outcome("result", {"name": "t", "inputSchema": {"x": 1}}))
    assert compare_listed(plain, Outcome("result", None))


@pytest.mark.parametrize("wrong", ["NaN", "[Infinity]", '{"a": -Infinity}', ""])
def test_a_line_that_is_no_json_is_not_read(wrong: str) -> None:
    with pytest.raises(ValueError, match=r"JSON|Expecting"):
        decoded(wrong)
