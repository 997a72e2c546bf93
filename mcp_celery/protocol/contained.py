"""Components of the server's own process: what they raise besides ``Exception`` ends their request, not the server."""

from __future__ import annotations

from mcp.server.context import CallNext, HandlerResult
from mcp.shared.exceptions import MCPError

from mcp_celery.containing import containing
from mcp_celery.errors import ComponentExitedError
from mcp_celery.keys import METHODS
from mcp_celery.protocol.revision import RequestContext

_METHODS = frozenset(METHODS.values())


async def contained(ctx: RequestContext, call_next: CallNext) -> HandlerResult:
    """Middleware for ``MCPServer(middleware=[…])``.

    Raises:
        MCPError: -32603 where the component raised ``SystemExit`` or the like, as its task would fail.
    """
    if ctx.method not in _METHODS:
        return await call_next(ctx)
    try:
        with containing(f"the component of {ctx.method}"):
            return await call_next(ctx)
    except ComponentExitedError as error:
        raise MCPError(error.code, str(error)) from None
