"""What a question to a client of revision 2025-11-25 comes to, whatever the client and its channel do."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from mcp.shared.exceptions import MCPError
from mcp_types import CONNECTION_CLOSED, INVALID_PARAMS

from mcp_celery.config import TaskConfig
from mcp_celery.context import TaskContextSnapshot
from mcp_celery.engine import ELICIT, Asking, Caller, JSONObject, Question, RpcError, Submission, TaskRecord, now_ms
from mcp_celery.errors import McpCeleryError, StoreUnavailableError, TooManyLookupsError
from mcp_celery.protocol.question_delivery import Channel, Relay, Turns
from mcp_celery.testing import MemoryBackend
from tests.support.session import REVISION
from tests.support.waiting import eventually

pytestmark = pytest.mark.anyio

KEY = "question-1"
FORM: JSONObject = {
    "message": "Your name?",
    "requestedSchema": {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]},
}
ADA: JSONObject = {"action": "accept", "content": {"name": "Ada"}}


Send = Callable[[str, JSONObject], Awaitable[JSONObject]]


class Scripted(Channel):
    """A channel that is what the test says."""

    def __init__(self, send: Send, *, gone: bool, asks: bool) -> None:
        self._send = send
        self._gone = gone
        self._asks = asks

    async def send(self, method: str, params: JSONObject) -> JSONObject:
        return await self._send(method, params)

    def can_ask(self, request: JSONObject) -> bool:
        return self._asks or request["method"] != ELICIT

    async def is_gone(self) -> bool:
        return self._gone


class Asked:
    """A task that asks one question, and relays of it."""

    def __init__(self) -> None:
        self.backend = MemoryBackend()
        self.engine = self.backend.engine()
        self.turns = Turns()

    async def ask(self) -> TaskRecord:
        snapshot = TaskContextSnapshot(protocol_version=REVISION)
        record = await self.engine.submit(
            Submission(caller=Caller(), task_type="tool", component="x", config=TaskConfig(), snapshot=snapshot)
        )
        question = Question(KEY, ELICIT, FORM)
        assert await self.backend.store.ask(record.ref, question, Asking(attempt=1, at_ms=now_ms()))
        self.record = record
        return record

    def relay(self, send: Send, *, gone: bool = False, asks: bool = True) -> Relay:
        channel = Scripted(send, gone=gone, asks=asks)
        return Relay(self.engine, Caller(), self.record.task_id, turns=self.turns, channel=channel)

    async def show(self, relay: Relay) -> None:
        relay.show(await self.engine.get(Caller(), self.record.task_id))

    async def heard(self) -> Any:
        return await self.backend.store.heard(self.record.ref, KEY, attempt=1)

    async def is_answered(self) -> bool:
        return not isinstance(await self.heard(), bool)


@pytest.fixture
async def asked() -> Asked:
    asked = Asked()
    await asked.ask()
    return asked


async def test_a_clients_own_error_with_the_code_of_a_closed_channel_is_its_answer(asked: Asked) -> None:
    async def send(_method: str, _params: JSONObject) -> JSONObject:
        raise MCPError(CONNECTION_CLOSED, "the person is away")

    async with asked.relay(send) as relay:
        await asked.show(relay)
        await eventually(asked.is_answered, what="the tool learns")
    assert await asked.heard() == RpcError(CONNECTION_CLOSED, "the person is away")


async def test_a_closed_channel_leaves_the_question_to_the_next(asked: Asked) -> None:
    tried = asyncio.Event()

    async def closed(_method: str, _params: JSONObject) -> JSONObject:
        tried.set()
        raise MCPError(CONNECTION_CLOSED, "Connection closed")

    async def ada(_method: str, _params: JSONObject) -> JSONObject:
        return ADA

    async with asked.relay(closed) as gone, asked.relay(ada) as relay:
        await asked.show(gone)
        await tried.wait()
        assert await asked.heard() is True
        await asked.show(relay)
        await eventually(asked.is_answered, what="the next channel answers")
    assert await asked.heard() == ADA


async def test_a_client_that_disconnected_gives_up_its_turn(asked: Asked) -> None:
    sent = asyncio.Event()
    late: asyncio.Future[JSONObject] = asyncio.get_running_loop().create_future()

    async def into_the_void(_method: str, _params: JSONObject) -> JSONObject:
        sent.set()
        return await late

    async def ada(_method: str, _params: JSONObject) -> JSONObject:
        return ADA

    async with asked.relay(into_the_void, gone=True) as dead, asked.relay(ada) as relay:
        await asked.show(dead)
        await sent.wait()
        await asked.show(relay)
        await eventually(asked.is_answered, what="the next channel answers")
        late.set_result({"action": "decline"})
    assert await asked.heard() == ADA


async def test_a_client_that_cannot_be_asked_is_not_asked(asked: Asked) -> None:
    async def send(_method: str, _params: JSONObject) -> JSONObject:
        raise AssertionError("it cannot be asked")

    async with asked.relay(send, asks=False) as relay:
        await asked.show(relay)
        await asyncio.sleep(0)
    assert await asked.heard() is True


async def test_the_tool_learns_of_an_unfit_answer_though_the_store_is_down(
    asked: Asked, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    answer = asked.backend.store.answer
    failures = iter([True, False])

    async def answer_later(*args: Any, **options: Any) -> Any:
        if next(failures):
            raise StoreUnavailableError
        return await answer(*args, **options)

    async def unfit(_method: str, _params: JSONObject) -> JSONObject:
        return {"action": "accept", "content": {"name": 7}}

    monkeypatch.setattr(asked.backend.store, "answer", answer_later)
    async with asked.relay(unfit) as relay:
        await asked.show(relay)
        await eventually(asked.is_answered, what="the tool learns")
    heard = await asked.heard()
    assert isinstance(heard, RpcError)
    assert heard.code == INVALID_PARAMS
    assert "refused an answer" in caplog.text


async def test_an_unfit_answer_to_a_task_that_is_gone_ends_quietly(
    asked: Asked, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    answer = asked.backend.store.answer

    async def expired(*args: Any, **options: Any) -> Any:
        await asked.backend.store.delete(asked.record.ref)
        return await answer(*args, **options)

    async def unfit(_method: str, _params: JSONObject) -> JSONObject:
        return {"action": "accept", "content": {}}

    monkeypatch.setattr(asked.backend.store, "answer", expired)
    async with asked.relay(unfit) as relay:
        await asked.show(relay)
        await eventually(lambda: "dropped an answer" in caplog.text, what="the answer is given up")
    assert "the delivery of a question failed" not in caplog.text


@pytest.mark.parametrize("refusal", [StoreUnavailableError(), TooManyLookupsError(10, retry_after_ms=50)])
async def test_a_question_is_asked_when_the_store_answers_again(
    asked: Asked, monkeypatch: pytest.MonkeyPatch, refusal: McpCeleryError
) -> None:
    get = asked.engine.get
    failures = iter([True, True, False])

    async def get_later(*args: Any, **options: Any) -> Any:
        if next(failures):
            raise refusal
        return await get(*args, **options)

    async def ada(_method: str, _params: JSONObject) -> JSONObject:
        return ADA

    async with asked.relay(ada) as relay:
        view = await get(Caller(), asked.record.task_id)
        monkeypatch.setattr(asked.engine, "get", get_later)
        relay.show(view)
        await eventually(asked.is_answered, what="the tool learns")
    assert await asked.heard() == ADA
