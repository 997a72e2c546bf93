"""The ASGI app of a server: its own, with limits and names in front of it."""

from __future__ import annotations

import socket
from collections.abc import AsyncGenerator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, Final

from starlette.applications import Starlette

from mcp_celery.common.allowed_hosts import AllowedNames
from mcp_celery.common.endpoint_listener import EndpointListener, bind
from mcp_celery.common.endpoints import routes
from mcp_celery.errors import ConfigurationError
from mcp_celery.server.celery_tasks import settings_of, source_of
from mcp_celery.server.health import ServerHealth
from mcp_celery.settings import Settings
from mcp_celery.web.limits import HttpLimits, RequestLimits
from mcp_celery.web.names import AllowedNamesOnly
from mcp_celery.web.shutdown import EndingStreams

MCP_PATH: Final = "/mcp"


def http_app(
    server: object,
    *,
    settings: Settings | None = None,
    names: AllowedNames | None = None,
    path: str = MCP_PATH,
    stateless: bool = False,
    health: ServerHealth | None = None,
    health_socket: socket.socket | None = None,
) -> Starlette:
    """Make the app that serves an MCP server over Streamable HTTP, as ``mcp-celery serve`` does.

    Requests are refused whose headers or body are too large or too slow (``MCP_CELERY_HTTP_…``), and those to the MCP
    endpoint whose ``Host`` or ``Origin`` is not allowed.

    ``/healthz`` and ``/readyz`` are the last routes of the app, so that a route of the server itself wins; they ask for
    no token and no ``Host``, which a probe does not have. With ``MCP_CELERY_HEALTH_PORT`` they answer on that port
    instead, while the app's lifespan lasts.

    Args:
        server: An ``MCPServer``, or a server of another kind that has tasks.
        settings: None: the server's own, or those of the environment.
        names: What requests may say in ``Host`` and ``Origin``. None: this machine's loopback, and
            ``MCP_CELERY_ALLOWED_HOSTS`` and ``MCP_CELERY_ALLOWED_ORIGINS``.
        path: Path of the MCP endpoint.
        stateless: Whether each request of 2025-11-25 stands alone, so that any of several processes can serve it: these
            clients then get no push and no questions, and cannot list their tasks. False: as the server's own
            configuration says, which is not so for an ``MCPServer``.
        health: What ``/healthz`` and ``/readyz`` answer. None: it is made here.
        health_socket: The bound socket of ``MCP_CELERY_HEALTH_PORT``. None: it is bound when the lifespan begins.

    Returns:
        An app with a lifespan, which opens the server's connections and closes them.

    Raises:
        ConfigurationError: A setting is refused; the message names it. Or it is no server of a kind that is known.
    """
    settings = settings or settings_of(server)
    names = names or AllowedNames.listening_on(
        "127.0.0.1", hosts=settings.allowed_host_names, origins=settings.allowed_origin_names
    )
    app = source_of(server).http_app(
        path=path,
        max_body_bytes=settings.http_max_body_bytes,
        max_sessions=settings.http_max_sessions,
        session_idle_seconds=settings.http_session_idle_seconds,
        stateless=stateless,
    )
    health = health or ServerHealth(server)
    if settings.health_port is None:
        app.router.routes.extend(routes(health.endpoints))
    app.router.lifespan_context = _with_health(app, health, settings, health_socket)
    # The last one added is the first to see a request.
    app.add_middleware(AllowedNamesOnly, names=names, path=path)
    app.add_middleware(RequestLimits, limits=HttpLimits.of(settings))
    app.add_middleware(EndingStreams, on_end=health.ends)
    return app


def bind_health(settings: Settings, host: str) -> socket.socket | None:
    """Take the port of ``MCP_CELERY_HEALTH_PORT``.

    Args:
        settings: Name it.
        host: Address of the server, where ``MCP_CELERY_HEALTH_HOST`` names none.

    Returns:
        The bound socket, None where the endpoints have no port of their own.

    Raises:
        ConfigurationError: The port cannot be had.
    """
    if settings.health_port is None:
        return None
    try:
        return bind(settings.health_host or host, settings.health_port)
    except OSError as error:
        raise ConfigurationError(
            f"MCP_CELERY_HEALTH_PORT={settings.health_port} cannot be used on {settings.health_host or host}: "
            f"{error.strerror}. Server processes share it under `mcp-celery serve --workers` only"
        ) from error


def _with_health(app: Starlette, health: ServerHealth, settings: Settings, bound: socket.socket | None) -> Any:
    """The app's lifespan, which reports when the server can serve."""
    inner = app.router.lifespan_context

    @asynccontextmanager
    async def lifespan(running: Starlette) -> AsyncGenerator[Mapping[str, Any] | None]:
        async with AsyncExitStack() as stack:
            listener = None
            if (own := bound or bind_health(settings, "127.0.0.1")) is not None:
                listener = EndpointListener(health.endpoints, own)
                stack.push_async_callback(listener.aclose)
            state = await stack.enter_async_context(inner(running))
            if listener is not None:
                await listener.open()
            health.serves()
            stack.callback(health.ends)
            yield state

    return lifespan
