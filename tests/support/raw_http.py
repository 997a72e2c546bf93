"""HTTP as bytes on a socket, for requests that no client library would send."""

from __future__ import annotations

import socket
from contextlib import suppress
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit

PATIENCE_SECONDS = 120.0


class Raw:
    """A connection to a server.

    Args:
        url: The server's.
    """

    def __init__(self, url: str) -> None:
        self.netloc = urlsplit(url).netloc
        host, _, port = self.netloc.partition(":")
        self._socket = socket.create_connection((host, int(port)), timeout=PATIENCE_SECONDS)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, _type: type[BaseException] | None, _error: BaseException | None, _where: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close it, without a word."""
        self._socket.close()

    def send(self, data: bytes) -> Self:
        """Send, all of it."""
        self._socket.sendall(data)
        return self

    def head(self, method: str = "POST", *headers: str, host: str | None = None, path: str = "/mcp") -> Self:
        """Send a request's line and headers, and end them."""
        lines = [f"{method} {path} HTTP/1.1", f"Host: {host or self.netloc}", *headers, "", ""]
        return self.send("\r\n".join(lines).encode())

    def status(self) -> int | None:
        """Wait for an answer and return its status; None where the connection ends without one."""
        received = b""
        with suppress(ConnectionError):
            while b"\r\n" not in received and (piece := self._socket.recv(65_536)):
                received += piece
        return int(received.split()[1]) if received else None
