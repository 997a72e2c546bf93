"""uvicorn's HTTP protocol with limits for everything that it reads before it calls an app.

uvicorn's httptools protocol buffers incomplete headers of any size, waits for them forever, and accepts any number of
connections. This subclass extends the methods that asyncio and httptools call, both documented interfaces. It counts
the bytes that belong to no body, and keeps one timer for each connection. uvicorn accepts such a class as ``http=`` and
on its command line: ``uvicorn app:app --http mcp_celery.web:BoundedHttpProtocol``.

The subclass reads these attributes of uvicorn's class, which uvicorn does not document: ``transport``, ``loop``,
``flow``, ``cycle``, ``app_state`` and ``server_state``. tests/acceptance/test_http_limits.py and test_shutdown.py fail
where a release of uvicorn changes them.
"""

from __future__ import annotations

import asyncio
import functools
from typing import Any, ClassVar, Final

from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from mcp_celery.settings import Settings
from mcp_celery.web.limits import (
    HttpLimits,
    Refusal,
    too_many_connections,
    too_many_header_bytes,
    too_slow,
)
from mcp_celery.web.refusals import raw_response
from mcp_celery.web.shutdown import STATE_KEY

MAX_PIPELINED: Final = 16
"""Most requests that one read of the socket may begin. MCP clients send one and wait, and each one costs memory."""
LINGER_SECONDS: Final = 1.0
"""Time for which the server reads and ignores what a refused client sends. The kernel resets a connection that is
closed with unread data, and the client might not get the response."""
MAX_LINGERING: Final = 100
"""Most refused connections that linger. The server closes further ones at once."""


@functools.cache
def _limits_of_environment() -> HttpLimits:
    return HttpLimits.of(Settings.load())


class _TooManyPipelined(Exception):  # noqa: N818 - it only leaves the parser
    """One read of the socket began more than `MAX_PIPELINED` requests."""


class BoundedHttpProtocol(HttpToolsProtocol):
    """One connection.

    Args:
        config: uvicorn's, as the other arguments.
        server_state: What the connections of a server share.
        app_state: State of the app's lifespan.
        _loop: The event loop.
    """

    # Beside the 28 attributes of uvicorn's class: from 31 on Python keeps those of each connection in a larger table.
    __slots__ = ("_begun", "_bounds", "_due", "_in_body", "_overhead", "_refused", "_timer")

    limits: ClassVar[HttpLimits | None] = None
    """None: those of ``MCP_CELERY_HTTP_…`` in the environment."""
    _lingering: ClassVar[int] = 0

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._bounds = self.limits or _limits_of_environment()
        self._overhead = 0  # bytes since this request began that belong to no body, or since the last piece of its body
        self._begun = 0  # requests in this read
        self._in_body = False
        self._due: float | None = None  # loop time by which the headers, or the body, have to be complete
        self._timer: asyncio.TimerHandle | None = None
        self._refused = False

    # asyncio's part

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Accept the connection, or refuse it where there are too many."""
        if len(self.server_state.connections) >= self._bounds.max_connections:
            self.transport = transport
            self._refuse(too_many_connections(self._bounds))
            return
        super().connection_made(transport)
        self._expect()

    def data_received(self, data: bytes) -> None:
        """Parse what has arrived, and refuse incomplete headers that are too large."""
        if self._refused:
            return
        if self._due is None:
            self._expect()
        self._overhead += len(data)
        self._begun = 0
        super().data_received(data)
        if self._overhead > self._bounds.max_header_bytes and not self.transport.is_closing():
            self._refuse(too_many_header_bytes(self._bounds))

    def shutdown(self) -> None:
        """End the connection in order: the server ends. The app learns of it, so that its streams end (shutdown.py)."""
        if (end_streams := self.app_state.get(STATE_KEY)) is not None:
            end_streams()
        super().shutdown()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the timer."""
        if self._timer is not None:
            self._timer.cancel()
        if self.flow is not None:  # pyright: ignore[reportUnnecessaryComparison] - None if refused at once
            super().connection_lost(exc)

    # httptools' part

    def on_message_begin(self) -> None:
        """Expect the headers of a request."""
        self._begun += 1
        if self._begun > MAX_PIPELINED:
            raise _TooManyPipelined  # httptools reports it as a parse error, and uvicorn responds with 400
        super().on_message_begin()
        if self._due is None:
            self._expect()

    def on_headers_complete(self) -> None:
        """Expect the body, which has the whole timeout again."""
        super().on_headers_complete()
        self._overhead = 0
        self._in_body = True
        self._expect()

    def on_body(self, body: bytes) -> None:
        """Leave a piece of the body to the app, which counts it."""
        super().on_body(body)
        self._overhead = 0

    def on_message_complete(self) -> None:
        """Expect nothing more: the response has no timeout."""
        super().on_message_complete()
        self._in_body = False
        self._overhead = 0
        self._due = None

    # Our own

    def _expect(self) -> None:
        """Start the timeout for the next part of the request."""
        self._due = self.loop.time() + self._bounds.receive_timeout_seconds
        if self._timer is None:
            self._timer = self.loop.call_at(self._due, self._on_timer)

    def _on_timer(self) -> None:
        # The timer starts itself again. One for each request would cost more than the rest of this class.
        self._timer = None
        if self._due is None or self._refused or self.transport.is_closing():
            return
        if self._due > self.loop.time():
            self._timer = self.loop.call_at(self._due, self._on_timer)
        elif not self.transport.is_reading():
            self._expect()  # uvicorn pauses reading until the app has read the body so far: the client is not late
        elif self._overhead or self._in_body:
            self._refuse(too_slow(self._bounds))
        else:
            self.transport.close()  # there is no request to respond to

    def _refuse(self, refusal: Refusal) -> None:
        """Respond, unless a response is being sent, and close the connection."""
        self._refused = True
        refusal.note((self.transport.get_extra_info("peername") or ("an unknown address",))[0])
        if self._is_answering():
            self.transport.close()
            return
        self.transport.write(raw_response(refusal.status, refusal.text))
        if self._in_body or BoundedHttpProtocol._lingering >= MAX_LINGERING or not self.transport.can_write_eof():
            self.transport.close()
            return
        self.transport.write_eof()
        BoundedHttpProtocol._lingering += 1
        self.loop.call_later(LINGER_SECONDS, self._stop_lingering)

    def _stop_lingering(self) -> None:
        BoundedHttpProtocol._lingering -= 1
        self.transport.close()

    def _is_answering(self) -> bool:
        """Tell whether uvicorn is sending a response, or will send one."""
        cycle = self.cycle
        if cycle is None:  # pyright: ignore[reportUnnecessaryComparison] - no request yet
            return False
        return cycle.response_started if self._in_body else not cycle.response_complete


def bounded_protocol(limits: HttpLimits) -> type[asyncio.Protocol]:
    """Return a protocol class with the given limits, for ``uvicorn.Config(http=…)``."""

    class Bounded(BoundedHttpProtocol):
        """One connection."""

    Bounded.limits = limits
    return Bounded
