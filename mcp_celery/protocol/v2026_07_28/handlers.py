"""The request method that only revision 2026-07-28 has: ``tasks/update``."""

from __future__ import annotations

from collections.abc import Sequence

from mcp.server.context import HandlerResult
from mcp.server.extension import MethodBinding

from mcp_celery.protocol.caller import as_rpc_errors, caller_of_request
from mcp_celery.protocol.host import TaskHost
from mcp_celery.protocol.revision import RequestContext
from mcp_celery.protocol.revisions import task_revision_of
from mcp_celery.protocol.v2026_07_28.wire import VERSIONS, UpdateParams


class TaskUpdates:
    """Takes answers to questions.

    Args:
        host: The server it speaks for.
    """

    def __init__(self, host: TaskHost) -> None:
        self._host = host

    def methods(self) -> Sequence[MethodBinding]:
        """The method, for this revision alone."""
        return [MethodBinding("tasks/update", UpdateParams, self.update, VERSIONS)]

    async def update(self, ctx: RequestContext, params: UpdateParams) -> HandlerResult:
        """Acknowledge; keys that no open question has are ignored.

        Raises:
            MCPError: As ``Revision.admit``; the code of the error that the answers were refused with.
        """
        task_revision_of(ctx).admit(ctx, params.task_id)
        engine, caller = self._host.engine(), caller_of_request(ctx)
        with as_rpc_errors(), engine.pending.place_for(caller):
            await engine.respond(caller, params.task_id, params.input_responses)
        return {}
