"""OAuth scopes that a component needs of its caller's token, for a request of any revision, as a task or not."""

from __future__ import annotations

from mcp.server.context import CallNext, HandlerResult

from mcp_celery.context import get_task_context
from mcp_celery.errors import MissingScopesError
from mcp_celery.keys import ASKED_WITH, TaskType
from mcp_celery.protocol.caller import RequestContext, as_rpc_errors, granted_scopes
from mcp_celery.protocol.host import TaskHost, component_of


class RequiredScopes:
    """Middleware for ``MCPServer(middleware=[…])``.

    Args:
        host: The server it speaks for.
    """

    def __init__(self, host: TaskHost) -> None:
        self._host = host

    async def __call__(self, ctx: RequestContext, call_next: CallNext) -> HandlerResult:
        """Let requests pass whose token has what their component needs.

        Raises:
            MCPError: -32600, naming the scopes; nothing was created.
        """
        task_type = ASKED_WITH.get(ctx.method)
        if task_type is not None and get_task_context() is None:
            with as_rpc_errors():
                await self._require(ctx, task_type)
        return await call_next(ctx)

    async def _require(self, ctx: RequestContext, task_type: TaskType) -> None:
        try:
            component = component_of(task_type, dict(ctx.params or {}))
        except KeyError:
            return  # the SDK refuses it
        required = (await self._host.components.find(task_type, component, ctx.meta)).config.required_scopes
        if not granted_scopes().issuperset(required):
            raise MissingScopesError(f"{task_type} {component!r}"[:200], required)
