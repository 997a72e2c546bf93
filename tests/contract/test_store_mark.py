"""The mark of a store, over memory and a real Redis."""

from __future__ import annotations

import asyncio

import pytest

from mcp_celery.engine.recovery.store_identity import StoreIdentity
from mcp_celery.engine.store_mark import StoreMark
from tests.support.waiting import eventually
from tests.support.worlds import SNAPSHOT, World, a_record

pytestmark = pytest.mark.anyio


async def test_a_store_keeps_the_first_mark_that_it_is_given(world: World) -> None:
    recovery = world.recovery()
    assert await recovery.mark() is None
    first, second = StoreMark("0123456789abcdef", 1), StoreMark("fedcba9876543210", 2)
    assert await recovery.mark(first) == first
    assert await recovery.mark(second) == first
    assert await recovery.mark() == first
    assert world.ledger.mark() == first


async def test_the_blocking_store_says_whether_there_is_a_task(world: World) -> None:
    record = a_record()
    assert not world.ledger.is_kept(record.ref)
    await world.store.create(record, SNAPSHOT)
    assert world.ledger.is_kept(record.ref)


async def test_a_server_gives_a_store_its_mark_and_a_worker_does_not(world: World) -> None:
    server = StoreIdentity(world.recovery(), makes=True, pause_seconds=0.02)
    worker = StoreIdentity(world.recovery(), makes=False, pause_seconds=0.02)
    assert server.for_message() is None
    async with asyncio.TaskGroup() as group:
        looking = group.create_task(worker.run())
        await asyncio.sleep(0.1)
        assert worker.mark is None
        making = group.create_task(server.run())
        await eventually(lambda: server.mark is not None and worker.mark == server.mark)
        looking.cancel()
        making.cancel()
    said = StoreMark.parse(server.for_message())
    assert said is not None
    assert server.mark is not None
    assert said.mark_id == server.mark.mark_id
    assert said.at_ms >= server.mark.at_ms
