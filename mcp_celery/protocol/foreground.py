"""A request that its client makes in the foreground, run on a worker: the server waits for the job in its place."""

from __future__ import annotations

import logging

import anyio
from mcp.shared.exceptions import MCPError
from mcp_types import INTERNAL_ERROR

from mcp_celery.engine import Caller, JSONObject, RpcError, Submission, TaskEngine, TaskRecord, TaskView
from mcp_celery.errors import McpCeleryError
from mcp_celery.protocol.caller import RequestContext, as_rpc_errors
from mcp_celery.protocol.core_tasks import REQUEST_CANCELLED
from mcp_celery.protocol.host import TaskHost

logger = logging.getLogger(__name__)


async def run_on_worker(
    host: TaskHost,
    ctx: RequestContext,  # noqa: ARG001 - whom progress and questions will go to
    submission: Submission,
) -> JSONObject:
    """Run a request as a job, and wait for it as the client does. A client that goes cancels the job.

    Args:
        host: The server it speaks for.
        ctx: The request.
        submission: The same request, as a task that nobody is told of.

    Returns:
        The result that the request would have had in the server's own process.

    Raises:
        MCPError: The error that the request ended in; -32800 when its job was revoked; -32603 when it could not be
            published.
    """
    engine = host.engine()
    with as_rpc_errors():
        record = await _submitted(engine, submission)
        caller = Caller(record.scope, record.issuer)
        has_ended = False
        try:
            view = await engine.wait(caller, record.task_id)
            has_ended = True
        finally:
            if not has_ended:
                with anyio.CancelScope(shield=True):
                    await _cancel(engine, caller, record.task_id)
    return _result(view)


async def _submitted(engine: TaskEngine, submission: Submission) -> TaskRecord:
    """Submit, whether or not the client goes meanwhile: half-way it could leave a job that nobody knows."""
    with anyio.CancelScope(shield=True):  # the timeouts of store and broker bound it
        return await engine.submit(submission)
    raise RuntimeError("unreachable: a shielded scope of one's own is not cancelled")


def _result(view: TaskView) -> JSONObject:
    record = view.record
    if record.status == "cancelled":
        raise MCPError(REQUEST_CANCELLED, record.status_message or "The job was cancelled")
    if record.status == "failed":
        error = record.error or RpcError(INTERNAL_ERROR, record.status_message or "The job failed")
        raise MCPError(error.code, error.message, error.data)
    return view.result or {}


async def _cancel(engine: TaskEngine, caller: Caller, task_id: str) -> None:
    try:
        await engine.cancel(caller, task_id)
    except McpCeleryError as error:
        logger.warning("the job of task %s goes on, though its caller is gone: %s", task_id, error)
