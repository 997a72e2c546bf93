"""A client of a server that spoils one kind of message: it neither hangs, nor hammers the server, nor fills its memory.

Beside it another task of the same session ends as if nothing were wrong.
"""

from __future__ import annotations

import itertools
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Final, get_args

import anyio
import mcp_types as types
import pytest
from mcp.client import Client
from mcp.client import session as sdk_session
from mcp.client.session import ClientRequestContext
from mcp.shared.exceptions import MCPError
from pydantic import ValidationError

from mcp_celery.client import TaskError, TasksClient, call_tool_task, list_tasks, resilient_http
from mcp_celery.client import http as http_module
from mcp_celery.client import push as push_module
from mcp_celery.client import session as channel_module
from tests.support.misbehaving import ACKNOWLEDGEMENT, INTERVAL_MS, PUSH, STATUS, Fault, MisbehavingServer, Revision
from tests.support.scripted import text_of
from tests.support.waiting import eventually, soon

pytestmark = pytest.mark.anyio

FAULTS: Final[tuple[Fault, ...]] = get_args(Fault)
KINDS: Final[list[tuple[Revision, str]]] = [
    *(("2026-07-28", kind) for kind in ("tools/call", "tasks/get", "tasks/cancel", "tasks/update")),
    ("2026-07-28", ACKNOWLEDGEMENT),
    ("2026-07-28", PUSH),
    *(("2025-11-25", kind) for kind in ("tools/list", "tools/call", "tasks/get", "tasks/result", "tasks/cancel")),
    ("2025-11-25", "tasks/list"),
    ("2025-11-25", STATUS),
]
LOSSES: Final = frozenset({ACKNOWLEDGEMENT, PUSH, STATUS})
"""Kinds that a client can do without: it has the result all the same."""
DOCUMENTED: Final = (TaskError, MCPError)
LARGEST_ANSWER: Final = 256 * 1024
BUFFERS: Final = 12 * 1024 * 1024
"""What the two ends of a socket may hold of bytes that the client has not taken."""


@pytest.fixture(autouse=True)
def quick_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(push_module, "ACKNOWLEDGE_SECONDS", 0.5)


async def say_yes(context: ClientRequestContext, params: types.ElicitRequestParams) -> types.ElicitResult:
    return types.ElicitResult(action="accept", content={"sure": True})


@asynccontextmanager
async def connected(server: MisbehavingServer, url: str, seconds: float | None = None) -> AsyncGenerator[Client]:
    async with Client(
        resilient_http(url, max_answer_bytes=LARGEST_ANSWER),
        mode="legacy" if server.revision == "2025-11-25" else "auto" if server.mends else server.revision,
        extensions=[TasksClient(patience_seconds=60 if server.fault == "stalls" else 0.5)],
        elicitation_callback=say_yes,
        read_timeout_seconds=seconds,
    ) as client:
        yield client


async def use(client: Client, server: MisbehavingServer) -> object:
    """Do what brings a message of the kind: where that is none of a single task, see what comes of it."""
    if server.kind == "tasks/list":
        return await list_tasks(client)
    handle = await call_tool_task(client, "faulty", read_timeout_seconds=0.5)
    if server.kind == "tasks/cancel":
        return await handle.cancel()
    if server.kind != "tasks/result":
        await eventually(lambda: server.spoiled, what="a message is spoiled")
    if server.kind == STATUS:
        await anyio.sleep(10 * INTERVAL_MS / 1000)  # which is time enough to ask without end
    server.complete("faulty")
    return text_of(await handle.result(1 if server.fault == "stalls" and server.kind not in LOSSES else None))


def most_asked(method: str, seconds: float) -> int:
    """How often a method may be asked for in a time, and why.

    Without pauses that grow, a server that ends each stream at once sees 9 to 30 of them a second.
    """
    polls = int(seconds * 1000 / INTERVAL_MS) + 2
    pauses = itertools.accumulate(push_module.LEAST_RETRY_SECONDS * 2**number for number in range(20))
    match method:
        case "tasks/get" | "tasks/result":
            return 2 * 2 * polls  # of each of two tasks once an interval, and once more upon a hint
        case "tasks/update":
            return polls  # of one task, sent again after an interval and a growing pause
        case "subscriptions/listen":
            # One for each new task, one for each pause, which doubles, and one more without the task that breaks it.
            return 2 + sum(1 for _ in itertools.takewhile(lambda pause: pause <= seconds, pauses)) + 1
        case "GET":
            return http_module.GETS_AT_ONCE + int(seconds / http_module.GET_SPACING_SECONDS) + 1
        case "notifications/cancelled":
            return 2 * 2 * polls  # one for each request that had no answer
        case _:
            return 3  # the test asks once, and the SDK may have something to ask before


@pytest.mark.smoke
@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize(("revision", "kind"), KINDS)
async def test_a_malformed_message_affects_its_task_alone(
    revision: Revision, kind: str, fault: Fault, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = MisbehavingServer(revision, kind, fault)
    ends: list[object] = []
    async with server.listening() as url, connected(server, url) as client:
        began = anyio.current_time()
        neighbour = await call_tool_task(client, "healthy")
        if fault == "stalls":
            monkeypatch.setattr(channel_module, "REQUEST_SECONDS", 0.5)

        async def use_it() -> None:
            try:
                ends.append(await use(client, server))
            except DOCUMENTED as error:
                ends.append(error)

        async with anyio.create_task_group() as group:
            group.start_soon(use_it)
            await eventually(lambda: server.spoiled, what="a message is spoiled")
            server.complete("healthy")
            assert text_of(await neighbour.result(60)) == "healthy"
            await eventually(lambda: ends, what="the call ends")
        elapsed = anyio.current_time() - began
        asked = dict(server.asked)
    assert asked == {method: count for method, count in asked.items() if count <= most_asked(method, elapsed)}
    assert all(count <= LARGEST_ANSWER + BUFFERS for count in server.sent), server.sent
    if kind in LOSSES:
        assert ends == ["faulty"]


@pytest.mark.smoke
@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize(("revision", "kind"), [("2026-07-28", "server/discover"), ("2025-11-25", "initialize")])
async def test_a_malformed_handshake_fails_or_succeeds_soon_and_the_next_one_succeeds(
    revision: Revision, kind: str, fault: Fault
) -> None:
    server = MisbehavingServer(revision, kind, fault, mends=True)

    async def connect() -> None:
        async with connected(server, url, 0.5 if fault == "stalls" else None):
            pass

    async with server.listening() as url:
        try:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(sdk_session, "DISCOVER_TIMEOUT_SECONDS", 0.5)
                await soon(connect())
        except ExceptionGroup as group:
            _, others = group.split((MCPError, ValidationError, RuntimeError))
            assert others is None
        assert server.spoiled == 1
        assert server.asked.total() <= 6  # two ways to shake hands, a list of tools, and the session's channel
        async with connected(server, url) as client:
            handle = await call_tool_task(client, "healthy")
            server.complete("healthy")
            assert text_of(await handle.result(60)) == "healthy"
    assert all(count <= LARGEST_ANSWER + BUFFERS for count in server.sent), server.sent
