"""The check of ``Host`` and ``Origin`` as an ASGI middleware, in place of the SDK's.

The SDK checks only where the server listens on loopback, and its log line does not say how a name is allowed.
"""

from __future__ import annotations

from http import HTTPStatus

from starlette.types import ASGIApp, Receive, Scope, Send

from mcp_celery.hosts import AllowedNames
from mcp_celery.web.refusals import client_of, log, respond, shown


class AllowedNamesOnly:
    """ASGI middleware: refuses requests to the MCP endpoint with an unknown ``Host`` (421) or ``Origin`` (403).

    It does not check other paths (health checks, OAuth metadata, the server's own routes), and neither does the SDK.

    Args:
        app: The app behind it.
        names: The accepted hosts and origins.
        path: Path of the MCP endpoint.
    """

    def __init__(self, app: ASGIApp, *, names: AllowedNames, path: str) -> None:
        self._app = app
        self._names = names
        self._path = path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request, or refuse it."""
        if scope["type"] != "http" or scope["path"].rstrip("/") != self._path.rstrip("/"):
            await self._app(scope, receive, send)
            return
        hosts = [value.decode("latin-1") for name, value in scope["headers"] if name == b"host"]
        origins = [value.decode("latin-1") for name, value in scope["headers"] if name == b"origin"]
        # With two Host headers, another reader of the request may take the other one.
        host = hosts[0] if len(hosts) == 1 else None
        if not self._names.allows_host(host):
            told = "the Host {}; --allowed-host or MCP_CELERY_ALLOWED_HOSTS allows further names"
            log.note("host", client_of(scope), told.format(shown(", ".join(hosts) or None)))
            await respond(send, HTTPStatus.MISDIRECTED_REQUEST, "This server does not accept this Host")
        elif len(origins) > 1 or not self._names.allows_origin(origins[0] if origins else None):
            told = "the Origin {}; --allowed-origin or MCP_CELERY_ALLOWED_ORIGINS allows further ones"
            log.note("origin", client_of(scope), told.format(shown(", ".join(origins))))
            await respond(send, HTTPStatus.FORBIDDEN, "This server does not accept this Origin")
        else:
            await self._app(scope, receive, send)
