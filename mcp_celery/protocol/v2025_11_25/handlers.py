"""The request methods that only revision 2025-11-25 has."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Final

from mcp.server.context import HandlerResult
from mcp.server.extension import MethodBinding
from mcp.shared.exceptions import MCPError
from mcp.shared.jsonrpc_dispatcher import progress_token_from_params
from mcp_types import METHOD_NOT_FOUND

from mcp_celery.config import TaskMeta
from mcp_celery.engine import TaskView
from mcp_celery.protocol.caller import as_rpc_errors, caller_of_request, once, session_of, snapshot_of
from mcp_celery.protocol.host import TaskHost
from mcp_celery.protocol.presence import while_there
from mcp_celery.protocol.question_delivery import OnRequest, Relay
from mcp_celery.protocol.revision import RequestContext
from mcp_celery.protocol.shared_wire import TaskIdParams, require_result
from mcp_celery.protocol.v2025_11_25.push import SessionPush
from mcp_celery.protocol.v2025_11_25.wire import (
    CREATE,
    VERSION,
    Augmented,
    CreateParams,
    ListParams,
    encode_created,
    encode_page,
    encode_result,
    related_to,
)

logger = logging.getLogger(__name__)

_LOOK_SECONDS: Final = 5.0
"""How often it is looked whether the client of a ``tasks/result`` is still there. Its task goes on without it."""


class CoreTasks:
    """Creates, waits for and lists tasks.

    Args:
        host: The server it speaks for.
    """

    def __init__(self, host: TaskHost) -> None:
        self._host = host
        self._push = SessionPush(host.engine, host.turns)
        self._said_stateless = False

    def methods(self) -> Sequence[MethodBinding]:
        """The methods, for this revision alone."""
        here = frozenset({VERSION})
        return [
            MethodBinding("tasks/result", TaskIdParams, self.result, here),
            MethodBinding("tasks/list", ListParams, self.list, here),
            MethodBinding(CREATE, CreateParams, self.create, here),
        ]

    async def create(self, ctx: RequestContext, params: CreateParams) -> HandlerResult:
        """Make a task of a request that carries ``task``, and notify its session of it from now on.

        Raises:
            MCPError: -32601 for a component that does not run as a task; -32602 for one that does not exist, or
                arguments that it refuses; -32603 when the task cannot be created, -32005 when a limit is reached.
        """
        asked = Augmented.model_validate(params.request).task
        # Nothing else: answers and state of other revisions' rounds would be taken for the tool's own.
        request = {name: params.request[name] for name in ("name", "uri", "arguments") if name in params.request}
        if session_of(ctx) is None:
            self._say_stateless()
        engine, caller = self._host.engine(), caller_of_request(ctx)
        with as_rpc_errors(), engine.pending.place_for(caller):
            submission = await self._host.submission(
                params.task_type,
                snapshot_of(ctx, request, self._host.header_names),
                caller,
                TaskMeta(ttl=asked.asked_ttl_ms),
            )
            record = await engine.submit(once(ctx, submission))
        self._push.follow(ctx, record, progress_token_from_params(params.request))
        immediate = await self._host.immediate_response(record.component) if record.task_type == "tool" else None
        return encode_created(record, immediate)

    def _say_stateless(self) -> None:
        if not self._said_stateless:
            self._said_stateless = True
            logger.warning(
                "stateless HTTP: clients of revision 2025-11-25 get no push and no questions, and cannot list their "
                "tasks; they can poll, and wait with tasks/result"
            )

    async def result(self, ctx: RequestContext, params: TaskIdParams) -> HandlerResult:
        """``tasks/result``: waits for the task's end, and asks its client meanwhile what the task wants to know.

        A client that stops waiting changes nothing, and is not waited for any longer.

        Raises:
            MCPError: The error that the request ended in; -32800 for a cancelled task, and, which is never sent, for a
                client that has left; -32602 for a task that is not there.
        """
        engine, caller = self._host.engine(), caller_of_request(ctx)

        channel, meta = OnRequest(ctx), related_to(params.task_id)
        relay = Relay(engine, caller, params.task_id, turns=self._host.turns, channel=channel, meta=meta)
        with as_rpc_errors(), engine.pending.place_for(caller) as place:

            def show(view: TaskView) -> None:
                place.leave()  # from now on it waits for the task
                relay.show(view)

            async with while_there(self._host, ctx, look_seconds=_LOOK_SECONDS), relay:
                view = await engine.wait(caller, params.task_id, show)
        require_result(view.record, "task")
        return encode_result(view)

    async def list(self, ctx: RequestContext, params: ListParams) -> HandlerResult:
        """``tasks/list``.

        Raises:
            MCPError: -32601 on stateless HTTP, where it is not declared; -32602 for a cursor that no server gave.
        """
        caller = caller_of_request(ctx)
        if caller.session is None:
            raise MCPError(METHOD_NOT_FOUND, "Method not found", "tasks/list")
        engine = self._host.engine()
        with as_rpc_errors(), engine.pending.place_for(caller):
            return encode_page(await engine.list(caller, params.cursor))
