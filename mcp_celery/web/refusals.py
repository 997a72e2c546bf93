"""Responses to refused requests, and log lines whose number a flood of requests cannot raise."""

from __future__ import annotations

import logging
import time
from http import HTTPStatus
from typing import Final

from starlette.types import Scope, Send

logger = logging.getLogger(__name__)
LOG_EVERY_SECONDS: Final = 10.0
"""Shortest time between two log lines of one kind. A line counts the refusals without a line since the last."""
SHOWN_CHARACTERS: Final = 100


class RefusalLog:
    """Logs refusals, at most one of each kind in `LOG_EVERY_SECONDS`."""

    def __init__(self) -> None:
        self._last: dict[str, float] = {}
        self._silent: dict[str, int] = {}

    def note(self, kind: str, client: object, reason: str) -> None:
        """Log a refusal, or count it.

        Args:
            kind: Name of the kind. The caller uses a fixed set of names.
            client: Address of the client.
            reason: What was wrong, and the setting to change.
        """
        now = time.monotonic()
        if now - self._last.get(kind, float("-inf")) < LOG_EVERY_SECONDS:
            self._silent[kind] = self._silent.get(kind, 0) + 1
            return
        self._last[kind] = now
        more = self._silent.pop(kind, 0)
        logger.warning("Refused a request of %s: %s%s", client, reason, f" ({more} more since then)" if more else "")


log: Final = RefusalLog()
"""Shared by the whole process, since a flood comes over many connections."""


def shown(value: str | None) -> str:
    """Return a client's text for a log line: shortened, and without control characters."""
    return "nothing" if value is None else ascii(value[:SHOWN_CHARACTERS])


def raw_response(status: HTTPStatus, text: str) -> bytes:
    """Build the bytes of a response that closes the connection, for requests that reach no app.

    Args:
        status: Its status.
        text: Its body.
    """
    body = f"{text}\n".encode()
    head = [
        f"HTTP/1.1 {status.value} {status.phrase}",
        "content-type: text/plain; charset=utf-8",
        f"content-length: {len(body)}",
        "connection: close",
    ]
    return "\r\n".join([*head, "", ""]).encode() + body


async def respond(send: Send, status: HTTPStatus, text: str, *, close: bool = False) -> None:
    """Send a response in place of the app.

    Args:
        send: ASGI's.
        status: Status of the response.
        text: Its body.
        close: Whether the server closes the connection afterwards.
    """
    body = f"{text}\n".encode()
    headers = [(b"content-type", b"text/plain; charset=utf-8"), (b"content-length", str(len(body)).encode())]
    if close:
        headers.append((b"connection", b"close"))
    await send({"type": "http.response.start", "status": status.value, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def client_of(scope: Scope) -> str:
    """Return the address of a request's client, for a log line."""
    client = scope.get("client")
    return "an unknown address" if client is None else str(client[0])
