"""The tasks extension: which requests become tasks, and the ``tasks/*`` methods."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from mcp.server.context import CallNext, HandlerResult
from mcp.server.extension import Extension, MethodBinding
from mcp.server.mcpserver.server import require_client_extension
from mcp.shared.exceptions import MCPError
from mcp_types import METHOD_NOT_FOUND, CallToolRequestParams

from mcp_celery.config import TaskConfig
from mcp_celery.context import get_task_context
from mcp_celery.engine import JSONObject, Submission, TaskEngine
from mcp_celery.protocol.caller import (
    RequestContext,
    as_rpc_errors,
    caller_of_request,
    declares,
    require_matching_name,
    snapshot_of,
)
from mcp_celery.protocol.v2026_07_28 import (
    EXTENSION,
    REVISIONS,
    TaskIdParams,
    UpdateParams,
    encode_created,
    encode_detailed,
)


@dataclass(frozen=True, slots=True)
class TaskHost:
    """What the protocol needs of the server it speaks for.

    Attributes:
        engine: Gives the running event loop's engine.
        tool_config: What a tool declares; ``forbidden`` for one that declares nothing.
        accepts_arguments: Whether a tool's arguments are valid, checked before any state exists.
        header_names: Lower-case names of the request headers that a job may see.
        max_listen_tasks: How many task ids one subscription may name.
    """

    engine: Callable[[], TaskEngine]
    tool_config: Callable[[str], TaskConfig]
    accepts_arguments: Callable[[str, JSONObject], bool]
    header_names: frozenset[str]
    max_listen_tasks: int


class TasksExtension(Extension):
    """``io.modelcontextprotocol/tasks`` (SEP-2663) for the SDK's ``MCPServer(extensions=[…])``.

    Args:
        host: The server it speaks for.
    """

    identifier = EXTENSION

    def __init__(self, host: TaskHost) -> None:
        self._host = host

    def methods(self) -> Sequence[MethodBinding]:
        """The request methods that the extension adds."""
        return [
            MethodBinding("tasks/get", TaskIdParams, self._get, REVISIONS),
            MethodBinding("tasks/cancel", TaskIdParams, self._cancel, REVISIONS),
            MethodBinding("tasks/update", UpdateParams, self._update, REVISIONS),
        ]

    async def intercept_tool_call(
        self, params: CallToolRequestParams, ctx: RequestContext, call_next: CallNext
    ) -> HandlerResult:
        """Turn a ``tools/call`` into a task, where tool and client both may; the server decides, not the client.

        Raises:
            MCPError: -32021 for a tool that runs only as a task when this request does not declare the extension
                (-32601 on revisions that have no extensions); -32603 when the task cannot be created.
        """
        config = self._host.tool_config(params.name)
        if get_task_context() is not None or not config.supports_tasks():
            return await call_next(ctx)
        if ctx.protocol_version not in REVISIONS:
            if config.mode == "required":
                raise MCPError(METHOD_NOT_FOUND, f"Tool {params.name!r} runs only as a task")
            return await call_next(ctx)
        if config.mode == "required":
            require_client_extension(ctx, EXTENSION)
        arguments = params.arguments or {}
        if not declares(ctx, EXTENSION) or not self._host.accepts_arguments(params.name, arguments):
            # Invalid arguments are refused by the foreground call, in its own words and before the body.
            return await call_next(ctx)
        submission = Submission(
            caller=caller_of_request(),
            task_type="tool",
            component=params.name,
            params={"name": params.name, "arguments": arguments},
            config=config,
            snapshot=snapshot_of(ctx, self._host.header_names),
        )
        with as_rpc_errors():
            return encode_created(await self._host.engine().submit(submission))

    async def _get(self, ctx: RequestContext, params: TaskIdParams) -> HandlerResult:
        self._admit(ctx, params)
        with as_rpc_errors():
            return encode_detailed(await self._host.engine().get(caller_of_request(), params.task_id))

    async def _cancel(self, ctx: RequestContext, params: TaskIdParams) -> HandlerResult:
        """Acknowledges; a task that has ended stays as it is."""
        self._admit(ctx, params)
        with as_rpc_errors():
            await self._host.engine().cancel(caller_of_request(), params.task_id)
        return {}

    async def _update(self, ctx: RequestContext, params: UpdateParams) -> HandlerResult:
        """Acknowledges; keys that no question has are ignored, and so far none has one."""
        self._admit(ctx, params)
        with as_rpc_errors():
            await self._host.engine().find(caller_of_request(), params.task_id)
        return {}

    @staticmethod
    def _admit(ctx: RequestContext, params: TaskIdParams) -> None:
        """Who does not declare the extension learns nothing, not even whether the task exists."""
        require_client_extension(ctx, EXTENSION)
        require_matching_name(ctx, params.task_id)
