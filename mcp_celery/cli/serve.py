"""``mcp-celery serve``: the server alone, as it runs in production."""

from __future__ import annotations

import logging
import resource
import socket
import sys
from collections.abc import Sequence
from contextlib import redirect_stdout, suppress
from dataclasses import replace
from typing import Final

import uvicorn

from mcp_celery.cli.errors import StartError, start_errors
from mcp_celery.component_source import ComponentSource
from mcp_celery.composition import check, settings_of
from mcp_celery.hosts import AllowedNames, is_loopback
from mcp_celery.logs import LogFormatter, contain
from mcp_celery.server import load_source
from mcp_celery.settings import Settings
from mcp_celery.web.app import MCP_PATH, http_app
from mcp_celery.web.limits import HttpLimits
from mcp_celery.web.protocol import bounded_protocol

logger = logging.getLogger("uvicorn.error")
LOG_FORMAT: Final = "%(asctime)s %(levelname)s %(name)s: %(message)s"
OTHER_FILES: Final = 256
"""Files that a server may open besides clients' connections: those to store and broker, and the tools' own."""
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


def serve(
    server: str,
    host: str,
    port: int,
    allowed_hosts: Sequence[str],
    allowed_origins: Sequence[str],
    transport: str,
    fd: int | None,
) -> None:
    """Serve until a signal comes, or the client on stdio has gone.

    Args:
        server: The user's server as ``module:attribute``.
        host: Address to listen on.
        port: Port to listen on; 0: a free one.
        allowed_hosts: Names by which clients reach the server, besides ``MCP_CELERY_ALLOWED_HOSTS``.
        allowed_origins: Origins of web pages that may use it, besides ``MCP_CELERY_ALLOWED_ORIGINS``.
        transport: ``http`` or ``stdio``.
        fd: An inherited socket that is bound to the address; None: one is bound here.
    """
    # A module may print while it is imported.
    with start_errors(), redirect_stdout(sys.stderr):
        source = load_source(server)
        check(source.server)
        settings = settings_of(source.server)
    # The SDK's log handler renders each line for a terminal; a server writes one for each task.
    handler = logging.StreamHandler()
    handler.setFormatter(LogFormatter(LOG_FORMAT))
    logging.basicConfig(level=source.log_level, handlers=[handler], force=True)
    if transport == "stdio":
        source.run_stdio()
        return
    hosts = [*settings.allowed_host_names, *allowed_hosts]
    origins = [*settings.allowed_origin_names, *allowed_origins]
    bound = socket.socket(fileno=fd) if fd is not None else bind(host, port)
    if not is_loopback(host):
        _warn(source, host, hosts)
    names = AllowedNames.listening_on(host, hosts=hosts, origins=origins)
    _serve_http(source, settings, names, bound)


def _warn(source: ComponentSource, host: str, hosts: Sequence[str]) -> None:
    """Warn about a server that other machines can reach, if it lacks authentication or an allowed host."""
    if not source.authenticates:
        logger.warning(
            "The server listens on %s without authentication: everyone who can connect can use it. Pass `auth=` and "
            "`token_verifier=` to the server, or put a proxy that authenticates in front of it",
            host,
        )
    if not hosts:
        logger.warning(
            "The server listens on %s, but accepts only localhost, 127.0.0.1, [::1] and that address as Host: pass the "
            "name that clients use with --allowed-host or MCP_CELERY_ALLOWED_HOSTS",
            host,
        )


def _serve_http(source: ComponentSource, settings: Settings, names: AllowedNames, bound: socket.socket) -> None:
    host, port = bound.getsockname()[:2]
    config = uvicorn.Config(
        http_app(source.server, settings=settings, names=names),
        host=host,
        port=port,
        http=bounded_protocol(fitted_to_open_files(HttpLimits.of(settings))),
        # MCP uses no WebSockets, and the protocol above does not limit them.
        ws="none",
        timeout_graceful_shutdown=SHUTDOWN_SECONDS,
    )
    contain(logging.getLogger("uvicorn"))
    with bound:
        _AnnouncingServer(config, url_of(bound)).run(sockets=[bound])


def fitted_to_open_files(limits: HttpLimits) -> HttpLimits:
    """Raise the process's limit of open files to fit its connections; where that is refused, lower the connections.

    A process that has reached its limit of open files can neither accept connections nor connect to its store, so the
    limit of connections has to be the lower one.

    Args:
        limits: The configured limits.

    Returns:
        The limits with as many connections as the process can open.
    """
    needed = limits.max_connections + OTHER_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return limits
    allowed = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
    with suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
        soft = allowed
    if soft >= needed:
        return limits
    fitting = max(1, soft - OTHER_FILES)
    logger.warning(
        "The server accepts at most %d connections instead of MCP_CELERY_HTTP_MAX_CONNECTIONS=%d, because the process "
        "may open only %d files: raise that limit with ulimit -n",
        fitting,
        limits.max_connections,
        soft,
    )
    return replace(limits, max_connections=fitting)


class _AnnouncingServer(uvicorn.Server):
    """Says where it answers, which uvicorn leaves to whoever bound the socket."""

    def __init__(self, config: uvicorn.Config, url: str) -> None:
        super().__init__(config)
        self._url = url

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start to answer."""
        await super().startup(sockets)
        logger.info("Answers at %s (Ctrl-C stops it)", self._url)
