"""A session that creates many tasks: each is told to its end, and nothing of it stays."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest
from mcp.server.connection import Connection
from mcp.server.context import ServerRequestContext
from mcp.server.session import ServerSession
from mcp.shared.exceptions import MCPError
from mcp_types import REQUEST_TIMEOUT

from mcp_celery.config import TaskConfig
from mcp_celery.context import TaskContextSnapshot, get_task_session
from mcp_celery.engine import (
    LIST_ROOTS,
    Asking,
    Caller,
    Change,
    Progress,
    Question,
    Submission,
    TaskEngine,
    TaskHints,
    TaskRecord,
    TaskRef,
    now_ms,
)
from mcp_celery.errors import StoreUnavailableError
from mcp_celery.protocol import question_delivery as question_module
from mcp_celery.protocol.question_delivery import Channel, Relay, Turns
from mcp_celery.protocol.v2025_11_25 import push as push_module
from mcp_celery.protocol.v2025_11_25.push import SessionPush
from mcp_celery.testing import MemoryBackend
from tests.support.session import REVISION
from tests.support.waiting import eventually

pytestmark = pytest.mark.anyio


class Outbound:
    """A client's end of the connection."""

    def __init__(self) -> None:
        self.told: list[tuple[str, Any]] = []

    async def send_raw_request(self, method: str, params: Mapping[str, Any] | None, opts: Any = None) -> dict[str, Any]:
        raise AssertionError("nobody asks the client anything")

    async def notify(self, method: str, params: Mapping[str, Any] | None, opts: Any = None) -> None:
        self.told.append((method, params))


def request_on(connection: Connection) -> ServerRequestContext[Any, Any]:
    session = ServerSession(None, connection)  # type: ignore[arg-type] # pyright: ignore[reportArgumentType]
    return ServerRequestContext(session=session, lifespan_context=None, protocol_version=REVISION, method="tools/call")


async def submit(engine: TaskEngine) -> Any:
    snapshot = TaskContextSnapshot(protocol_version=REVISION)
    caller = Caller(session="session-1")
    return await engine.submit(
        Submission(caller=caller, task_type="tool", component="x", config=TaskConfig(), snapshot=snapshot)
    )


async def followed() -> tuple[MemoryBackend, Outbound, Connection, TaskRecord]:
    """A task that is followed for a connection."""
    backend = MemoryBackend()
    engine = backend.engine()
    outbound = Outbound()
    connection = Connection.for_loop(outbound)
    record = await submit(engine)
    SessionPush(lambda: engine, Turns()).follow(request_on(connection), record, None)
    await eventually(lambda: backend.bus.followers == 1, what="the task is followed")
    return backend, outbound, connection, record


def followers() -> int:
    return sum(task.get_name().startswith("mcp-celery-push") for task in asyncio.all_tasks())


@pytest.mark.slow
@pytest.mark.shows("L6", "C12")
async def test_ten_thousand_tasks_leave_nothing_behind() -> None:
    backend = MemoryBackend()
    engine = backend.engine()
    push = SessionPush(lambda: engine, Turns())
    outbound = Outbound()
    connection = Connection.for_loop(outbound, session_id="session-1")
    ids: set[str] = set()
    for _ in range(200):
        records = [await submit(engine) for _ in range(50)]
        ids.update(record.task_id for record in records)
        for record in records:
            push.follow(request_on(connection), record, None)
        for record in records:
            await backend.store.change(record.ref, Change(to="completed"))
        await eventually(lambda: followers() == 0, what="every follower has ended")
        for record in records:
            await backend.store.delete(record.ref)
    assert len(ids) == len(outbound.told) == 10_000
    assert {params["taskId"] for _method, params in outbound.told} == ids
    assert backend.bus.followers == 0
    assert get_task_session("session-1") is connection
    await connection.exit_stack.aclose()
    gone = weakref.ref(connection)
    del connection
    gc.collect()
    assert gone() is None
    assert get_task_session("session-1") is None


