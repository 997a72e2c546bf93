"""The check of ``Host`` and ``Origin`` as an ASGI middleware, in place of the SDK's.

The SDK checks only where the server listens on loopback, and its log line does not say how a name is allowed.
"""

from __future__ import annotations

from http import HTTPStatus
from typing import Final

from starlette.types import ASGIApp, Receive, Scope, Send

from mcp_celery.common.allowed_hosts import AllowedNames
from mcp_celery.web.refusals import client_of, log, respond, shown

ALLOW_HOST: Final = "--allowed-host or MCP_CELERY_ALLOWED_HOSTS allows further names"
ALLOW_ORIGIN: Final = "--allowed-origin or MCP_CELERY_ALLOWED_ORIGINS allows further ones"


def _path_in_app(scope: Scope) -> str:
    """The path by which the app routes a request: without the prefix of a proxy (``--root-path``) or of a mount."""
    path, prefix = scope["path"], scope.get("root_path", "")
    below = path.removeprefix(prefix)
    return below if prefix and below[:1] in ("", "/") else path


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
        if scope["type"] != "http" or _path_in_app(scope).rstrip("/") != self._path.rstrip("/"):
            await self._app(scope, receive, send)
            return
        hosts = [value.decode("latin-1") for name, value in scope["headers"] if name == b"host"]
        origins = [value.decode("latin-1") for name, value in scope["headers"] if name == b"origin"]
        # With two Host headers, another reader of the request may take the other one.
        host = hosts[0] if len(hosts) == 1 else None
        if not self._names.allows_host(host):
            told = f"the Host {{}}; {ALLOW_HOST}"
            log.note("host", client_of(scope), told.format(shown(", ".join(hosts) or None)))
            text = f"This server does not accept this Host; {ALLOW_HOST}"
            await respond(send, HTTPStatus.MISDIRECTED_REQUEST, text)
        elif len(origins) > 1 or not self._names.allows_origin(origins[0] if origins else None):
            told = f"the Origin {{}}; {ALLOW_ORIGIN}"
            log.note("origin", client_of(scope), told.format(shown(", ".join(origins))))
            await respond(send, HTTPStatus.FORBIDDEN, f"This server does not accept this Origin; {ALLOW_ORIGIN}")
        else:
            await self._app(scope, receive, send)
