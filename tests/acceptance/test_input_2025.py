"""Questions of tasks to clients of revision 2025-11-25: on an open ``tasks/result``, or on the session's channel."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, cast

import httpx2
import pytest
from celery import Celery
from mcp.client._memory import InMemoryTransport
from mcp.client.streamable_http import streamable_http_client
from mcp_types import ErrorData
from redis import Redis

from mcp_celery import Settings
from mcp_celery.common.redis_translation import celery_url
from mcp_celery.store.keys import RedisKeys
from tests.support.deployment import Deployment, deployed
from tests.support.servers import asking
from tests.support.session import RELATED, REVISION, Connect, Session, over_http, session_over
from tests.support.waiting import eventually, soon
from tests.support.wire import JSON, Wire

pytestmark = pytest.mark.anyio

SPEC = "tests.support.servers.asking:server"
ABLE: JSON = {"elicitation": {"form": {}, "url": {}}, "sampling": {}, "roots": {}}


@pytest.fixture(scope="module")
def deployment(store_url: str, pool: str) -> Iterator[Deployment]:
    """A store, a worker of each pool, and a server whose tools ask."""
    with deployed(store_url, f"asking-2025-{pool}", spec=SPEC) as found, found.worker(pool, concurrency=4):
        yield found


@pytest.fixture(scope="module")
def url(deployment: Deployment) -> str:
    return deployment.serve()


@pytest.fixture(params=["http", "stdio", "memory"])
def connect(request: pytest.FixtureRequest, deployment: Deployment, url: str) -> Connect:
    """Opens a session with a server whose tools ask."""

    def transport() -> AbstractAsyncContextManager[Any]:
        if request.param == "http":
            return streamable_http_client(url)
        if request.param == "memory":
            settings = Settings.load(redis_url=deployment.store_url, namespace=deployment.namespace)
            address = celery_url(deployment.store_url)
            app = Celery("in-memory", broker=address, backend=address, set_as_current=False)
            return InMemoryTransport(asking.build(settings=settings, celery=app))
        return deployment.stdio()

    def open_session(capabilities: JSON = ABLE, **options: Any) -> AbstractAsyncContextManager[Session]:
        return session_over(transport(), capabilities=capabilities, **options)

    return open_session


def named(name: str) -> JSON:
    return {"action": "accept", "content": {"name": name}}


async def ada(_: JSON) -> JSON:
    return named("Ada")


async def echo(request: JSON) -> JSON:
    """Answers with the question, so that a test sees which answer went where."""
    await asyncio.sleep(0.05)
    return named(request["params"]["message"])


async def never(_: JSON) -> JSON:
    await asyncio.Event().wait()
    return {}


async def asks(session: Session, task_id: str) -> None:
    """Wait until a task asks."""

    async def is_asking() -> bool:
        return (await session.get(task_id))["status"] == "input_required"

    await eventually(is_asking, what="the task asks")


def text_of(result: JSON) -> str:
    return result["content"][0]["text"]


@pytest.mark.each_pool
@pytest.mark.shows("L39", "L24")
async def test_a_question_is_sent_on_the_open_result_and_its_answer_continues_the_task(connect: Connect) -> None:
    async with connect(answer_with=ada) as session:
        task_id = (await session.create("greet"))["taskId"]
        assert text_of((await session.result(task_id)).result) == "Hello, Ada!"
        (asked,) = session.asked
        assert asked["method"] == "elicitation/create"
        assert asked["params"]["message"] == "Your name?"
        assert asked["params"]["_meta"] == {RELATED: {"taskId": task_id}}
        pushed = [one["status"] for one in await session.ended(task_id)]
        assert pushed[0] == "input_required"
        assert pushed[-1] == "completed"


@pytest.mark.shows("L39")
async def test_a_client_that_only_polls_is_asked_on_its_session(connect: Connect) -> None:
    async with connect(answer_with=ada) as session:
        task_id = (await session.create("greet"))["taskId"]
        assert (await session.ended(task_id))[-1]["status"] == "completed"
        assert len(session.asked) == 1
        assert session.asked[0]["params"]["_meta"] == {RELATED: {"taskId": task_id}}
        assert text_of((await session.result(task_id)).result) == "Hello, Ada!"


@pytest.mark.shows("L39", "L11")
async def test_the_status_says_that_it_waits_and_the_ttl_stays(connect: Connect) -> None:
    go = asyncio.Event()

    async def later(_: JSON) -> JSON:
        await go.wait()
        return named("Ada")

    async with connect(answer_with=later) as session:
        created = (await session.call("greet", task={"ttl": 60_000})).result["task"]
        await asks(session, created["taskId"])
        await eventually(lambda: session.asked, what="the client is asked")
        seen = await session.get(created["taskId"])
        assert (seen["status"], seen["ttl"]) == ("input_required", 60_000)
        assert "inputRequests" not in seen
        # Who opens the result now waits for the answer that is on its way: nobody is asked twice.
        waiting = await session.send("tasks/result", {"taskId": created["taskId"]})
        await session.get(created["taskId"])
        go.set()
        assert text_of((await session.answer(waiting)).result) == "Hello, Ada!"
        assert len(session.asked) == 1


@pytest.mark.shows("L40")
@pytest.mark.parametrize("action", ["decline", "cancel"])
async def test_a_tool_learns_that_it_gets_no_answer(connect: Connect, action: str) -> None:
    async def refuse(_: JSON) -> JSON:
        return {"action": action}

    async with connect(answer_with=refuse) as session:
        task_id = (await session.create("greet"))["taskId"]
        assert text_of((await session.result(task_id)).result) == action


@pytest.mark.shows("L40")
async def test_a_tool_learns_what_its_client_answers_instead(connect: Connect) -> None:
    async def misunderstand(request: JSON) -> JSON | ErrorData:
        if request["method"] == "elicitation/create":
            return {"action": "accept", "content": {"name": 7}}
        return ErrorData(code=-32042, message="not today")

    async with connect(answer_with=misunderstand) as session:
        refused = (await session.result((await session.create("think"))["taskId"])).error
        assert (refused["code"], refused["message"]) == (-32042, "not today")
        unfit = (await session.result((await session.create("greet"))["taskId"])).error
        assert unfit["code"] == -32602


@pytest.mark.shows("L40")
async def test_a_client_without_handler_or_capability_does_not_hang_the_task(connect: Connect) -> None:
    async with connect() as declares_and_cannot:
        task_id = (await declares_and_cannot.create("greet"))["taskId"]
        assert (await declares_and_cannot.result(task_id)).error["code"] == -32601
        assert (await declares_and_cannot.get(task_id))["status"] == "failed"
    async with connect(capabilities={}) as declares_nothing:
        task_id = (await declares_nothing.create("greet"))["taskId"]
        assert (await declares_nothing.result(task_id)).error["code"] == -32021
        assert declares_nothing.asked == []


@pytest.mark.shows("L40")
@pytest.mark.parametrize("capabilities", [{}, {"sampling": {}}, {"elicitation": {"url": {}}}])
async def test_a_waiting_client_that_cannot_be_asked_leaves_the_question_to_another(
    url: str, capabilities: JSON
) -> None:
    async with over_http(url, capabilities=ABLE, answer_with=never) as gone:
        task_id = (await gone.create("greet"))["taskId"]
    async with over_http(url, capabilities=capabilities) as waits:
        waiting = await waits.send("tasks/result", {"taskId": task_id})
        await asks(waits, task_id)
        async with over_http(url, capabilities=ABLE, answer_with=ada) as can:
            assert text_of((await can.result(task_id)).result) == "Hello, Ada!"
        assert text_of((await waits.answer(waiting)).result) == "Hello, Ada!"
        assert waits.asked == []


@pytest.mark.shows("L40")
async def test_models_and_roots_are_asked_likewise(connect: Connect) -> None:
    async def answer(request: JSON) -> JSON:
        if request["method"] == "roots/list":
            return {"roots": [{"uri": "file:///work"}]}
        return {"role": "assistant", "model": "small", "content": {"type": "text", "text": "word"}}

    async with connect(answer_with=answer) as session:
        thought = (await session.create("think"))["taskId"]
        assert text_of((await session.result(thought)).result) == "small: word"
        looked = (await session.create("look_around"))["taskId"]
        assert "file:///work" in str((await session.result(looked)).result)
        related = [one["params"]["_meta"][RELATED]["taskId"] for one in session.asked]
        assert related == [thought, looked]


@pytest.mark.shows("L41")
async def test_questions_at_once_and_one_after_the_other_keep_apart(connect: Connect) -> None:
    async with connect(answer_with=echo) as session:
        at_once = (await session.create("ask_three", label="part"))["taskId"]
        assert text_of((await session.result(at_once)).result) == "part 0? part 1? part 2?"
        in_turn = (await session.create("one_after_the_other"))["taskId"]
        assert text_of((await session.result(in_turn)).result) == "Sure? Sure? Sure?"
        assert len(session.asked) == 6
        assert len({one["id"] for one in session.asked}) == 6
        pushed = [one["status"] for one in await session.ended(in_turn)]
        assert pushed[-1] == "completed"


@pytest.mark.shows("L39", "L41")
async def test_a_tool_that_returns_its_questions_gets_all_answers(connect: Connect, tmp_path: Any) -> None:
    names = iter(["Paris", "Rome"])

    async def answer(_: JSON) -> JSON:
        return named(next(names))

    async with connect(answer_with=answer) as session:
        task_id = (await session.create("journey", notes=str(tmp_path / "notes")))["taskId"]
        assert text_of((await session.result(task_id)).result) == "Paris, Rome"
        assert [one["params"]["message"] for one in session.asked] == ["Where to?", "And then?"]


@pytest.mark.each_pool
@pytest.mark.shows("L30", "L39")
async def test_cancelling_a_task_that_asks_takes_its_question_back(connect: Connect) -> None:
    async with connect(answer_with=never) as session:
        task_id = (await session.create("greet"))["taskId"]
        waiting = await session.send("tasks/result", {"taskId": task_id})
        await eventually(lambda: session.asked, what="the client is asked")
        assert (await session.ask("tasks/cancel", taskId=task_id)).result["status"] == "cancelled"
        assert (await session.answer(waiting)).error["code"] == -32800

        def taken_back() -> bool:
            gone = [one["params"]["requestId"] for one in session.heard if one["method"] == "notifications/cancelled"]
            return session.asked[0]["id"] in gone

        await eventually(taken_back, what="the question is taken back")


@pytest.mark.shows("L20", "L39", "C13")
async def test_a_client_that_disconnects_during_a_question_leaves_it_to_the_next(
    url: str, deployment: Deployment
) -> None:
    async with over_http(url, capabilities=ABLE, answer_with=never) as gone:
        task_id = (await gone.create("greet"))["taskId"]
        await gone.send("tasks/result", {"taskId": task_id})
        await eventually(lambda: gone.asked, what="the client is asked")
    async with over_http(deployment.serve(), capabilities=ABLE, answer_with=ada) as elsewhere:
        assert text_of((await soon(elsewhere.result(task_id))).result) == "Hello, Ada!"


class Raw:
    """POSTs of one session, whose own channel reaches nobody until it opens a GET stream."""

    def __init__(self, http: httpx2.AsyncClient, url: str) -> None:
        self.http = http
        self.url = url
        self.headers = {"accept": "application/json, text/event-stream", "mcp-protocol-version": REVISION}

    async def post(self, body: JSON) -> httpx2.Response:
        return await self.http.post(self.url, json={"jsonrpc": "2.0", **body}, headers=self.headers)

    async def open(self) -> None:
        """Open the session."""
        hello = {"protocolVersion": REVISION, "capabilities": ABLE, "clientInfo": {"name": "raw", "version": "1"}}
        answer = await self.post({"id": 1, "method": "initialize", "params": hello})
        self.headers["mcp-session-id"] = answer.headers["mcp-session-id"]
        await self.post({"method": "notifications/initialized"})

    async def greeted(self) -> str:
        """Open the session, and make a task that asks for a name on no channel.

        Returns:
            Its id.
        """
        await self.open()
        created = await self.post({"id": 2, "method": "tools/call", "params": {"name": "greet", "task": {}}})
        (task_id,) = re.findall(r'"taskId": ?"([^"]+)"', created.text)

        async def is_asking() -> bool:
            got = await self.post({"id": 3, "method": "tasks/get", "params": {"taskId": task_id}})
            return '"input_required"' in got.text

        await eventually(is_asking, what="the task asks")
        return task_id

    @asynccontextmanager
    async def result(self, request_id: int, task_id: str) -> AsyncGenerator[AsyncIterator[JSON]]:
        """The messages on the stream of a ``tasks/result``, which is dropped at the end."""
        wait = {"jsonrpc": "2.0", "id": request_id, "method": "tasks/result", "params": {"taskId": task_id}}
        async with self.http.stream("POST", self.url, json=wait, headers=self.headers) as stream:
            yield messages_of(stream)

    @asynccontextmanager
    async def listening(self) -> AsyncGenerator[AsyncIterator[JSON]]:
        """The messages on the session's own channel, which is dropped at the end."""
        async with self.http.stream("GET", self.url, headers=self.headers) as stream:
            yield messages_of(stream)