async def test_a_connection_that_closes_ends_its_followers() -> None:
    backend, outbound, connection, record = await followed()
    await connection.exit_stack.aclose()
    assert followers() == backend.bus.followers == 0
    await backend.store.change(record.ref, Change(to="completed"))
    assert outbound.told == []


async def test_a_follower_does_not_keep_a_session_that_was_dropped() -> None:
    backend, outbound, connection, record = await followed()
    gone = weakref.ref(connection)
    del connection
    gc.collect()
    assert gone() is None
    await backend.store.change(record.ref, Change(to="completed"))
    await eventually(lambda: followers() == 0, what="the follower has ended")
    assert outbound.told == []


async def test_a_store_that_does_not_answer_costs_the_push_no_more_than_time(caplog: pytest.LogCaptureFixture) -> None:
    backend = MemoryBackend()
    engine = backend.engine()
    outbound = Outbound()
    connection = Connection.for_loop(outbound, session_id="session-1")
    record = await submit(engine)
    backend.bus.fail()
    SessionPush(lambda: engine, Turns()).follow(request_on(connection), record, None)
    await eventually(
        lambda: "could not notify a session of its task" in caplog.text, what="the follower meets the outage"
    )
    assert followers() == 1
    await backend.store.change(record.ref, Change(to="completed"))
    backend.bus.recover()
    await eventually(lambda: followers() == 0, what="the follower has told the end")
    assert [params["status"] for _method, params in outbound.told] == ["completed"]
    await connection.exit_stack.aclose()


async def test_a_session_that_follows_again_gets_no_repeated_push(monkeypatch: pytest.MonkeyPatch) -> None:
    backend = MemoryBackend()
    engine = backend.engine()
    outbound = Outbound()
    connection = Connection.for_loop(outbound, session_id="session-1")
    record = await submit(engine)
    broken = asyncio.Event()
    subscribe = backend.bus.subscribe

    @asynccontextmanager
    async def breaks_once(refs: Sequence[TaskRef]) -> AsyncGenerator[TaskHints]:
        async with subscribe(refs) as hints:
            yield hints if broken.is_set() else Breaking(hints, broken)

    monkeypatch.setattr(backend.bus, "subscribe", breaks_once)
    await backend.store.change(record.ref, Change(to="working", status_message="half", progress=Progress(1)))
    SessionPush(lambda: engine, Turns()).follow(request_on(connection), record, "token")
    await eventually(lambda: len(outbound.told) == 2, what="the first change is told")
    broken.set()
    await eventually(lambda: backend.bus.followers == 0, what="the follower was cut off")
    await eventually(lambda: backend.bus.followers == 1, what="the follower is back")
    await backend.store.change(record.ref, Change(to="completed"))
    await eventually(lambda: followers() == 0, what="the follower has told the end")
    told = [params.get("status", method) for method, params in outbound.told]
    assert told == ["notifications/progress", "working", "completed"]
    await connection.exit_stack.aclose()


async def test_a_client_that_does_not_answer_is_pinged_once_for_all_questions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(push_module, "GRACE_SECONDS", 0.0)
    monkeypatch.setattr(push_module, "_PAUSE_SECONDS", 0.01)
    backend = MemoryBackend()
    engine = backend.engine()
    outbound = Deaf()
    connection = Connection.for_loop(outbound, session_id="session-1")
    push = SessionPush(lambda: engine, Turns())
    for _ in range(20):
        record = await submit(engine)
        question = Question("one", LIST_ROOTS, {})
        assert await backend.store.ask(record.ref, question, Asking(attempt=1, at_ms=now_ms()))
        push.follow(request_on(connection), record, None)
    await eventually(lambda: outbound.pings >= 3, what="the client is tried again")
    assert outbound.pings_at_once == 1
    assert not outbound.asked
    outbound.hears = True
    await eventually(lambda: len(outbound.asked) == 20, what="every question is asked")
    assert outbound.pings < 20
    await connection.exit_stack.aclose()


