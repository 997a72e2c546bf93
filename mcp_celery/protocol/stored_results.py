"""Stored results that go into an HTTP response as they are, neither read nor written again.

The response is made with a mark in the place of the result. The innermost ASGI layer puts the stored text there.
"""

from __future__ import annotations

import secrets
from typing import Any, Final

from starlette.types import Message, Scope, Send

from mcp_celery.engine import TaskView

SPLICED_CHARS: Final = 4_096
"""From this length on a result is put into the response as it is; for a shorter one it does not pay."""
JOINED_BYTES: Final = 65_536
"""Up to this size a response is sent as one piece."""
_SCOPE_KEY: Final = "mcp_celery.splice"
_COMPLETE: Final = '"resultType":"complete"'


class Splice:
    """The stored result in one HTTP response, if there is one.

    Args:
        scope: The request's. It names this object.
        send: Sends the response.
    """

    def __init__(self, scope: Scope, send: Send) -> None:
        scope[_SCOPE_KEY] = self
        self._mark = ""
        self._send = send
        self._result: bytes | None = None
        self._start: Message | None = None
        self._body = b""

    def mark_of(self, view: TaskView) -> str | None:
        """A placeholder for the result of a completed task.

        Returns:
            None where the result is to be written as usual: it is small, or has been read.
        """
        text = None if view.outcome is None else view.outcome.unread_text
        if text is None or len(text) < SPLICED_CHARS or (text := _completed(text)) is None:
            return None
        try:
            self._result = text.encode()
        except UnicodeEncodeError:
            return None
        self._mark = secrets.token_hex(16)
        return self._mark

    async def send(self, message: Message) -> None:
        """Send a part of the response, and the result in the place of its mark."""
        if self._result is None:
            await self._send(message)
        elif message["type"] == "http.response.start":
            self._start = message
        elif message["type"] == "http.response.body":
            self._body += message.get("body", b"")
            if not message.get("more_body", False):
                await self._send_spliced(self._result)
        else:
            await self._send(message)

    async def _send_spliced(self, result: bytes) -> None:
        head, found, tail = self._body.partition(f'"{self._mark}"'.encode())
        parts = [head, result, tail] if found else [head]  # an error, for example, has no result
        size = sum(map(len, parts))
        if self._start is not None:
            length = str(size).encode()
            headers: list[tuple[bytes, bytes]] = self._start.get("headers", [])
            headers = [(name, length if name.lower() == b"content-length" else value) for name, value in headers]
            await self._send({**self._start, "headers": headers})
        if size <= JOINED_BYTES:
            parts = [b"".join(parts)]
        for part in parts[:-1]:
            await self._send({"type": "http.response.body", "body": part, "more_body": True})
        await self._send({"type": "http.response.body", "body": parts[-1]})


def splice_of(request: Any) -> Splice | None:
    """The splice of an HTTP request; None where results have to be written into its response.

    Args:
        request: Starlette's, or None.
    """
    scope: Scope | None = getattr(request, "scope", None)
    return None if scope is None else scope.get(_SCOPE_KEY)


def _completed(text: str) -> str | None:
    """A result with its ``resultType``; None where only its reader can say whether it has one, or it is no object."""
    if not (text.startswith("{") and text.endswith("}")):
        return None
    # A quote without a backslash before it is not inside a text, so these are members of the result itself.
    if text.startswith(f"{{{_COMPLETE},") or text.endswith(f",{_COMPLETE}}}"):
        return text
    if '"resultType"' in text:
        return None
    return f"{{{_COMPLETE}{'' if text == '{}' else ','}{text[1:]}"