async def messages_of(stream: httpx2.Response) -> AsyncGenerator[JSON]:
    async for line in stream.aiter_lines():
        if line.startswith("data:") and line[5:].strip():
            yield json.loads(line[5:])


@pytest.fixture
async def raw(url: str) -> AsyncGenerator[Raw]:
    async with httpx2.AsyncClient(timeout=60) as http:
        yield Raw(http, url)


async def is_greeted(raw: Raw, messages: AsyncIterator[JSON]) -> None:
    asked = await soon(anext(messages))
    assert asked["method"] == "elicitation/create"
    await raw.post({"id": asked["id"], "result": named("Ada")})
    result = await soon(anext(messages))
    assert text_of(result["result"]) == "Hello, Ada!"


@pytest.mark.shows("L39")
async def test_the_question_is_on_the_stream_of_the_request(raw: Raw) -> None:
    task_id = await raw.greeted()
    await asyncio.sleep(1)  # longer than the grace: the question is asked on a channel that nobody hears, or not
    async with raw.result(4, task_id) as messages:
        await is_greeted(raw, messages)


@pytest.mark.shows("L20", "L39")
async def test_a_stream_that_dropped_leaves_the_question_to_the_next_of_its_session(raw: Raw) -> None:
    task_id = await raw.greeted()
    async with raw.result(4, task_id) as messages:
        assert (await soon(anext(messages)))["method"] == "elicitation/create"
    async with raw.result(5, task_id) as messages:
        await is_greeted(raw, messages)


