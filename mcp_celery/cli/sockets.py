"""Sockets on which servers listen, bound before anything is started."""

from __future__ import annotations

import errno
import socket
import stat
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from mcp_celery.cli.errors import StartError
from mcp_celery.common import endpoint_listener
from mcp_celery.web.app import MCP_PATH

ANSWERS: Final = "Answers at"
"""How the line of a server begins that says where it answers."""
UNIX_PERMISSIONS: Final = 0o666
"""Of a Unix socket, as uvicorn has it: the permissions of its folder say who may connect."""


def bind(host: str, port: int) -> socket.socket:
    """Take a port before anything is started: a port in use is reported at once, and no process takes it meanwhile.

    Args:
        host: Name or address to listen on.
        port: Its number; 0: any free one.

    Returns:
        The bound socket, not listening yet: connections are refused until the server really answers.

    Raises:
        StartError: The port is in use, or the address cannot be had.
    """
    try:
        return endpoint_listener.bind(host, port)
    except socket.gaierror as error:
        raise StartError(f"--host {host}: {error.strerror}") from error
    except OSError as error:
        raise StartError(f"{host}:{port} cannot be used: {error.strerror} (choose another --port)") from error


@dataclass(frozen=True, slots=True)
class SocketFile:
    """The file of a Unix socket that a server has made.

    Attributes:
        path: Where it is.
        made: The file that was made there. A file system may give its inode to the next file, so its time counts, too.
    """

    path: Path
    made: tuple[int, int, int]

    @classmethod
    def at(cls, path: Path) -> SocketFile:
        """The file that is there now.

        Raises:
            OSError: There is none.
        """
        return cls(path, _identity(path))

    def remove(self) -> None:
        """Remove it, unless another server has replaced it meanwhile."""
        with suppress(FileNotFoundError):
            if _identity(self.path) == self.made:
                self.path.unlink()


def _identity(path: Path) -> tuple[int, int, int]:
    found = path.stat()
    return found.st_dev, found.st_ino, found.st_mtime_ns


def bind_unix(path: Path) -> tuple[socket.socket, SocketFile]:
    """Take a Unix socket. One that a server has left which does not run any more is replaced.

    Args:
        path: Where it is made.

    Returns:
        The bound socket, not listening yet, and its file.

    Raises:
        StartError: A server listens there, something else is there, or the socket cannot be made.
    """
    bound = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        _remove_left_over(path)
        bound.bind(str(path))
        path.chmod(UNIX_PERMISSIONS)
        return bound, SocketFile.at(path)
    except OSError as error:
        bound.close()
        raise StartError(f"--uds {path} cannot be used: {error.strerror or error}") from error


def _remove_left_over(path: Path) -> None:
    """Remove the socket of a server that has ended.

    Raises:
        OSError: A server listens there, or something else than a socket is there.
    """
    with suppress(FileNotFoundError):
        if not stat.S_ISSOCK(path.stat().st_mode):
            raise FileExistsError(errno.EEXIST, "there is another file")
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            probe.settimeout(1)
            try:
                probe.connect(str(path))
            except ConnectionRefusedError:
                path.unlink()
                return
        raise OSError(errno.EADDRINUSE, "another server listens there")


def reachable(host: str) -> str:
    """An address that clients on this machine can open, for one that only a server can: "every address"."""
    return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - looked up, not bound


def url_of(bound: socket.socket) -> str:
    """Where a server on this socket answers: a URL; of a Unix socket its path, and that of the endpoint."""
    if bound.family == socket.AF_UNIX:
        return f"the Unix socket {bound.getsockname()}, path {MCP_PATH}"
    host, port = bound.getsockname()[:2]
    host = reachable(host)
    return f"http://{f'[{host}]' if ':' in host else host}:{port}{MCP_PATH}"
