"""The tasks extension: which tool calls become tasks, and the ``tasks/*`` methods of all revisions.

The SDK binds a method once for all revisions. The request's revision answers the methods that several of them have.
"""

from __future__ import annotations

from collections.abc import Sequence

from mcp.server.context import CallNext, HandlerResult
from mcp.server.extension import Extension, MethodBinding
from mcp_types import CallToolRequestParams

from mcp_celery.components.declarations import DeclaredComponent
from mcp_celery.context import get_task_context
from mcp_celery.engine import JSONObject, Submission
from mcp_celery.protocol.additions import added_methods
from mcp_celery.protocol.caller import as_rpc_errors, caller_of_request, once, snapshot_of
from mcp_celery.protocol.host import TaskHost
from mcp_celery.protocol.plain_clients.foreground import continued_task, go_on, run_on_worker
from mcp_celery.protocol.requirements import require_foreground
from mcp_celery.protocol.revision import RequestContext
from mcp_celery.protocol.revisions import TASK_VERSIONS, revision_of, task_revision_of
from mcp_celery.protocol.shared_wire import EXTENSION, TaskIdParams
from mcp_celery.protocol.stored_results import splice_of


class TasksExtension(Extension):
    """``io.modelcontextprotocol/tasks`` (SEP-2663) for the SDK's ``MCPServer(extensions=[…])``.

    Args:
        host: The server it speaks for.
    """

    identifier = EXTENSION

    def __init__(self, host: TaskHost) -> None:
        self._host = host
        self._added = added_methods(host)

    def methods(self) -> Sequence[MethodBinding]:
        """The request methods that the extension adds."""
        return [
            MethodBinding("tasks/get", TaskIdParams, self._get, TASK_VERSIONS),
            MethodBinding("tasks/cancel", TaskIdParams, self._cancel, TASK_VERSIONS),
            *self._added,
        ]

    async def intercept_tool_call(
        self, params: CallToolRequestParams, ctx: RequestContext, call_next: CallNext
    ) -> HandlerResult:
        """Turn a ``tools/call`` into a task, as :meth:`serve_call`.

        Raises:
            MCPError: As :meth:`serve_call`.
        """
        found = await self._host.components.find("tool", params.name, ctx.meta)
        return await self.serve_call(found, params, ctx, call_next)

    async def serve_call(
        self, found: DeclaredComponent, params: CallToolRequestParams, ctx: RequestContext, call_next: CallNext
    ) -> HandlerResult:
        """Turn a ``tools/call`` into a task, where tool and client both may; the server decides, not the client.
        Where only the tool may, it runs where its ``foreground`` says.

        Args:
            found: The tool.
            params: The call.
            ctx: Its request.
            call_next: Runs the tool in the foreground.

        Raises:
            MCPError: -32021 for a tool that runs only as a task when this request does not declare the extension
                (-32601 on revisions that have no extensions); -32603 when the task cannot be created, -32005 when a
                limit is reached, also for a tool that may run in the foreground; -32602 for an idempotency key that
                cannot be used, -32601 for a call in the foreground that is to run only as a task.
        """
        config = found.config
        if get_task_context() is not None:
            return await call_next(ctx)
        if not config.supports_tasks():
            require_foreground(ctx, params.name)
            return await call_next(ctx)
        if (task_id := continued_task(params.request_state)) is not None:
            require_foreground(ctx, params.name)
            return await go_on(self._host, ctx, config, task_id, _answers(params).get("inputResponses", {}))
        revision = revision_of(ctx)
        as_task = revision.follows_tasks(ctx)
        if config.mode == "required" and not as_task and self._host.polling_of(config) is None:
            revision.refuse_call(ctx, params.name)
        if await self._stays_here(params, found, as_task=as_task):
            require_foreground(ctx, params.name)
            return await call_next(ctx)
        submission = self._submission(ctx, params, found)
        if not as_task:
            require_foreground(ctx, params.name)
            return await run_on_worker(self._host, ctx, submission)
        engine = self._host.engine()
        with as_rpc_errors(), engine.pending.place_for(submission.caller):
            return task_revision_of(ctx).encode_created(await engine.submit(once(ctx, submission)))

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
            fingerprint=found.fingerprint,
        )

    async def _get(self, ctx: RequestContext, params: TaskIdParams) -> HandlerResult:
        revision = task_revision_of(ctx)
        revision.admit(ctx, params.task_id)
        engine, caller, splice = self._host.engine(), caller_of_request(ctx), splice_of(ctx.request)
        with as_rpc_errors():
            return await engine.poll(
                caller,
                params.task_id,
                revision.version,
                lambda: revision.get_task(engine, caller, params.task_id, splice),
            )

    async def _cancel(self, ctx: RequestContext, params: TaskIdParams) -> HandlerResult:
        revision = task_revision_of(ctx)
        revision.admit(ctx, params.task_id)
        engine, caller = self._host.engine(), caller_of_request(ctx)
        with as_rpc_errors(), engine.pending.place_for(caller):
            return await revision.cancel_task(engine, caller, params.task_id)


def _answers(params: CallToolRequestParams) -> JSONObject:
    """The answers to what was asked in the foreground, and the state of the tool then, unsealed by the SDK."""
    return params.model_dump(
        by_alias=True, mode="json", exclude_none=True, include={"input_responses", "request_state"}
    )
