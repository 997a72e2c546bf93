"""The ASGI app of a server: its own, with limits and names in front of it."""

from __future__ import annotations

from typing import Final

from starlette.applications import Starlette

from mcp_celery.composition import settings_of, source_of
from mcp_celery.hosts import AllowedNames
from mcp_celery.settings import Settings
from mcp_celery.web.limits import HttpLimits, RequestLimits
from mcp_celery.web.names import AllowedNamesOnly

MCP_PATH: Final = "/mcp"


def http_app(
    server: object,
    *,
    settings: Settings | None = None,
    names: AllowedNames | None = None,
    path: str = MCP_PATH,
) -> Starlette:
    """Make the app that serves an MCP server over Streamable HTTP, as ``mcp-celery serve`` does.

    Requests are refused whose headers or body are too large or too slow (``MCP_CELERY_HTTP_…``), and those to the MCP
    endpoint whose ``Host`` or ``Origin`` is not allowed.

    Args:
        server: An ``MCPServer``, or a server of another kind that has tasks.
        settings: None: the server's own, or those of the environment.
        names: What requests may say in ``Host`` and ``Origin``. None: this machine's loopback, and
            ``MCP_CELERY_ALLOWED_HOSTS`` and ``MCP_CELERY_ALLOWED_ORIGINS``.
        path: Path of the MCP endpoint.

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
    )
    # The last one added is the first to see a request.
    app.add_middleware(AllowedNamesOnly, names=names, path=path)
    app.add_middleware(RequestLimits, limits=HttpLimits.of(settings))
    return app
