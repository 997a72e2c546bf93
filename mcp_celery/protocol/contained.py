"""Components of the server's own process: what they raise besides ``Exception`` ends their request, not the server; and
what they raise is not taken for a refusal of the server.
"""

from __future__ import annotations

import anyio
from mcp.server.context import CallNext, HandlerResult
from mcp.shared.exceptions import MCPError

from mcp_celery.base_exceptions import containing
from mcp_celery.errors import LIMIT_EXCEEDED, ComponentExitedError, LimitExceededError
from mcp_celery.keys import METHODS
from mcp_celery.protocol.child_tasks import guarding
from mcp_celery.protocol.revision import RequestContext
from mcp_celery.protocol.shared_wire import as_component_error

_METHODS = frozenset(METHODS.values())


async def contained(ctx: RequestContext, call_next: CallNext) -> HandlerResult:
    """Middleware for ``MCPServer(middleware=[…])``.

    Raises:
        MCPError: -32603 where the component raised ``SystemExit`` or the like, as its task would fail; the component's
            own error; a refusal of the server.
    """
    try:
        if ctx.method in _METHODS:
            return await _in_a_task_of_its_own(ctx, call_next)
        with containing(f"the handler of {ctx.method}"), guarding():
            return await call_next(ctx)
    except ComponentExitedError as error:
        raise MCPError(error.code, str(error)) from None
    except MCPError as error:
        if error.code != LIMIT_EXCEEDED or isinstance(error.__cause__, LimitExceededError):
            raise
        raise as_component_error(error.code, error.message, error.data) from error


async def _in_a_task_of_its_own(ctx: RequestContext, call_next: CallNext) -> HandlerResult:
    """Run a component where its ``GeneratorExit``, or its cancel of the running task, does not meet the SDK's code."""
    results: list[HandlerResult] = []
    failures: list[Exception] = []

    async def run() -> None:
        try:
            with containing(f"the component of {ctx.method}"):
                results.append(await call_next(ctx))
        except Exception as error:  # noqa: BLE001 - raised below, without the group that anyio would put it in
            failures.append(error)

    try:
        with guarding():
            async with anyio.create_task_group() as group:
                group.start_soon(run)
        if failures:
            raise failures[0]
        if results:
            return results[0]
        raise ComponentExitedError("CancelledError")
    finally:
        failures.clear()  # their tracebacks lead back to this frame
