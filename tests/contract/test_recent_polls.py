"""Clients that poll faster than they should get their last answer again. Over memory and Redis."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any, Final

import pytest

from mcp_celery import audit
from mcp_celery.engine import Caller, Change, JSONObject
from mcp_celery.engine.recent_polls import RecentPolls
from mcp_celery.errors import ServerBusyError, TaskNotFoundError
from tests.support.worlds import ALICE, LIMITS, Watchful, World, a_submission, engine_of

pytestmark = pytest.mark.anyio

BOB: Final = Caller("client-a|bob", ALICE.issuer)
FOR_LONG: Final = 60_000
MODERN: Final = "2026-07-28"


class Polling:
    """A server, and how often its store was read."""

    def __init__(self, world: World, queue: Watchful, interval_ms: int, **limits: Any) -> None:
        self.reads = 0
        self.engine = engine_of(world, queue, min_poll_interval_ms=interval_ms, **limits)

    async def poll(self, task_id: str, caller: Caller = ALICE, version: str = MODERN) -> JSONObject:
        async def read() -> JSONObject:
            self.reads += 1
            return {"status": (await self.engine.get(caller, task_id)).record.status}

        return await self.engine.poll(caller, task_id, version, read)


async def test_a_poll_that_comes_too_soon_gets_the_last_answer(world: World, queue: Watchful) -> None:
    site = Polling(world, queue, FOR_LONG)
    record = await site.engine.submit(a_submission())
    assert [await site.poll(record.task_id) for _ in range(100)] == [{"status": "working"}] * 100
    assert site.reads == 1
    await world.store.change(record.ref, Change(to="failed"))  # by a worker
    assert await site.poll(record.task_id) == {"status": "working"}
    assert await site.poll(record.task_id, version="2025-11-25") == {"status": "failed"}, "of another form"


async def test_by_default_each_poll_reads_the_store(world: World, queue: Watchful) -> None:
    site = Polling(world, queue, LIMITS.min_poll_interval_ms)
    record = await site.engine.submit(a_submission())
    assert [await site.poll(record.task_id) for _ in range(3)] == [{"status": "working"}] * 3
    assert site.reads == 3


@pytest.mark.parametrize(
    "other",
    [BOB, replace(ALICE, issuer="https://other.example"), replace(ALICE, token_scopes=frozenset[str]()), Caller()],
)
async def test_an_answer_is_for_its_caller_alone(world: World, queue: Watchful, other: Caller) -> None:
    site = Polling(world, queue, FOR_LONG)
    record = await site.engine.submit(a_submission())
    await site.poll(record.task_id)
    try:
        await site.poll(record.task_id, other)
    except TaskNotFoundError:
        assert replace(other, token_scopes=None) != ALICE
    assert site.reads == 2


@pytest.mark.parametrize("change", ["cancel", "respond"])
async def test_a_caller_sees_what_it_has_changed(world: World, queue: Watchful, change: str) -> None:
    site = Polling(world, queue, FOR_LONG)
    record = await site.engine.submit(a_submission())
    await site.poll(record.task_id)
    if change == "cancel":
        await site.engine.cancel(ALICE, record.task_id)
        assert await site.poll(record.task_id) == {"status": "cancelled"}
    else:
        await site.engine.respond(ALICE, record.task_id, {})
        for _ in range(2):
            assert await site.poll(record.task_id) == {"status": "working"}
    assert site.reads == 2


async def test_an_answer_that_was_read_before_the_callers_own_change_is_not_cached(
    world: World, queue: Watchful
) -> None:
    site = Polling(world, queue, FOR_LONG)
    record = await site.engine.submit(a_submission())

    async def read() -> JSONObject:
        read: JSONObject = {"status": (await site.engine.get(ALICE, record.task_id)).record.status}
        await site.engine.cancel(ALICE, record.task_id)
        return read

    assert await site.engine.poll(ALICE, record.task_id, MODERN, read) == {"status": "working"}
    assert await site.poll(record.task_id) == {"status": "cancelled"}


async def test_the_answer_that_a_task_has_ended_is_not_cached(world: World, queue: Watchful) -> None:
    site = Polling(world, queue, FOR_LONG)
    record = await site.engine.submit(a_submission())
    await world.store.change(record.ref, Change(to="cancelled"))
    for _ in range(2):
        assert await site.poll(record.task_id) == {"status": "cancelled"}
    assert site.reads == 2


async def test_a_busy_server_still_gives_the_last_answer_and_refuses_to_read_a_task(
    world: World, queue: Watchful, caplog: pytest.LogCaptureFixture
) -> None:
    site = Polling(world, queue, FOR_LONG, max_pending_requests=1)
    known, unread = [await site.engine.submit(a_submission()) for _ in range(2)]
    await site.poll(known.task_id)
    with site.engine.pending.place_for(BOB):
        assert await site.poll(known.task_id) == {"status": "working"}
        caplog.clear()
        with caplog.at_level(logging.INFO, audit.LOGGER), pytest.raises(ServerBusyError):
            await site.poll(unread.task_id)
    (line,) = [one.__dict__ for one in caplog.records]
    assert (line["event"], line["task_scope"], line["limit"]) == ("task.limited", ALICE.scope, "pending_requests")
    assert await site.poll(unread.task_id) == {"status": "working"}
    assert site.reads == 2


def test_a_cached_answer_holds_for_the_poll_interval() -> None:
    seconds = [0.0]
    polls, answer = RecentPolls(100, clock=lambda: seconds[0]), dict[str, Any](status="working")
    polls.note(ALICE, "task", MODERN, answer, polls.generation(ALICE, "task"))
    seconds[0] = 0.09
    assert polls.find(ALICE, "task", MODERN) == answer
    seconds[0] = 0.11
    assert polls.find(ALICE, "task", MODERN) is None
