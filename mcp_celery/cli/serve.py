"""``mcp-celery serve``: the server alone, as it runs in production."""

from __future__ import annotations

import logging
import socket
import sys
from contextlib import redirect_stdout
from typing import Final

import uvicorn
from mcp.server import MCPServer

from mcp_celery.cli.errors import StartError, start_errors
from mcp_celery.composition import check
from mcp_celery.logs import LogFormatter, contain
from mcp_celery.server import load_server

logger = logging.getLogger("uvicorn.error")
LOG_FORMAT: Final = "%(asctime)s %(levelname)s %(name)s: %(message)s"
MCP_PATH: Final = "/mcp"
SHUTDOWN_SECONDS: Final = 3
"""A client's listen stream stays open for as long as the client wants; a shutdown must not wait for it."""


def bind(host: str, port: int) -> socket.socket:
    """Take a port before anything is started, so that a port in use is told at once and nobody can take it meanwhile.

    Args:
        host: Name or address to listen on.
        port: Its number; 0: any free one.

    Returns:
        The bound socket, not listening yet: connections are refused until the server really answers.

    Raises:
        StartError: The port is in use, or the address cannot be had.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    except OSError as error:
        raise StartError(f"--host {host}: {error.strerror}") from error
    # The protocol is named, because asyncio sends without delay only on sockets that say they are TCP.
    bound = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        # As uvicorn does: connections of an earlier run that still linger are no reason to refuse.
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
    except OSError as error:
        bound.close()
        raise StartError(f"{host}:{port} cannot be used: {error.strerror} (choose another --port)") from error
    return bound


def reachable(host: str) -> str:
    """An address that clients on this machine can open, for one that only a server can: "every address"."""
    return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - looked up, not bound


def url_of(bound: socket.socket) -> str:
    """Where a server on this socket answers."""
    host, port = bound.getsockname()[:2]
    host = reachable(host)
    return f"http://{f'[{host}]' if ':' in host else host}:{port}{MCP_PATH}"


def serve(server: str, host: str, port: int, transport: str, fd: int | None) -> None:
    """Serve until a signal comes, or the client on stdio has gone.

    Args:
        server: The user's server as ``module:attribute``.
        host: Address to listen on.
        port: Port to listen on; 0: a free one.
        transport: ``http`` or ``stdio``.
        fd: An inherited socket that is bound to the address; None: one is bound here.
    """
    # A module may print while it is imported.
    with start_errors(), redirect_stdout(sys.stderr):
        loaded = load_server(server)
        check(loaded)
    # The SDK's log handler renders each line for a terminal; a server writes one for each task.
    handler = logging.StreamHandler()
    handler.setFormatter(LogFormatter(LOG_FORMAT))
    logging.basicConfig(level=loaded.settings.log_level, handlers=[handler], force=True)
    if transport == "stdio":
        loaded.run("stdio")
    else:
        _serve_http(loaded, host, socket.socket(fileno=fd) if fd is not None else bind(host, port))


def _serve_http(server: MCPServer, host: str, bound: socket.socket) -> None:
    config = uvicorn.Config(
        server.streamable_http_app(streamable_http_path=MCP_PATH, host=host),
        host=host,
        port=bound.getsockname()[1],
        timeout_graceful_shutdown=SHUTDOWN_SECONDS,
    )
    contain(logging.getLogger("uvicorn"))
    with bound:
        _AnnouncingServer(config, url_of(bound)).run(sockets=[bound])


class _AnnouncingServer(uvicorn.Server):
    """Says where it answers, which uvicorn leaves to whoever bound the socket."""

    def __init__(self, config: uvicorn.Config, url: str) -> None:
        super().__init__(config)
        self._url = url

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start to answer."""
        await super().startup(sockets)
        logger.info("Answers at %s (Ctrl-C stops it)", self._url)
