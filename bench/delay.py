"""``python -m bench.delay LISTEN TARGET SECONDS``: a store that is further away.

A proxy on a Unix socket. It passes requests on at once and answers after the delay, so each round trip takes that much
longer, however many there are at a time, and a message that the store pushes comes that much later.
"""

from __future__ import annotations

import asyncio
import selectors
import sys
from collections import deque
from typing import cast

from bench.processes import raise_on_sigterm


class _Client(asyncio.Protocol):
    """A client's connection, which opens the one to the store."""

    def __init__(self, target: str, delay_seconds: float) -> None:
        self._target = target
        self._delay_seconds = delay_seconds
        self._opening: asyncio.Task[None] | None = None
        self._store: asyncio.Transport | None = None
        self.transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        self.transport.pause_reading()
        self._opening = asyncio.get_running_loop().create_task(self._open())

    async def _open(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            self._store, _ = await loop.create_unix_connection(
                lambda: _Store(self.transport, self._delay_seconds), self._target
            )
        except OSError:
            self.transport.abort()
            return
        self.transport.resume_reading()

    def data_received(self, data: bytes) -> None:
        if self._store is not None:
            self._store.write(data)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio's signature
        if self._store is not None:
            self._store.close()


class _Store(asyncio.Protocol):
    """The connection to the store, whose answers wait."""

    def __init__(self, client: asyncio.Transport, delay_seconds: float) -> None:
        self._client = client
        self._delay_seconds = delay_seconds
        # Timers of one instant are called in any order, so a timer takes what is first.
        self._waiting = deque[bytes]()

    def data_received(self, data: bytes) -> None:
        self._waiting.append(data)
        asyncio.get_running_loop().call_later(self._delay_seconds, self._pass_on)

    def _pass_on(self) -> None:
        self._client.write(self._waiting.popleft())

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio's signature
        asyncio.get_running_loop().call_later(self._delay_seconds, self._client.close)


async def serve(listen: str, target: str, delay_seconds: float) -> None:
    """Serve until it is cancelled.

    Args:
        listen: Path of the proxy's Unix socket.
        target: Path of the store's.
        delay_seconds: How much later each answer comes.
    """
    server = await asyncio.get_running_loop().create_unix_server(lambda: _Client(target, delay_seconds), listen)
    await server.serve_forever()


def _loop() -> asyncio.AbstractEventLoop:
    """An event loop that waits for fractions of a millisecond: epoll, the default, waits for whole ones."""
    return asyncio.SelectorEventLoop(selectors.SelectSelector())


if __name__ == "__main__":
    raise_on_sigterm()
    with asyncio.Runner(loop_factory=_loop) as runner:
        runner.run(serve(sys.argv[1], sys.argv[2], float(sys.argv[3])))
