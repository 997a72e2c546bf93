"""``mcp-celery serve``: the server alone, as it runs in production."""

from __future__ import annotations

import asyncio
import logging
import os
import resource
import signal
import socket
import sys
from collections.abc import Generator, Sequence
from contextlib import contextmanager, redirect_stdout, suppress
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Final

import click
import uvicorn
from click.core import ParameterSource

from mcp_celery.cli.errors import StartError, start_errors
from mcp_celery.cli.log_config import configure_logging
from mcp_celery.cli.processes import run_processes, same_command
from mcp_celery.cli.sockets import ANSWERS, SocketFile, bind, bind_unix, url_of
from mcp_celery.cli.usable import require_usable
from mcp_celery.common.allowed_hosts import AllowedNames, is_loopback
from mcp_celery.common.garbage import set_up_collector
from mcp_celery.common.import_path import put_on_path
from mcp_celery.common.installed import package_conflicts
from mcp_celery.components.source import ComponentSource
from mcp_celery.json_logs import json_formatter
from mcp_celery.logs import LogFormatter
from mcp_celery.server.celery_tasks import check, is_in_memory, settings_of
from mcp_celery.server.health import ServerHealth
from mcp_celery.server.loading import load_source
from mcp_celery.settings import LogFormat, Settings, unknown_variables
from mcp_celery.web.app import bind_health, http_app
from mcp_celery.web.limits import HttpLimits
from mcp_celery.web.protocol import bounded_protocol

logger = logging.getLogger("uvicorn.error")
LOG_FORMAT: Final = "%(asctime)s %(levelname)s %(name)s: %(message)s"
OTHER_FILES: Final = 256
"""Files that a server may open besides clients' connections: those to store and broker, and the tools' own."""
SHUTDOWN_SECONDS: Final = 3
"""A client's listen stream stays open for as long as the client wants; a shutdown must not wait for it."""
KEEP_ALIVE_SECONDS: Final = 75
"""How long a connection stays open between requests: longer than clients and proxies keep one (httpx 5 s, load
balancers 60 s). A client that sends a request while the server closes the connection cannot know whether it arrived.
"""