@pytest.mark.slow
@pytest.mark.shows("L20", "L39")
async def test_a_client_that_was_asked_on_its_session_and_is_gone_leaves_the_question_to_another(
    raw: Raw, url: str
) -> None:
    await raw.open()
    async with raw.listening() as messages:
        created = await raw.post({"id": 2, "method": "tools/call", "params": {"name": "greet", "task": {}}})
        (task_id,) = re.findall(r'"taskId": ?"([^"]+)"', created.text)
        while (asked := await soon(anext(messages)))["method"] != "elicitation/create":
            if asked["method"] == "ping":
                await raw.post({"id": asked["id"], "result": {}})
    async with over_http(url, capabilities=ABLE, answer_with=ada) as elsewhere:
        assert text_of((await soon(elsewhere.result(task_id))).result) == "Hello, Ada!"


async def test_a_result_is_not_waited_for_when_its_client_has_gone(raw: Raw, url: str, deployment: Deployment) -> None:
    with Redis.from_url(deployment.store_url) as store:

        def listeners() -> int:
            """How many processes are told of the task's changes."""
            return sum(count for _, count in cast("Any", store).pubsub_numsub(channel))

        async with Wire(url, capabilities={"elicitation": {}}) as wire:
            task_id = (await wire.create("greet"))["taskId"]
        channel = RedisKeys("mcp_celery", deployment.namespace).channel(None, task_id)
        await raw.open()
        async with raw.result(4, task_id) as messages:
            assert (await soon(anext(messages)))["method"] == "elicitation/create"
            waited_for = listeners()
        await eventually(lambda: listeners() == waited_for - 1, what="the server waits for the task no longer")
        async with raw.result(5, task_id) as messages:
            await is_greeted(raw, messages)
