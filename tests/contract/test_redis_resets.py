"""Connections to Redis that something between reset while they were idle: a proxy that restarts, a firewall."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from urllib.parse import urlsplit

import pytest
from redis.asyncio.connection import AbstractConnection, Connection, SSLConnection, UnixDomainSocketConnection

from mcp_celery.store import connect
from tests.support.leaks import no_eternal_keys
from tests.support.waiting import soon
from tests.support.worlds import SNAPSHOT, RedisWorld, a_record

pytestmark = pytest.mark.anyio

NO_LINGERING = struct.pack("ii", 1, 0)
"""With this value of SO_LINGER, closing a TCP connection resets it."""


class Proxy:
    """Passes on what clients send over TCP to a Redis on a Unix socket."""

    def __init__(self, store_url: str) -> None:
        self._path = urlsplit(store_url).path
        self._clients: set[asyncio.StreamWriter] = set()

    @asynccontextmanager
    async def listening(self) -> AsyncGenerator[str]:
        """Serve; gives the URL."""
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        try:
            yield f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}/0"
        finally:
            server.close()
            self.reset()
            await server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        from_redis, to_redis = await asyncio.open_unix_connection(self._path)
        self._clients.add(writer)
        await asyncio.gather(_relay(reader, to_redis), _relay(from_redis, writer))
        self._clients.remove(writer)

    def reset(self) -> int:
        """Reset every connection; returns how many there were."""
        for writer in self._clients:
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, NO_LINGERING)
            writer.transport.abort()
        return len(self._clients)


async def _relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(ConnectionError):
        while data := await reader.read(65536):
            writer.write(data)
    writer.close()


@pytest.mark.shows("C11")
@pytest.mark.parametrize("turns", range(8))
async def test_a_connection_that_was_reset_while_idle_fails_no_request(store_url: str, turns: int) -> None:
    """However many turns of the event loop the client has had to hear of it."""
    proxy = Proxy(store_url)
    async with proxy.listening() as url:
        world = RedisWorld(url)
        with no_eternal_keys(store_url, [world.prefix]):
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


@pytest.mark.parametrize(
    ("url", "kind"),
    [
        ("redis://localhost", Connection),
        ("rediss://localhost", SSLConnection),
        ("unix:///store.sock", UnixDomainSocketConnection),
    ],
)
async def test_each_kind_of_connection_notices(url: str, kind: type[AbstractConnection]) -> None:
    client = connect(url, max_connections=1, timeout_seconds=1)
    connection: AbstractConnection = client.connection_pool.make_connection()
    assert isinstance(connection, kind)
    assert type(connection).send_packed_command is not kind.send_packed_command
    await client.aclose()
