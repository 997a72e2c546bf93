"""The async client of the store: a pool that waits, over connections that are looked at before a command is written."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

import redis
import redis.asyncio
from redis.asyncio.connection import AbstractConnection, Connection, SSLConnection, UnixDomainSocketConnection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff


class _Checked(AbstractConnection):
    """Raises what redis-py retries when a command is to be written to a connection that the other side has reset.

    redis-py 8.1 takes such a connection for a good one. Python 3.12 and 3.13 then raise `AttributeError` or
    `TypeError` from within asyncio's transport, which redis-py neither retries nor turns into an error of its own.
    """

    async def send_packed_command(self, command: bytes | str | Iterable[bytes], check_health: bool = True) -> None:
        if self._writer is not None and self._writer.is_closing():
            await self.disconnect(nowait=True)
            raise redis.ConnectionError("the connection was lost while it was idle")
        await super().send_packed_command(command, check_health)


class _TcpConnection(_Checked, Connection):
    """``redis://``."""


class _TlsConnection(_Checked, SSLConnection):
    """``rediss://``."""


class _UnixConnection(_Checked, UnixDomainSocketConnection):
    """``unix://``."""


_CLASSES: Final[Mapping[type[AbstractConnection], type[AbstractConnection]]] = {
    Connection: _TcpConnection,
    SSLConnection: _TlsConnection,
    UnixDomainSocketConnection: _UnixConnection,
}
"""By what redis-py chooses for a URL."""


def connect(url: str, *, max_connections: int, timeout_seconds: float) -> redis.asyncio.Redis:
    """An async client whose pool waits when every connection is busy, instead of failing.

    Args:
        url: ``MCP_CELERY_REDIS_URL``.
        max_connections: Size of the pool.
        timeout_seconds: How long to wait for a free connection.
    """
    pool = redis.asyncio.BlockingConnectionPool.from_url(
        url,
        max_connections=max_connections,
        timeout=timeout_seconds,
        socket_connect_timeout=timeout_seconds,
        # Calls have a deadline of their own. redis-py's would put `asyncio.wait_for` around each write, which costs a
        # task and, before Python 3.12, can lose a cancellation.
        socket_timeout=None,
        # One more try on a fresh connection: what is pooled may be from before the store restarted.
        # (The blocking client's Retry is accepted here too, and never tries again.)
        retry=Retry(NoBackoff(), 1),
    )
    pool.connection_class = _CLASSES[pool.connection_class]
    return redis.asyncio.Redis.from_pool(pool)