def serve(  # noqa: PLR0913, PLR0917 - one for each argument and option of the command
    server: str,
    host: str,
    port: int,
    uds: Path | None,
    allowed_hosts: Sequence[str],
    allowed_origins: Sequence[str],
    transport: str,
    app_dir: Path | None,
    root_path: str,
    forwarded_allow_ips: str | None,
    stateless: bool,
    workers: int,
    wait: float | None,
    access_log: bool,
    log_config: Path | None,
    fd: int | None,
    health_fd: int | None,
    child: bool,
) -> None:
    """Serve until a signal comes, or the client on stdio has gone.

    Args:
        server: The user's server, as :func:`mcp_celery.server.loading.load_source` takes it.
        host: Address to listen on.
        port: Port to listen on; 0: a free one.
        uds: Unix socket to listen on instead.
        allowed_hosts: Names by which clients reach the server, besides ``MCP_CELERY_ALLOWED_HOSTS``.
        allowed_origins: Origins of web pages that may use it, besides ``MCP_CELERY_ALLOWED_ORIGINS``.
        transport: ``http`` or ``stdio``.
        app_dir: Folder in which the server's module is looked for first; None: the current one.
        root_path: What a proxy removes from the beginning of each path.
        forwarded_allow_ips: Proxies whose ``X-Forwarded-…`` headers are believed; None: uvicorn's default.
        stateless: Whether each request of 2025-11-25 stands alone, without a session.
        workers: Number of processes.
        wait: Seconds for which store and broker may be unreachable at the start; None: for ever.
        access_log: Whether each HTTP request is logged, where there is no logging configuration.
        log_config: Logging configuration; None: lines of text on standard error.
        fd: An inherited socket that is bound to the address; None: one is bound here.
        health_fd: An inherited socket that is bound to ``MCP_CELERY_HEALTH_PORT``; None: it is bound here.
        child: Whether this is one of several processes, whose parent has checked and warned already.
    """
    if uds is not None:
        _refuse_address()
    # A module may print while it is imported.
    with start_errors(), redirect_stdout(sys.stderr):
        put_on_path(app_dir or Path.cwd())
        source = load_source(server)
        check(source.server)
        settings = settings_of(source.server)
    _set_up_logging(source.log_level, log_config, settings.log_format)
    for warning in () if child else (*unknown_variables(os.environ), *package_conflicts()):
        logger.warning("%s", warning)
    if transport == "stdio":
        if workers > 1:
            raise StartError(f"--workers {workers}: on stdio there is one client, which has started this process")
        require_usable(source.server, wait)
        set_up_collector(settings.gc)
        source.run_stdio()
        return
    if workers > 1:
        _require_several_may_serve(source.server, workers, stateless=stateless)
    hosts = [*settings.allowed_host_names, *allowed_hosts]
    origins = [*settings.allowed_origin_names, *allowed_origins]
    with _socket(host, port, uds, fd) as (bound, file), _health_socket(settings, host, health_fd) as health_bound:
        if not child:
            require_usable(source.server, wait)
            if bound.family != socket.AF_UNIX and not is_loopback(host):
                _warn(source, host, hosts)
        if workers > 1:
            sockets = [bound] if health_bound is None else [bound, health_bound]
            run_processes(_one_process(*sockets), workers, sockets, grace_seconds=settings.drain_seconds)
            return
        health = ServerHealth(source.server)
        app = http_app(
            source.server,
            settings=settings,
            names=AllowedNames.listening_on(host, hosts=hosts, origins=origins),
            stateless=stateless,
            health=health,
            health_socket=health_bound,
        )
        config = uvicorn.Config(
            app,
            http=bounded_protocol(fitted_to_open_files(HttpLimits.of(settings))),
            # MCP uses no WebSockets, and the protocol above does not limit them.
            ws="none",
            root_path=root_path,
            forwarded_allow_ips=_trusted_proxies(bound, forwarded_allow_ips),
            timeout_keep_alive=KEEP_ALIVE_SECONDS,
            timeout_graceful_shutdown=SHUTDOWN_SECONDS,
            # Configured above: uvicorn's lines have the format of all others.
            log_config=None,
            access_log=access_log or log_config is not None,
        )
        server_process = _Server(config, url_of(bound), file, health, settings)
        # Uvicorn raises Ctrl-C again once the server has ended. Neither Ctrl-C nor SIGTERM is an error.
        with suppress(KeyboardInterrupt):
            server_process.run(sockets=[bound])


def _refuse_address() -> None:
    """Refuse an address beside a Unix socket.

    Raises:
        UsageError: One was given.
    """
    context = click.get_current_context()
    for name in ("host", "port"):
        if context.get_parameter_source(name) is ParameterSource.COMMANDLINE:
            raise click.UsageError(f"--uds and --{name} exclude each other")


def _set_up_logging(level: str, log_config: Path | None, log_format: LogFormat) -> None:
    if log_config is not None:
        configure_logging(log_config)
        return
    # The SDK's log handler renders each line for a terminal; a server writes one for each task.
    handler = logging.StreamHandler()
    handler.setFormatter(json_formatter() if log_format == "json" else LogFormatter(LOG_FORMAT))
    logging.basicConfig(level=level, handlers=[handler], force=True)
    # Whatever the server's own level is, the log says where the server answers and when it ends.
    logging.getLogger("uvicorn").setLevel(logging.INFO)


@contextmanager
def _socket(
    host: str, port: int, uds: Path | None, fd: int | None
) -> Generator[tuple[socket.socket, SocketFile | None]]:
    """The socket to listen on, and the file of a Unix socket that was made here. The file is removed at the end."""
    if fd is not None:
        with socket.socket(fileno=fd) as bound:
            yield bound, None
    elif uds is None:
        with bind(host, port) as bound:
            yield bound, None
    else:
        bound, file = bind_unix(uds)
        with bound:
            try:
                yield bound, file
            finally:
                file.remove()


