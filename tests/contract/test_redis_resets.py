"""Connections to Redis that something between reset while they were idle: a proxy that restarts, a firewall."""

from __future__ import annotations

import asyncio
import uuid

import pytest
from redis.asyncio.connection import AbstractConnection, Connection, SSLConnection, UnixDomainSocketConnection

from mcp_celery.errors import StoreUnavailableError
from mcp_celery.store import connect
from tests.support.leaks import no_eternal_keys
from tests.support.proxy import Proxy
from tests.support.waiting import soon
from tests.support.worlds import SNAPSHOT, RedisWorld, a_record

pytestmark = pytest.mark.anyio


@pytest.mark.shows("C11")
@pytest.mark.parametrize("turns", range(8))
async def test_a_connection_that_was_reset_while_idle_fails_no_request(store_url: str, turns: int) -> None:
    """However many turns of the event loop the client has had to hear of it."""
    with Proxy.before(store_url) as proxy, no_eternal_keys(store_url, [prefix := f"test-{uuid.uuid4().hex}"]):
        world = RedisWorld(proxy.redis_url, prefix=prefix)
        try:
            record = a_record(ttl_ms=20_000)
            await soon(world.store.create(record, SNAPSHOT))
            assert proxy.reset() == 1
            for _ in range(turns):
                await asyncio.sleep(0)
            found = await soon(world.store.load(record.ref))
            assert found is not None
            assert found.record == record
            await soon(world.store.delete(record.ref))
        finally:
            await world.aclose()


@pytest.mark.shows("C11")
@pytest.mark.parametrize("forgotten", ["idle", "in use"])
async def test_a_connection_that_a_firewall_dropped_is_replaced_within_one_timeout(
    store_url: str, forgotten: str
) -> None:
    """Nothing that is sent over it arrives, and nobody says so.

    An idle one costs no request. One in use costs a time-out, after which a command that may be repeated is sent over
    another one, where the store has answered there. A blocking client has no other one.
    """
    prefix = f"test-{uuid.uuid4().hex}"
    with Proxy.before(store_url) as proxy, no_eternal_keys(store_url, [prefix]):
        idle_seconds = 0.0 if forgotten == "idle" else 600.0
        world = RedisWorld(
            proxy.redis_url, prefix=prefix, timeout_seconds=1.0, idle_seconds=idle_seconds, silence_seconds=1.0
        )
        try:
            record = a_record(ttl_ms=20_000)
            await soon(world.store.create(record, SNAPSHOT))
            await asyncio.gather(*(world.store.load(record.ref) for _ in range(4)))
            assert await asyncio.to_thread(world.ledger.find, record.job_id) == record
            async with world.bus.subscribe([record.ref]) as hints:
                assert await soon(anext(hints)) == record.ref  # it has subscribed
                assert proxy.stall() >= 3
                if forgotten == "in use":
                    assert await soon(world.store.load(record.ref)) is not None
                    with pytest.raises(StoreUnavailableError):
                        await soon(asyncio.to_thread(world.ledger.find, record.job_id))
                # Of the others that are in the pool none costs another time-out.
                found = await asyncio.gather(*(soon(world.store.load(record.ref)) for _ in range(4)))
                assert None not in found
                assert await soon(asyncio.to_thread(world.ledger.find, record.job_id)) == record
                # The bus is told when it has subscribed again.
                assert await soon(anext(hints)) == record.ref
            await soon(world.store.delete(record.ref))
        finally:
            await world.aclose()


@pytest.mark.parametrize(
    ("url", "kind"),
    [
        ("redis://localhost", Connection),
        ("rediss://localhost", SSLConnection),
        ("unix:///store.sock", UnixDomainSocketConnection),
    ],
)
async def test_each_kind_of_connection_has_the_check_for_resets(url: str, kind: type[AbstractConnection]) -> None:
    client = connect(url, max_connections=1, timeout_seconds=1)
    connection: AbstractConnection = client.redis.connection_pool.make_connection()
    assert isinstance(connection, kind)
    assert type(connection).send_packed_command is not kind.send_packed_command
    await client.aclose()
