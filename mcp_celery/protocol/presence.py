"""Whether the client of a request still waits for its answer. Over HTTP the SDK does not tell each handler."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import anyio
import anyio.lowlevel
from mcp.shared.exceptions import MCPError

from mcp_celery.common.background import BackgroundTasks
from mcp_celery.protocol.caller import connection_of, has_left
from mcp_celery.protocol.host import TaskHost
from mcp_celery.protocol.revision import RequestContext
from mcp_celery.protocol.shared_wire import REQUEST_CANCELLED

logger = logging.getLogger(__name__)


@asynccontextmanager
async def while_there(host: TaskHost, ctx: RequestContext, *, look_seconds: float) -> AsyncGenerator[None]:
    """Run what is within for as long as a request's client waits for its answer.

    Args:
        host: The server.
        ctx: The request.
        look_seconds: How often it is looked whether the client is still there.

    Raises:
        MCPError: -32800, which is never sent: the client has dropped its HTTP exchange for good.
    """
    if _may_come_back(host, ctx):
        yield
        return
    with anyio.CancelScope() as presence:
        background = BackgroundTasks(logger, "could not watch whether a client leaves")
        looking = background.start(
            _end_when_gone(ctx, presence, look_seconds), name=f"mcp-celery-presence-{ctx.request_id}"
        )
        try:
            yield
        finally:
            looking.cancel()
    if presence.cancelled_caught:
        raise _left()


async def require_there(host: TaskHost, ctx: RequestContext) -> None:
    """Look once whether a request's client waits for its answer.

    Raises:
        MCPError: -32800, which is never sent: the client has dropped its HTTP exchange for good.
    """
    await anyio.lowlevel.checkpoint()
    if not _may_come_back(host, ctx) and await has_left(ctx):
        raise _left()


def _left() -> MCPError:
    return MCPError(REQUEST_CANCELLED, "The client has left")


def _may_come_back(host: TaskHost, ctx: RequestContext) -> bool:
    """Whether the client can take up a stream that it dropped."""
    return connection_of(ctx).session_id is not None and host.components.source.is_resumable


async def _end_when_gone(ctx: RequestContext, presence: anyio.CancelScope, look_seconds: float) -> None:
    while not await has_left(ctx):  # noqa: ASYNC110 - there is no event for it
        await asyncio.sleep(look_seconds)
    presence.cancel()
