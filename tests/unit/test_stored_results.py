"""Stored results in HTTP responses: as they are, in the place of their mark."""

from __future__ import annotations

import json
from typing import Any

import pytest
from starlette.types import Message

from mcp_celery.engine.outcome import JobOutcome
from mcp_celery.engine.read_models import TaskView
from mcp_celery.protocol.stored_results import JOINED_BYTES, SPLICED_CHARS, Splice, splice_of
from tests.support.worlds import a_record

pytestmark = pytest.mark.anyio

PADDING = "ж" * JOINED_BYTES


def view_of(text: str) -> TaskView:
    return TaskView(a_record(), JobOutcome.from_json({"format": 2, "result": text}))


async def answered(view: TaskView, *, is_error: bool = False) -> tuple[Any, list[Message]]:
    """What the client reads, and the messages that it gets."""
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    splice = Splice({"type": "http"}, send)
    mark = splice.mark_of(view)
    answer: object = {"error": "no"} if is_error else {"result": {"result": mark}}
    body = json.dumps(answer).encode()
    length = str(len(body)).encode()
    await splice.send({"type": "http.response.start", "status": 200, "headers": [(b"Content-Length", length)]})
    await splice.send({"type": "http.response.body", "body": body[:9], "more_body": True})
    await splice.send({"type": "http.response.body", "body": body[9:]})
    received = b"".join(message["body"] for message in sent[1:])
    assert dict(sent[0]["headers"])[b"Content-Length"] == str(len(received)).encode()
    assert [message.get("more_body", False) for message in sent[1:]][-1] is False
    return json.loads(received), sent


@pytest.mark.parametrize("text", [PADDING, PADDING[: SPLICED_CHARS + 1]], ids=["in pieces", "in one"])
@pytest.mark.parametrize(
    ("before", "behind"),
    [({}, {"resultType": "complete"}), ({"resultType": "complete"}, {}), ({}, {})],
    ids=["2026-07-28", "likewise", "2025-11-25"],
)
async def test_a_large_result_is_sent_as_it_was_stored(
    text: str, before: dict[str, str], behind: dict[str, str]
) -> None:
    result = {**before, "content": [{"type": "text", "text": text}], "isError": False, **behind}
    stored = json.dumps(result, ensure_ascii=False, separators=(",", ":"))
    view = view_of(stored)
    answer, sent = await answered(view)
    assert answer["result"]["result"] == {"resultType": "complete", **result}
    assert view.outcome is not None
    assert view.outcome.unread_text == stored
    assert stored.encode()[1:] in b"".join(message["body"] for message in sent[1:])


async def test_what_a_worker_writes_can_be_sent_as_it_was_stored() -> None:
    content = {"content": [{"type": "text", "text": PADDING}], "isError": False}
    result = {**content, "resultType": "complete", "structuredContent": {"result": PADDING}}
    view = view_of(JobOutcome(result).text)
    answer, _ = await answered(view)
    assert answer["result"]["result"] == result


@pytest.mark.parametrize(
    "stored",
    [
        json.dumps({"content": "x" * (SPLICED_CHARS - 50)}),
        json.dumps({"content": [{"resultType": "y" * SPLICED_CHARS}]}),
        json.dumps({"text": "\ud800" * SPLICED_CHARS}, ensure_ascii=False),
        json.dumps(["x" * SPLICED_CHARS]),
    ],
    ids=["small", "a-result-type-inside", "no-utf-8", "no-object"],
)
async def test_results_of_other_forms_are_written_as_usual(stored: str) -> None:
    answer, _ = await answered(view_of(stored))
    assert answer["result"]["result"] is None


async def test_a_result_that_has_been_read_is_written_as_usual() -> None:
    view = view_of(json.dumps({"content": PADDING}))
    assert view.result is not None
    answer, _ = await answered(view)
    assert answer["result"]["result"] is None


async def test_an_error_has_no_stored_result() -> None:
    answer, _ = await answered(view_of(json.dumps({"content": PADDING})), is_error=True)
    assert answer == {"error": "no"}


def test_other_transports_do_not_splice_stored_results() -> None:
    assert splice_of(None) is None
    assert splice_of(object()) is None
