"""More requests than a server can serve at once: each succeeds, or is refused before any work, and comes again."""

from __future__ import annotations

import asyncio
import os
import resource
import signal
import tempfile
import time
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Generator, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, Final

import pytest
import redis
from mcp.client import Client

from mcp_celery.client import TaskHandle, TasksClient, call_tool_task, resilient_http
from mcp_celery.embedded import EmbeddedStore
from tests.support.deployment import Deployment, deployed
from tests.support.waiting import eventually, soon
from tests.support.wire import Answer, Wire

pytestmark = [pytest.mark.anyio, pytest.mark.shows("C22")]

MOST: Final = 16
"""Requests that the small server works on at a time."""
SMALL: Final = {"MCP_CELERY_MAX_PENDING_REQUESTS": str(MOST), "MCP_CELERY_REDIS_MAX_CONNECTIONS": "2"}
LONG_SECONDS: Final = 900.0
CLIENT_SECONDS: Final = 600.0
"""How long a client goes on, however slow the machine."""
BLOCKED_SECONDS: Final = 3.0
TOGETHER_SECONDS: Final = 12.0
"""Half of what a hundred requests would take that wait for a silent store one after the other."""
FILES: Final = 8_192


@pytest.fixture(scope="module", autouse=True)
def many_files() -> Iterator[None]:
    """A connection is a file, here and in the servers that are started here."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = FILES if hard == resource.RLIM_INFINITY else min(FILES, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.fixture
def place() -> Generator[Deployment]:
    """A store of the test's own, and no worker: what is created waits."""
    with (
        tempfile.TemporaryDirectory(prefix="mcp-acc-") as folder,
        EmbeddedStore.open(Path(folder) / "store") as store,
        # Clients create, and do not ask how it goes.
        deployed(
            store.url,
            "overload",
            spec="tests.support.servers.busy:server",
            settings={"MCP_CELERY_POLL_INTERVAL_MS": "600000"},
        ) as found,
    ):
        yield found


def created(place: Deployment) -> tuple[int, int]:
    """How many tasks there are, and how many of their jobs wait."""
    beside_records = (":snapshot", ":deleted")  # the latter marks what was taken back, for a minute
    keys = [key for key in place.our_keys() if ":task:" in key and not key.endswith(beside_records)]
    return len(keys), place.redis.llen("mcp.overload")


def refusals(place: Deployment) -> int:
    """How many requests the servers have refused because they were busy."""
    return sum(text.count("limit=pending_requests") for text in place.logs().values())


def outages(place: Deployment) -> list[str]:
    """The log lines that say that the store or the broker does not answer, and all errors."""
    lines = "\n".join(place.logs().values()).splitlines()
    return [line for line in lines if " ERROR " in line or "MCP_CELERY_REDIS_URL" in line or "BROKER_URL" in line]


@asynccontextmanager
async def clients(url: str, number: int, mode: Any) -> AsyncGenerator[Sequence[Client]]:
    """Clients with a connection each; they connect a few at a time."""
    a_few = asyncio.Semaphore(50)

    async def hold(opened: asyncio.Queue[Client], may_end: asyncio.Event) -> None:
        async with AsyncExitStack() as stack:
            async with a_few:
                transport = resilient_http(url, busy_seconds=CLIENT_SECONDS)
                client = Client(transport, mode=mode, extensions=[TasksClient(busy_seconds=CLIENT_SECONDS)])
                await stack.enter_async_context(client)
            opened.put_nowait(client)
            await may_end.wait()

    opened, may_end = asyncio.Queue[Client](), asyncio.Event()
    async with asyncio.TaskGroup() as group:
        for _ in range(number):
            group.create_task(hold(opened, may_end))
        try:
            yield [await opened.get() for _ in range(number)]
        finally:
            may_end.set()


async def create_all(connected: Sequence[Client], number: int) -> list[TaskHandle]:
    """Create tasks at once, on each client as many as on the others."""
    calls = (call_tool_task(connected[one % len(connected)], "work", {"number": one}) for one in range(number))
    return await soon(asyncio.gather(*calls), seconds=LONG_SECONDS)


@contextmanager
def silent(store: redis.Redis) -> Generator[None]:
    """A store whose process does not run."""
    pid = int(store.info("server")["process_id"])
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["2026-07-28", "legacy"])
async def test_200_creations_over_100_connections_all_end_created_though_a_few_are_taken_at_a_time(
    place: Deployment, mode: str
) -> None:
    async with clients(place.serve(**SMALL), 100, mode) as connected:
        handles = await create_all(connected, 200)
        assert len({handle.task_id for handle in handles}) == 200
        assert created(place) == (200, 200)
        assert refusals(place) > 0
        assert outages(place) == []


@pytest.mark.long
async def test_2000_creations_over_1000_connections_all_end_created(place: Deployment) -> None:
    async with clients(place.serve(), 1_000, "2026-07-28") as connected:
        handles = await create_all(connected, 2_000)
        assert len({handle.task_id for handle in handles}) == 2_000
        assert created(place) == (2_000, 2_000)
        assert outages(place) == []


def wire_to(url: str) -> Wire:
    """A client that obeys nothing, with as many connections as it has requests."""
    return Wire(url, timeout_seconds=LONG_SECONDS, connections=None)


