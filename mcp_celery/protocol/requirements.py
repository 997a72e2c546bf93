"""What a component requires of a request, whatever its revision: OAuth scopes, and that it asks for a task."""

from __future__ import annotations

from collections.abc import Sequence

from mcp.server.context import CallNext, HandlerResult
from mcp.shared.exceptions import MCPError
from mcp_types import METHOD_NOT_FOUND

from mcp_celery.context import get_task_context
from mcp_celery.errors import MissingScopesError
from mcp_celery.keys import ASKED_WITH, TaskType
from mcp_celery.protocol.caller import as_rpc_errors, granted_scopes
from mcp_celery.protocol.host import TaskHost, component_of
from mcp_celery.protocol.revision import RequestContext
from mcp_celery.protocol.revisions import revision_of
from mcp_celery.protocol.shared_wire import ONLY_AS_TASK


def require_foreground(ctx: RequestContext, tool: str) -> None:
    """Refuse to run a call in the foreground whose client sends it again, and accepts nothing but a task.

    Args:
        ctx: The request.
        tool: The tool that it calls.

    Raises:
        MCPError: -32601.
    """
    if dict(ctx.meta or {}).get(ONLY_AS_TASK) is True:
        text = f'Tool {tool!r} does not run as a task here, and _meta["{ONLY_AS_TASK}"] accepts nothing else'
        raise MCPError(METHOD_NOT_FOUND, text)


def require_scopes(task_type: TaskType, component: str, scopes: Sequence[str]) -> None:
    """Refuse to use a component for a caller whose token lacks scopes. A job uses it for the one who created its task.

    Args:
        task_type: The component's kind.
        component: How the caller names it.
        scopes: OAuth scopes that it requires.

    Raises:
        MCPError: -32600, naming the scopes.
    """
    if get_task_context() is None and not granted_scopes().issuperset(scopes):
        with as_rpc_errors():
            raise MissingScopesError(f"{task_type} {component!r}"[:200], scopes)


class Requirements:
    """Middleware for ``MCPServer(middleware=[…])``.

    Args:
        host: The server it speaks for.
    """

    def __init__(self, host: TaskHost) -> None:
        self._host = host

    async def __call__(self, ctx: RequestContext, call_next: CallNext) -> HandlerResult:
        """Let requests pass that have what their component requires.

        Raises:
            MCPError: -32600, naming the scopes that the caller's token lacks; -32601 for a prompt or resource that runs
                only as a task, where the request asks for none. Nothing was created.
        """
        task_type = ASKED_WITH.get(ctx.method)
        if task_type is not None:
            await self._require(ctx, task_type)
        return await call_next(ctx)

    async def _require(self, ctx: RequestContext, task_type: TaskType) -> None:
        try:
            component = component_of(task_type, dict(ctx.params or {}))
        except KeyError:
            return  # the SDK refuses it
        config = (await self._host.components.find(task_type, component, ctx.meta)).config
        require_scopes(task_type, component, config.required_scopes)
        # The extension decides on calls of tools, whose clients need not ask for a task.
        if task_type != "tool" and config.mode == "required" and not revision_of(ctx).asks_for_task(ctx):
            raise MCPError(METHOD_NOT_FOUND, f"{task_type.capitalize()} {component!r} runs only as a task", ctx.method)
