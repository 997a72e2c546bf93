"""What a server answers to task requests of revision 2025-11-25."""

from __future__ import annotations

import logging
from collections.abc import Callable

from mcp.server.context import HandlerResult
from mcp.shared.exceptions import MCPError
from mcp.shared.jsonrpc_dispatcher import progress_token_from_params
from mcp_types import INTERNAL_ERROR, INVALID_PARAMS, METHOD_NOT_FOUND

from mcp_celery.config import TaskMeta
from mcp_celery.engine import Caller, JSONObject, RpcError, TaskEngine, TaskRecord, TaskView
from mcp_celery.protocol.both_eras import TaskIdParams
from mcp_celery.protocol.caller import RequestContext, as_rpc_errors, caller_of_request, session_of, snapshot_of
from mcp_celery.protocol.host import TaskHost
from mcp_celery.protocol.relay import OnRequest, Relay
from mcp_celery.protocol.session_push import SessionPush
from mcp_celery.protocol.v2025_11_25 import (
    Augmented,
    CreateParams,
    ListParams,
    encode_created,
    encode_page,
    encode_result,
    encode_task,
    status_of,
)

logger = logging.getLogger(__name__)

REQUEST_CANCELLED = -32800
"""What the SDK answers, on this revision's wire, to a request that was cancelled."""


async def wait_for_result(
    engine: TaskEngine, caller: Caller, task_id: str, seen: Callable[[TaskView], None] | None = None
) -> tuple[TaskRecord, JSONObject]:
    """Wait for a task's end.

    Args:
        engine: Of the running event loop.
        caller: Whose task it is.
        task_id: The task.
        seen: Called with each state on the way.

    Returns:
        The task, and what the request would have returned.

    Raises:
        MCPError: The error that the request ended in; -32800 for a cancelled task.
        McpCeleryError: As ``TaskEngine.wait``.
    """
    view = await engine.wait(caller, task_id, seen)
    require_result(view.record, "task")
    return view.record, encode_result(view)


def require_result(record: TaskRecord, what: str) -> None:
    """Answer a request as its ended task did, where that has no result.

    Args:
        record: The task.
        what: What its client knows it as, for a message where nobody gave one.

    Raises:
        MCPError: The error that the request ended in; -32800 for a cancelled task.
    """
    if record.status == "cancelled":
        raise MCPError(REQUEST_CANCELLED, record.status_message or f"The {what} was cancelled")
    if record.status == "failed":
        error = record.error or RpcError(INTERNAL_ERROR, record.status_message or f"The {what} failed")
        raise MCPError(error.code, error.message, error.data)


class CoreTasks:
    """Creates, shows, waits for, cancels and lists the tasks of 2025-11-25 clients.

    Args:
        host: The server it speaks for.
    """

    def __init__(self, host: TaskHost) -> None:
        self._host = host
        self._push = SessionPush(host.engine, host.turns)
        self._said_stateless = False

    async def create(self, ctx: RequestContext, params: CreateParams) -> HandlerResult:
        """Make a task of a request that carries ``task``, and tell its session of it from now on.

        Raises:
            MCPError: -32601 for a component that does not run as a task; -32602 for one that does not exist, or
                arguments that it refuses; -32603 when the task cannot be created, -32005 when a limit is reached.
        """
        asked = Augmented.model_validate(params.request).task
        # Nothing else: answers and state of other revisions' rounds would be taken for the tool's own.
        request = {name: params.request[name] for name in ("name", "uri", "arguments") if name in params.request}
        if session_of(ctx) is None:
            self._say_stateless()
        with as_rpc_errors():
            submission = await self._host.submission(
                params.task_type,
                snapshot_of(ctx, request, self._host.header_names),
                caller_of_request(ctx),
                TaskMeta(ttl=asked.asked_ttl_ms),
            )
            record = await self._host.engine().submit(submission)
        self._push.follow(ctx, record, progress_token_from_params(params.request))
        immediate = await self._host.immediate_response(record.component) if record.task_type == "tool" else None
        return encode_created(record, immediate)

    def _say_stateless(self) -> None:
        if not self._said_stateless:
            self._said_stateless = True
            logger.warning(
                "stateless HTTP: clients of revision 2025-11-25 are not told of their tasks, cannot list them and "
                "cannot be asked questions; they can poll, and wait with tasks/result"
            )

    async def get(self, ctx: RequestContext, params: TaskIdParams) -> HandlerResult:
        """``tasks/get``."""
        with as_rpc_errors():
            return encode_task(await self._host.engine().status(caller_of_request(ctx), params.task_id))

    async def result(self, ctx: RequestContext, params: TaskIdParams) -> HandlerResult:
        """``tasks/result``: waits for the task's end, and asks its client meanwhile what the task wants to know.

        A client that stops waiting changes nothing.

        Raises:
            MCPError: The error that the request ended in; -32800 for a cancelled task; -32602 for one that is not
                there.
        """
        engine, caller = self._host.engine(), caller_of_request(ctx)

        relay = Relay(engine, caller, params.task_id, turns=self._host.turns, channel=OnRequest(ctx))
        with as_rpc_errors():
            async with relay:
                _record, result = await wait_for_result(engine, caller, params.task_id, relay.show)
        return result

    async def cancel(self, ctx: RequestContext, params: TaskIdParams) -> HandlerResult:
        """``tasks/cancel``.

        Raises:
            MCPError: -32602 for a task that has ended or is not there.
        """
        caller = caller_of_request(ctx)
        with as_rpc_errors():
            self._require_open(await self._host.engine().status(caller, params.task_id))
            record = await self._host.engine().cancel(caller, params.task_id)
            if record.status != "cancelled":
                self._require_open(record)
            return encode_task(record)

    @staticmethod
    def _require_open(record: TaskRecord) -> None:
        if record.is_terminal:
            raise MCPError(INVALID_PARAMS, f"Cannot cancel the task: it has ended as {status_of(record)!r}")

    async def list(self, ctx: RequestContext, params: ListParams) -> HandlerResult:
        """``tasks/list``.

        Raises:
            MCPError: -32601 on stateless HTTP, where it is not declared; -32602 for a cursor that nobody gave.
        """
        caller = caller_of_request(ctx)
        if caller.session is None:
            raise MCPError(METHOD_NOT_FOUND, "Method not found", "tasks/list")
        with as_rpc_errors():
            return encode_page(await self._host.engine().list(caller, params.cursor))