class Asked:
    """A session that is asked a question of its task, and does not answer it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, pause_seconds: float) -> None:
        monkeypatch.setattr(push_module, "GRACE_SECONDS", 0.0)
        monkeypatch.setattr(push_module, "_PAUSE_SECONDS", pause_seconds)
        monkeypatch.setattr(question_module, "_LOOK_SECONDS", 0.001)
        self.backend = MemoryBackend()
        self.engine = self.backend.engine()
        self.turns = Turns()
        self.outbound = Deaf(thinks=True)
        self.outbound.hears = True
        self.connection = Connection.for_loop(self.outbound, session_id="session-1")

    async def ask(self) -> None:
        self.record = await submit(self.engine)
        question = Question("one", LIST_ROOTS, {})
        assert await self.backend.store.ask(self.record.ref, question, Asking(attempt=1, at_ms=now_ms()))
        SessionPush(lambda: self.engine, self.turns).follow(request_on(self.connection), self.record, None)
        await eventually(lambda: self.outbound.asked, what="the session is asked")

    @asynccontextmanager
    async def waiting(self, channel: Channel) -> AsyncGenerator[None]:
        """Another channel waits for its turn."""
        caller = Caller(session="session-1")
        async with Relay(self.engine, caller, self.record.task_id, turns=self.turns, channel=channel) as relay:
            relay.show(await self.engine.get(caller, self.record.task_id))
            yield


class Waiting(Channel):
    """A client that waits for the task's result."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self.asked = 0
        self.looked = 0

    @property
    def connection(self) -> Connection:
        self.looked += 1
        return self._connection

    async def send(self, method: str, params: Mapping[str, Any]) -> dict[str, Any]:
        self.asked += 1
        return {"roots": []}


async def test_a_client_that_is_gone_leaves_its_question_to_another_session(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = Asked(monkeypatch, pause_seconds=0.01)
    await asked.ask()
    asked.outbound.hears = False
    same, other = Waiting(asked.connection), Waiting(Connection.for_loop(Outbound()))
    async with asked.waiting(same):
        await eventually(lambda: same.looked, what="the next channel has its turn")
        async with asked.waiting(other):
            await eventually(lambda: other.asked, what="the other session is asked")
    assert same.asked == 0, "a person may think, and is asked once"
    await asked.connection.exit_stack.aclose()


async def test_a_person_who_thinks_keeps_the_question_and_costs_few_pings(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = Asked(monkeypatch, pause_seconds=3600)
    looks: list[bool] = []
    is_lost = push_module._Hearing.is_lost  # pyright: ignore[reportPrivateUsage]

    async def note(*arguments: Any) -> bool:
        looks.append(await is_lost(*arguments))
        return looks[-1]

    monkeypatch.setattr(push_module._Hearing, "is_lost", note)  # pyright: ignore[reportPrivateUsage]
    await asked.ask()
    await eventually(lambda: len(looks) >= 20, what="it is looked whether the client is there")
    assert asked.outbound.pings == 1
    assert not any(looks)
    await asked.connection.exit_stack.aclose()


class Deaf(Outbound):
    """A client that does not hear, until it ``hears``; if it ``thinks``, it never answers a question."""

    def __init__(self, *, thinks: bool = False) -> None:
        super().__init__()
        self.thinks = thinks
        self.hears = False
        self.pings = 0
        self.pings_at_once = 0
        self.asked: list[str] = []
        self._out = 0

    async def send_raw_request(self, method: str, params: Mapping[str, Any] | None, opts: Any = None) -> dict[str, Any]:
        if method != "ping":
            self.asked.append(method)
            if self.thinks:
                await asyncio.Event().wait()
            return {"roots": []}
        self.pings += 1
        self._out += 1
        self.pings_at_once = max(self.pings_at_once, self._out)
        await asyncio.sleep(0.001)
        self._out -= 1
        if not self.hears:
            raise MCPError(REQUEST_TIMEOUT, "Timed out")
        return {}


class Breaking:
    """Hints that end with the store's failure."""

    def __init__(self, hints: TaskHints, broken: asyncio.Event) -> None:
        self._hints = hints
        self._broken = broken

    async def __anext__(self) -> TaskRef:
        await self._broken.wait()
        raise StoreUnavailableError

    async def drop(self, ref: TaskRef) -> None:
        await self._hints.drop(ref)
