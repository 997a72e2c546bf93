"""HTTP as bytes on a socket, for requests that no client library would send."""

from __future__ import annotations

import socket
from contextlib import suppress
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit

import psutil

PATIENCE_SECONDS = 120.0
PIECE = b"x" * 65_536


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

    def send_while_taken(self, size: int) -> int:
        """Send filler until the server ends the connection.

        Returns:
            How many bytes could be sent, at most about ``size``.
        """
        sent = 0
        with suppress(ConnectionError):
            while sent < size:
                self._socket.sendall(PIECE)
                sent += len(PIECE)
        return sent

    def status(self) -> int | None:
        """Wait for an answer and return its status; None where the connection ends without one."""
        received = b""
        with suppress(ConnectionError):
            while b"\r\n" not in received and (piece := self._socket.recv(65_536)):
                received += piece
        return int(received.split()[1]) if received else None

    def is_open_after(self, seconds: float) -> bool:
        """Wait that long and a second more; tell whether the server has not closed the connection meanwhile."""
        self._socket.settimeout(seconds + 1)
        try:
            while self._socket.recv(65_536):  # the rest of an answer
                pass
        except TimeoutError:
            return True
        finally:
            self._socket.settimeout(PATIENCE_SECONDS)
        return False

    def until_closed(self) -> bytes:
        """Wait until the server ends the connection, and return everything that it has sent."""
        received = b""
        with suppress(ConnectionError):
            while piece := self._socket.recv(65_536):
                received += piece
        return received


def open_connections(pid: int) -> int:
    """Connections of clients that a server has."""
    found = psutil.Process(pid).net_connections("tcp")
    ports = {one.laddr[1] for one in found if one.status == psutil.CONN_LISTEN}
    return sum(one.status != psutil.CONN_LISTEN and one.laddr[1] in ports for one in found)
