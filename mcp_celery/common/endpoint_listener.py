"""Serves a table of endpoints on a port of its own, beside whatever else the process does.

It uses uvicorn's HTTP protocol without uvicorn's server, which would take the process's signals and log as a second
server. The protocol's constructor, its ``transport`` and ``shutdown()``, and ``ServerState`` are not documented by
uvicorn: a provisional seam, as in :mod:`mcp_celery.web.protocol`.
"""

from __future__ import annotations

import asyncio
import os
import socket
from typing import Final
from weakref import WeakSet

from starlette.applications import Starlette
from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from mcp_celery.common.endpoints import Endpoints, routes

MOST_CONNECTIONS: Final = 64
"""Probes and scrapers are few. Further connections are closed at once."""
CONNECTION_SECONDS: Final = 10.0
"""A connection is closed after this time, whatever its client does."""
MOST_BYTES: Final = 65_536
"""Bytes that a connection may send."""
_bound: Final[WeakSet[socket.socket]] = WeakSet()


def bind(host: str, port: int) -> socket.socket:
    """Take a port.

    Args:
        host: Name or address to listen on.
        port: Its number; 0: any free one.

    Returns:
        The bound socket, not listening yet: connections are refused until a server really answers.

    Raises:
        gaierror: There is no such name or address.
        OSError: The port is in use, or the address cannot be had.
    """
    family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    # The protocol is named, because asyncio sends without delay only on sockets that say they are TCP.
    bound = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        # As uvicorn does: connections of an earlier run that still linger are no reason to refuse.
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
    except OSError:
        bound.close()
        raise
    return bound


def _close_in_child() -> None:
    # A child of prefork would hold the port after its parent has died.
    for bound in tuple(_bound):
        bound.close()


os.register_at_fork(after_in_child=_close_in_child)


class _Connection(HttpToolsProtocol):
    """One connection. Its time and bytes are limited, so that no client takes every connection, or much memory.

    Args:
        config: uvicorn's, as the other argument.
        server_state: What the connections share.
    """

    def __init__(self, config: Config, server_state: ServerState) -> None:
        super().__init__(config, server_state, {})
        # uvicorn's own option would end the access log of every server of the process.
        self.access_log = False
        self._received = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Accept the connection, or close it where there are too many."""
        if len(self.server_state.connections) >= MOST_CONNECTIONS:
            transport.abort()
            return
        super().connection_made(transport)
        self._end = self.loop.call_later(CONNECTION_SECONDS, transport.close)

    def data_received(self, data: bytes) -> None:
        """Parse what has arrived."""
        self._received += len(data)
        if self._received > MOST_BYTES:
            self.transport.abort()
        else:
            super().data_received(data)

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the timer."""
        if self.flow is not None:  # pyright: ignore[reportUnnecessaryComparison] - None if it was closed at once
            self._end.cancel()
            super().connection_lost(exc)


class EndpointListener:
    """Serves endpoints on a socket, on the event loop that opens it. Processes that are forked do not keep the socket.

    Args:
        endpoints: The table.
        bound: From :func:`bind`, or inherited; closed at the end.
    """

    def __init__(self, endpoints: Endpoints, bound: socket.socket) -> None:
        app = Starlette(routes=routes(endpoints))
        self._config = Config(app, http=_Connection, ws="none", lifespan="off", log_config=None)
        self._bound = bound
        _bound.add(bound)
        self._state = ServerState()
        self._server: asyncio.Server | None = None

    async def open(self) -> None:
        """Start to answer."""
        self._config.load()
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(self._connection, sock=self._bound)

    def _connection(self) -> asyncio.Protocol:
        return _Connection(self._config, self._state)

    async def aclose(self) -> None:
        """Close the socket and every connection."""
        if self._server is not None:
            self._server.close()
        self._bound.close()
        for connection in tuple(self._state.connections):
            connection.transport.abort()
        for task in (left := tuple(self._state.tasks)):
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)