async def test_a_request_above_the_limit_is_refused_and_changes_nothing(place: Deployment) -> None:
    async with wire_to(place.serve(**SMALL)) as wire:
        answers = await soon(asyncio.gather(*(wire.call("work", number=one) for one in range(100))))
    made = [answer for answer in answers if "result" in answer.message]
    errors = [answer.error for answer in answers if "error" in answer.message]
    assert len(made) >= MOST
    assert created(place) == (len(made), len(made))
    assert len(errors) == refusals(place) > 0
    for error in errors:
        after_ms = error["data"].pop("retryAfterMs")
        assert 250 <= after_ms <= 10_000
        assert error == {
            "code": -32005,
            "message": "The server is busy; nothing was done, try again later",
            "data": {"limit": "pending_requests", "most": MOST},
        }


async def test_waiting_requests_are_not_reported_as_an_outage(place: Deployment) -> None:
    """Hundreds of them over one connection to the store."""
    slow = {"MCP_CELERY_REDIS_MAX_CONNECTIONS": "2", "MCP_CELERY_STORE_TIMEOUT_MS": "100"}
    async with wire_to(place.serve(**slow)) as wire:
        task_id = (await wire.create("work", number=0))["taskId"]
        asked: list[Awaitable[Answer]] = [wire.ask("tasks/get", {"taskId": task_id}) for _ in range(200)]
        asked += [wire.call("work", number=one) for one in range(100)]
        answers = await soon(asyncio.gather(*asked), seconds=LONG_SECONDS)
    assert [answer.message for answer in answers if "error" in answer.message] == []
    assert outages(place) == []


@pytest.mark.slow
async def test_a_blocked_event_loop_is_not_reported_as_an_outage(place: Deployment) -> None:
    async with wire_to(place.serve()) as wire:
        task_id = (await wire.create("work", number=0))["taskId"]

        async def ask() -> list[Answer]:
            asked: list[Awaitable[Answer]] = [wire.ask("tasks/get", {"taskId": task_id}) for _ in range(40)]
            asked += [wire.call("work", number=one) for one in range(40)]
            return await asyncio.gather(*asked)

        blocking = [asyncio.create_task(wire.call("block", seconds=BLOCKED_SECONDS / 2)) for _ in range(2)]
        before = asyncio.create_task(ask())
        blocking.append(asyncio.create_task(wire.call("block", seconds=BLOCKED_SECONDS)))
        answers = [*await soon(before), *await soon(ask())]
        assert all("result" in answer.message for answer in await soon(asyncio.gather(*blocking)))
    assert [answer.message for answer in answers if "error" in answer.message] == []
    assert outages(place) == []


@pytest.mark.slow
async def test_a_process_serves_more_streams_than_the_sdk_and_no_more_than_its_setting(place: Deployment) -> None:
    most = 1_100
    url = place.serve(MCP_CELERY_MAX_STREAMS=str(most), MCP_CELERY_MAX_STREAMS_PER_SCOPE=str(2 * most))
    async with AsyncExitStack() as stack:
        wires = [await stack.enter_async_context(wire_to(url)) for _ in range(10)]
        task_id = (await wires[0].create("work", number=0))["taskId"]
        streams: list[AsyncGenerator[dict[str, Any]]] = []  # one that is forgotten ends
        for number in range(most):
            streams.append(await stack.enter_async_context(wires[number % 10].listen([task_id])))
            assert (await anext(streams[-1]))["method"] == "notifications/subscriptions/acknowledged"
        with pytest.raises(AssertionError) as refused:
            await stack.enter_async_context(wires[0].listen([task_id]))
        (message,) = refused.value.args
        assert message["error"]["code"] == -32005
        assert message["error"]["data"] == {"limit": "streams", "most": most, "retryAfterMs": 10_000}


@pytest.mark.slow
async def test_all_requests_fail_at_once_when_the_store_stops_answering(place: Deployment) -> None:
    """Each after a time-out or two, not one after the other: 4 connections with a second each would take 25 s."""
    async with wire_to(place.serve(MCP_CELERY_REDIS_MAX_CONNECTIONS="4")) as wire:
        task_id = (await wire.create("work", number=0))["taskId"]

        def asked() -> list[Awaitable[Answer]]:
            gets: list[Awaitable[Answer]] = [wire.ask("tasks/get", {"taskId": task_id}) for _ in range(50)]
            return [*gets, *(wire.call("work", number=one) for one in range(50))]

        began = time.monotonic()
        await soon(asyncio.gather(*asked()))
        of_its_own = time.monotonic() - began
        before = created(place)

        # Those that are on their way, and those that come when it is known already.
        async with asyncio.TaskGroup() as group:
            on_the_way = [group.create_task(until(one)) for one in asked()]
            await asyncio.sleep(of_its_own / 4)
            with silent(place.redis):
                stopped = time.monotonic()
                ends = await soon(asyncio.gather(*on_the_way), seconds=LONG_SECONDS)
                again = await soon(asyncio.gather(*(until(one) for one in asked())), seconds=LONG_SECONDS)
        late = [ended for answer, ended in ends if "error" in answer.message]
        assert max(late) - stopped < TOGETHER_SECONDS
        assert max(ended for _, ended in again) - max(late) < TOGETHER_SECONDS
        codes = Counter(answer.message.get("error", {}).get("code") for answer, _ in (*ends, *again))
        assert codes.keys() <= {None, -32603}
        assert codes[-32603] >= 100
        assert all(answer.error["code"] == -32603 for answer, _ in again)

        made = sum(1 for answer, _ in ends if answer.message.get("result", {}).get("resultType") == "task")
        await eventually(lambda: created(place)[0] == before[0] + made, what="what failed is taken back")


async def until(answer: Awaitable[Answer]) -> tuple[Answer, float]:
    """An answer, and when it came."""
    return await answer, time.monotonic()
