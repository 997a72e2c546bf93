"""The tasks extension: which requests become tasks, and the ``tasks/*`` methods, those of 2025-11-25 included.

A server binds a method once, so methods that both eras have are told apart here, by the request's revision.
"""

from __future__ import annotations

from collections.abc import Sequence

from mcp.server.context import CallNext, HandlerResult
from mcp.server.extension import Extension, MethodBinding
from mcp.server.mcpserver.server import require_client_extension
from mcp.shared.exceptions import MCPError
from mcp_types import METHOD_NOT_FOUND, CallToolRequestParams

from mcp_celery.context import get_task_context
from mcp_celery.declared import DeclaredComponent
from mcp_celery.engine import JSONObject, Submission
from mcp_celery.protocol.both_eras import TaskIdParams
from mcp_celery.protocol.caller import (
    RequestContext,
    as_rpc_errors,
    caller_of_request,
    follows_tasks,
    require_matching_name,
    snapshot_of,
)
from mcp_celery.protocol.core_tasks import CoreTasks
from mcp_celery.protocol.foreground import continued_task, go_on, run_on_worker
from mcp_celery.protocol.host import TaskHost
from mcp_celery.protocol.v2025_11_25 import CREATE, REVISION, CreateParams, ListParams
from mcp_celery.protocol.v2026_07_28 import (
    EXTENSION,
    REVISIONS,
    UpdateParams,
    encode_created,
    encode_detailed,
)


class TasksExtension(Extension):
    """``io.modelcontextprotocol/tasks`` (SEP-2663) for the SDK's ``MCPServer(extensions=[…])``.

    Args:
        host: The server it speaks for.
    """

    identifier = EXTENSION

    def __init__(self, host: TaskHost) -> None:
        self._host = host
        self._core = CoreTasks(host)

    def methods(self) -> Sequence[MethodBinding]:
        """The request methods that the extension adds."""
        core = frozenset({REVISION})
        return [
            MethodBinding("tasks/get", TaskIdParams, self._get, REVISIONS | core),
            MethodBinding("tasks/cancel", TaskIdParams, self._cancel, REVISIONS | core),
            MethodBinding("tasks/update", UpdateParams, self._update, REVISIONS),
            MethodBinding("tasks/result", TaskIdParams, self._core.result, core),
            MethodBinding("tasks/list", ListParams, self._core.list, core),
            MethodBinding(CREATE, CreateParams, self._core.create, core),
        ]

    async def intercept_tool_call(
        self, params: CallToolRequestParams, ctx: RequestContext, call_next: CallNext
    ) -> HandlerResult:
        """Turn a ``tools/call`` into a task, where tool and client both may; the server decides, not the client.
        Where only the tool may, it runs where its ``foreground`` says.

        Raises:
            MCPError: -32021 for a tool that runs only as a task when this request does not declare the extension
                (-32601 on revisions that have no extensions); -32603 when the task cannot be created, -32005 when a
                limit is reached, also for a tool that may run in the foreground.
        """
        found = await self._host.components.find("tool", params.name, ctx.meta)
        config = found.config
        if get_task_context() is not None or not config.supports_tasks():
            return await call_next(ctx)
        if (task_id := continued_task(params.request_state)) is not None:
            return await go_on(self._host, ctx, config, task_id, _answers(params).get("inputResponses", {}))
        as_task = follows_tasks(ctx)
        if config.mode == "required" and not as_task and self._host.polling_of(config) is None:
            self._refuse(ctx, params.name)
        if await self._stays_here(params, found, as_task=as_task):
            return await call_next(ctx)
        submission = self._submission(ctx, params, found)
        if not as_task:
            return await run_on_worker(self._host, ctx, submission)
        with as_rpc_errors():
            return encode_created(await self._host.engine().submit(submission))

    @staticmethod
    def _refuse(ctx: RequestContext, name: str) -> None:
        """Refuse a call of a tool that runs only as a task, where its client can follow none."""
        if ctx.protocol_version not in REVISIONS:
            raise MCPError(METHOD_NOT_FOUND, f"Tool {name!r} runs only as a task")
        require_client_extension(ctx, EXTENSION)

    async def _stays_here(self, params: CallToolRequestParams, found: DeclaredComponent, *, as_task: bool) -> bool:
        """Whether a call is served by the server itself."""
        config = found.config
        runs_here = (config.foreground or self._host.foreground) == "server"
        if not as_task and runs_here and self._host.polling_of(config) is None:
            return True
        if await found.refusal(params.arguments or {}):
            return True  # invalid arguments are refused in the SDK's own words, and before the body
        return as_task and not params.input_responses and found.asks_first

    def _submission(self, ctx: RequestContext, params: CallToolRequestParams, found: DeclaredComponent) -> Submission:
        arguments = found.declared_arguments(params.arguments or {})
        request = {**_answers(params), "name": params.name, "arguments": arguments}
        return Submission(
            caller=caller_of_request(ctx),
            task_type="tool",
            component=params.name,
            config=found.config,
            snapshot=snapshot_of(ctx, request, self._host.header_names),
        )

    async def _get(self, ctx: RequestContext, params: TaskIdParams) -> HandlerResult:
        if ctx.protocol_version == REVISION:
            return await self._core.get(ctx, params)
        self._admit(ctx, params)
        with as_rpc_errors():
            return encode_detailed(await self._host.engine().get(caller_of_request(ctx), params.task_id))

    async def _cancel(self, ctx: RequestContext, params: TaskIdParams) -> HandlerResult:
        """Acknowledges; a task that has ended stays as it is."""
        if ctx.protocol_version == REVISION:
            return await self._core.cancel(ctx, params)
        self._admit(ctx, params)
        with as_rpc_errors():
            await self._host.engine().cancel(caller_of_request(ctx), params.task_id)
        return {}

    async def _update(self, ctx: RequestContext, params: UpdateParams) -> HandlerResult:
        """Acknowledges; keys that no open question has are ignored."""
        self._admit(ctx, params)
        with as_rpc_errors():
            await self._host.engine().respond(caller_of_request(ctx), params.task_id, params.input_responses)
        return {}

    @staticmethod
    def _admit(ctx: RequestContext, params: TaskIdParams) -> None:
        """Who does not declare the extension learns nothing, not even whether the task exists."""
        require_client_extension(ctx, EXTENSION)
        require_matching_name(ctx, params.task_id)


def _answers(params: CallToolRequestParams) -> JSONObject:
    """The answers to what was asked in the foreground, and the state of the tool then, unsealed by the SDK."""
    return params.model_dump(
        by_alias=True, mode="json", exclude_none=True, include={"input_responses", "request_state"}
    )