@contextmanager
def _health_socket(settings: Settings, host: str, fd: int | None) -> Generator[socket.socket | None]:
    """The socket of ``MCP_CELERY_HEALTH_PORT``, None where that is not set."""
    with start_errors():
        bound = bind_health(settings, host) if fd is None else socket.socket(fileno=fd)
    try:
        yield bound
    finally:
        if bound is not None:
            bound.close()


def _require_several_may_serve(server: object, workers: int, *, stateless: bool) -> None:
    """Refuse several processes that would not share what clients need.

    Raises:
        StartError: Sessions, or the tasks, would be in one of them.
    """
    if is_in_memory(server):
        raise StartError(
            f"--workers {workers}: tasks are kept in the memory of one process (memory://), and the other processes "
            "would not find them; keep tasks in Redis (MCP_CELERY_REDIS_URL)"
        )
    if not stateless:
        raise StartError(
            f"--workers {workers} needs --stateless: a session of revision 2025-11-25 lives in one process, and its "
            "requests would reach the others, which do not know it"
        )


def _one_process(bound: socket.socket, health: socket.socket | None = None) -> list[str]:
    """The command of one of several processes that share sockets."""
    context = click.get_current_context()
    health_fd = None if health is None else health.fileno()
    return same_command(context, workers=1, uds=None, fd=bound.fileno(), health_fd=health_fd, child=True)


def _trusted_proxies(bound: socket.socket, given: str | None) -> str | None:
    """Whose ``X-Forwarded-…`` headers are believed, in uvicorn's form.

    Clients of a Unix socket have no address, and are on this machine, as are those on loopback
    that uvicorn believes by default.
    """
    if given is None and bound.family == socket.AF_UNIX and "FORWARDED_ALLOW_IPS" not in os.environ:
        return "*"
    return given


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


class _Server(uvicorn.Server):
    """uvicorn's server, which says where it answers, goes on to serve for a while after SIGTERM, and removes its Unix
    socket, which uvicorn leaves to the code that bound the socket.

    Args:
        config: uvicorn's.
        url: Where it answers.
        file: That of its Unix socket, None where it has made none.
        health: Reports the server as unready when it is about to end.
        settings: For how long it goes on to serve after SIGTERM, and how it collects garbage.
    """

    def __init__(
        self, config: uvicorn.Config, url: str, file: SocketFile | None, health: ServerHealth, settings: Settings
    ) -> None:
        super().__init__(config)
        self._url = url
        self._file = file
        self._health = health
        self._settings = settings
        self._loop: asyncio.AbstractEventLoop | None = None
        self._is_draining = False

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start to answer."""
        await super().startup(sockets)
        set_up_collector(self._settings.gc)
        self._loop = asyncio.get_running_loop()
        logger.info("%s %s (Ctrl-C stops it)", ANSWERS, self._url)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """End upon a signal; upon a first SIGTERM after the drain time. uvicorn calls this as a signal handler."""
        self._health.ends()
        if sig != signal.SIGTERM or self._is_draining or not self._settings.drain_seconds or self._loop is None:
            super().handle_exit(sig, frame)
            return
        self._is_draining = True
        self._loop.call_soon_threadsafe(self._drain, sig, frame)

    def _drain(self, sig: int, frame: FrameType | None) -> None:
        logger.info(
            "The server ends in %g s (MCP_CELERY_DRAIN_SECONDS); /readyz answers 503", self._settings.drain_seconds
        )
        asyncio.get_running_loop().call_later(self._settings.drain_seconds, self._end_drain, sig, frame)

    def _end_drain(self, sig: int, frame: FrameType | None) -> None:
        if not self.should_exit:
            super().handle_exit(sig, frame)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """End."""
        await super().shutdown(sockets)
        if self._file is not None:
            # Here, because uvicorn then ends the process by the signal that stopped the server.
            self._file.remove()
