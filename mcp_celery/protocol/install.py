"""Fitting an ``MCPServer`` that exists already. Provisional seam: the SDK takes extensions at construction only."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

from mcp.server import MCPServer
from mcp.server.auth.provider import AccessToken, TokenVerifier
from mcp.server.context import ServerMiddleware

from mcp_celery.context import subject_of
from mcp_celery.protocol.additions import added_middleware
from mcp_celery.protocol.contained import contained
from mcp_celery.protocol.extension import TasksExtension
from mcp_celery.protocol.host import TaskHost
from mcp_celery.protocol.polling import PolledOutputs
from mcp_celery.protocol.requirements import Requirements

Running = Callable[[], AbstractAsyncContextManager[None]]


def fit(
    server: MCPServer[Any], extension: TasksExtension, middleware: Sequence[ServerMiddleware[Any]], running: Running
) -> None:
    """Add the extension, the middleware, and ``running`` around the server's lifespan.

    Args:
        server: Not serving yet.
        extension: Its methods and its ``tools/call`` interceptor.
        middleware: For all revisions.
        running: Entered before the server's own lifespan, and left after it.

    Raises:
        ValueError: The server has the extension already.
    """
    private: Any = server
    private._apply_extension(extension)
    private._install_extension_interceptor()
    server.middleware.extend(middleware)
    low = private._lowlevel_server
    low.lifespan = around(running, low.lifespan)


def name_subjects(server: MCPServer[Any]) -> None:
    """Have the server's token verifier name the subject that a token has only in its claims.

    The SDK binds sessions and request states to a token's ``subject`` (2.3.0). All users of a client whose tokens leave
    it empty would share them.

    Args:
        server: Not serving yet.
    """
    private: Any = server
    if private._token_verifier is not None:
        private._token_verifier = _SubjectNamingVerifier(private._token_verifier)


class _SubjectNamingVerifier:
    def __init__(self, verifier: TokenVerifier) -> None:
        self._verifier = verifier

    async def verify_token(self, token: str) -> AccessToken | None:
        found = await self._verifier.verify_token(token)
        if found is None or found.subject or (subject := subject_of(found)) is None:
            return found
        return found.model_copy(update={"subject": subject})


def middleware_of(host: TaskHost) -> tuple[ServerMiddleware[Any], ...]:
    """The middleware that a server with tasks needs, the outermost first."""
    return contained, Requirements(host), PolledOutputs(host), *added_middleware(host)


def around(
    running: Running, lifespan: Callable[[Any], AbstractAsyncContextManager[Any]]
) -> Callable[[Any], AbstractAsyncContextManager[Any]]:
    """A server's lifespan within ours, which holds the connections to the store and the broker."""

    @asynccontextmanager
    async def composed(server: Any) -> AsyncGenerator[Any]:
        async with running(), lifespan(server) as state:
            yield state

    return composed
