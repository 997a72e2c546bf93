"""Installs methods and middleware of tasks in a server of any kind."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

from mcp.server.auth.provider import AccessToken, TokenVerifier
from mcp.server.context import ServerMiddleware

from mcp_celery.components.source import Running
from mcp_celery.context import subject_of
from mcp_celery.keys import TaskType
from mcp_celery.protocol.additions import added_middleware
from mcp_celery.protocol.child_tasks import prepared
from mcp_celery.protocol.contained import contained
from mcp_celery.protocol.host import TaskHost
from mcp_celery.protocol.plain_clients.polling import PolledOutputs
from mcp_celery.protocol.requirements import Requirements
from mcp_celery.telemetry.requests import MeasuredRequests


class SubjectNamingVerifier:
    """A token verifier that names the subject that a token has only in its claims.

    The SDK binds sessions and request states to a token's ``subject`` (2.3.0). All users of a client whose tokens leave
    it empty would share them.

    Args:
        verifier: The server's own.
    """

    def __init__(self, verifier: TokenVerifier) -> None:
        self._verifier = verifier

    async def verify_token(self, token: str) -> AccessToken | None:
        """Verify a token as the server's own verifier does."""
        found = await self._verifier.verify_token(token)
        if found is None or found.subject or (subject := subject_of(found)) is None:
            return found
        return found.model_copy(update={"subject": subject})


def middleware_of(host: TaskHost) -> tuple[ServerMiddleware[Any], ...]:
    """The middleware that a server with tasks needs, the outermost first."""

    async def is_declared(task_type: TaskType, name: str) -> bool:
        return (await host.components.find(task_type, name)).component is not None

    return MeasuredRequests(is_declared), contained, Requirements(host), PolledOutputs(host), *added_middleware(host)


def around(
    running: Running, lifespan: Callable[[Any], AbstractAsyncContextManager[Any]]
) -> Callable[[Any], AbstractAsyncContextManager[Any]]:
    """A server's lifespan within ours, which holds the connections to the store and the broker.

    It also prepares the event loop for components whose asyncio tasks try to end it.
    """

    @asynccontextmanager
    async def composed(server: Any) -> AsyncGenerator[Any]:
        with prepared():
            async with running(), lifespan(server) as state:
                yield state

    return composed
