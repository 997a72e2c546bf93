"""A TCP proxy before a server, which does what networks do: it resets connections, loses answers, stops forwarding."""

from __future__ import annotations

import asyncio
import socket
import struct
import threading
from collections.abc import Callable, Coroutine, Generator
from contextlib import contextmanager, suppress
from typing import Any, TypeVar
from urllib.parse import urlsplit

from tests.support.waiting import PATIENCE_SECONDS

NO_LINGERING = struct.pack("ii", 1, 0)
"""With this value of SO_LINGER, closing a TCP connection resets it."""
T = TypeVar("T")


class _Pair:
    """A client's connection and the one to the server behind it."""

    def __init__(self, client: asyncio.StreamWriter, server: asyncio.StreamWriter) -> None:
        self.client = client
        self.server = server
        self.flows = asyncio.Event()
        self.flows.set()

    def reset(self) -> None:
        for writer in (self.client, self.server):
            with suppress(OSError):  # it is closed
                writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, NO_LINGERING)
            writer.transport.abort()


class Proxy:
    """Forwards what clients send. It has a thread of its own, so that blocking clients may use it, too.

    Args:
        url: Of a server on a Unix socket, or on a port of this machine.
    """

    def __init__(self, url: str) -> None:
        self._target = urlsplit(url)
        self._loop = asyncio.new_event_loop()
        self._pairs: set[_Pair] = set()
        self._serving: set[asyncio.Task[None]] = set()
        self._lose: Callable[[], object] | None = None
        self._lose_with = b""
        self.port = 0
        self.accepted = 0

    @classmethod
    @contextmanager
    def before(cls, url: str) -> Generator[Proxy]:
        """Run a proxy before a server until the context ends."""
        proxy = cls(url)
        thread = threading.Thread(target=proxy._loop.run_forever, name="proxy")
        thread.start()
        try:
            server = proxy._do(asyncio.start_server(proxy._serve, "127.0.0.1", 0))
            proxy.port = server.sockets[0].getsockname()[1]
            try:
                yield proxy
            finally:
                proxy._do(proxy._end(server))
        finally:
            proxy._loop.call_soon_threadsafe(proxy._loop.stop)
            thread.join()
            proxy._loop.close()

    @property
    def redis_url(self) -> str:
        """The URL of a Redis behind it."""
        return f"redis://127.0.0.1:{self.port}/0"

    def _do(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(PATIENCE_SECONDS)

    async def _end(self, server: asyncio.Server) -> None:
        server.close()
        for pair in self._pairs:
            pair.flows.set()
            pair.reset()
        await asyncio.gather(*self._serving)
        await server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        serving = asyncio.current_task()
        assert serving is not None
        self._serving.add(serving)
        serving.add_done_callback(self._serving.discard)
        if self._target.scheme == "unix":
            answers, server = await asyncio.open_unix_connection(self._target.path)
        else:
            answers, server = await asyncio.open_connection(self._target.hostname, self._target.port)
        pair = _Pair(writer, server)
        self._pairs.add(pair)
        self.accepted += 1
        try:
            await asyncio.gather(self._forward(pair, reader, server), self._answer(pair, answers))
        finally:
            self._pairs.discard(pair)

    async def _forward(self, pair: _Pair, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            while data := await reader.read(65536):
                await pair.flows.wait()
                writer.write(data)
        await pair.flows.wait()
        writer.close()

    async def _answer(self, pair: _Pair, reader: asyncio.StreamReader) -> None:
        with suppress(ConnectionError):
            while data := await reader.read(65536):
                await pair.flows.wait()
                if (lose := self._lose) is not None and self._lose_with in data:
                    self._lose = None
                    await asyncio.to_thread(lose)
                    pair.reset()
                else:
                    pair.client.write(data)
        await pair.flows.wait()
        pair.client.close()

    def reset(self) -> int:
        """Reset every connection; returns how many there were."""

        async def reset() -> int:
            found = list(self._pairs)
            for pair in found:
                pair.reset()
            return len(found)

        return self._do(reset())

    def stall(self) -> int:
        """Forward nothing more on the connections that there are, and say nothing; returns how many there are.

        New ones work: this is what a firewall does that has forgotten connections.
        """

        async def stall() -> int:
            for pair in self._pairs:
                pair.flows.clear()
            return len(self._pairs)

        return self._do(stall())

    def resume(self) -> None:
        """Forward what was held up, and what follows."""

        async def resume() -> None:
            for pair in self._pairs:
                pair.flows.set()

        self._do(resume())

    @property
    def is_losing(self) -> bool:
        """Whether an answer is still to be lost."""
        return self._lose is not None

    def lose_next_answer(self, meanwhile: Callable[[], object] = lambda: None, *, holding: bytes = b"") -> None:
        """Reset the connection on which the server answers next, in place of forwarding the answer.

        Args:
            meanwhile: Is called in a thread before.
            holding: Let answers pass that do not hold this.
        """
        self._lose, self._lose_with = meanwhile, holding
