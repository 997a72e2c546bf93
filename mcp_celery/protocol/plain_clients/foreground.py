"""A request that its client makes in the foreground, run on a worker: the server waits for the job in its place.

The job is a task that no client sees. It ends with the request: a client that goes cancels it, and what is kept of
it goes soon after the answer. Where a request is answered with the questions of its job, its client sends the request
again with its answers and with a state that names the task.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Final

import anyio
from mcp.server.context import HandlerResult
from mcp.shared.exceptions import MCPError
from mcp_types import INTERNAL_ERROR, CallToolResult

from mcp_celery.config import TaskConfig
from mcp_celery.engine import RETIRED_MS, Caller, JSONObject, Submission, TaskEngine, TaskRecord
from mcp_celery.errors import McpCeleryError, TaskNotFoundError
from mcp_celery.logs import shown_task_id
from mcp_celery.protocol.caller import as_rpc_errors, caller_of_request
from mcp_celery.protocol.host import Polling, TaskHost
from mcp_celery.protocol.plain_clients.polling import first_answer
from mcp_celery.protocol.plain_clients.waiting import attend
from mcp_celery.protocol.presence import require_there
from mcp_celery.protocol.question_delivery import give_back, until_taken
from mcp_celery.protocol.revision import RequestContext
from mcp_celery.protocol.revisions import revision_of
from mcp_celery.protocol.shared_wire import UNLIMITED_MS, require_result

logger = logging.getLogger(__name__)

_STATE: Final = "mcp-celery/foreground:"
"""What the ``requestState`` begins with that names a task. The SDK seals it, for this caller and this very request."""
_GIVEN_UP: Final = (
    "The job was given up: its questions were not answered in time, or it outlived the longest time to live of a task"
)


async def run_on_worker(host: TaskHost, ctx: RequestContext, submission: Submission) -> HandlerResult:
    """Run a request as a job, and wait for it as the client does. A client that goes cancels the job.

    Args:
        host: The server it speaks for.
        ctx: The request.
        submission: The same request, as a task that no client sees.

    Returns:
        The result that the request would have had in the server's own process, or questions to its client. Where the
        server has polling tools, and it takes longer than they say, which task it goes on as.

    Raises:
        MCPError: The error that the request ended in; -32800 when its job was revoked; -32603 when it could not be
            published.
    """
    polling = host.polling_of(submission.config)
    if polling is None:
        submission = replace(submission, ttl_ms=_ttl_ms(polling), listed=False)
    with as_rpc_errors():
        engine = host.engine()
        with engine.pending.place_for(submission.caller):
            record = await _submitted(engine, submission)
        caller = Caller(record.scope, record.issuer)
        if polling is None or polling.after > 0:
            return await _answer(host, ctx, submission.config, caller, record.task_id)
        async with _cancelled_without_answer(engine, caller, record.task_id):
            await require_there(host, ctx)
        return await _goes_on(host, polling, record)


def continued_task(request_state: str | None) -> str | None:
    """The task that a request goes on waiting for, None for a request that begins.

    Args:
        request_state: The request's, unsealed.
    """
    return request_state.removeprefix(_STATE) if request_state and request_state.startswith(_STATE) else None


async def go_on(
    host: TaskHost, ctx: RequestContext, config: TaskConfig, task_id: str, responses: Mapping[str, JSONObject]
) -> HandlerResult:
    """Give a job the answers that its questions were sent back with, and wait on.

    Args:
        host: The server it speaks for.
        ctx: The request, sent again.
        config: What its tool declares.
        task_id: From :func:`continued_task`.
        responses: The answers, by the questions' keys.

    Returns:
        As :func:`run_on_worker`.

    Raises:
        MCPError: As :func:`run_on_worker`.
    """
    caller = caller_of_request(ctx)
    # Not the caller of look-ups: a caller whose look-ups are limited may still make calls.
    caller = Caller(caller.scope, caller.issuer)
    with as_rpc_errors():
        return await _answer(host, ctx, config, caller, task_id, responses)


async def _submitted(engine: TaskEngine, submission: Submission) -> TaskRecord:
    """Submit, whether or not the client goes meanwhile: half-way it could leave a job without an owner."""
    with anyio.CancelScope(shield=True):  # the timeouts of store and broker bound it
        return await engine.submit(submission)
    raise RuntimeError("unreachable: a shielded scope of one's own is not cancelled")


@asynccontextmanager
async def _cancelled_without_answer(engine: TaskEngine, caller: Caller, task_id: str) -> AsyncGenerator[None]:
    """Cancel a job whose client goes, or gets an error, before it has its answer."""
    try:
        yield
    except TaskNotFoundError:
        raise
    except BaseException:
        with anyio.CancelScope(shield=True):
            await _cancel(engine, caller, task_id)
        raise


async def _answer(
    host: TaskHost,
    ctx: RequestContext,
    config: TaskConfig,
    caller: Caller,
    task_id: str,
    responses: Mapping[str, JSONObject] | None = None,
) -> HandlerResult:
    """Wait for a job's end or its questions.

    Args:
        host: The server it speaks for.
        ctx: The request.
        config: What its tool declares.
        caller: Whose task the job is.
        task_id: The task.
        responses: What the client came back with, None for a request that begins.
    """
    engine, polling = host.engine(), host.polling_of(config)
    seconds = None if polling is None else polling.after
    try:
        async with _cancelled_without_answer(engine, caller, task_id):
            if responses is not None:
                await engine.keep(caller, task_id, ttl_ms=_ttl_ms(polling), config=config)
                await give_back(engine, caller, task_id, responses)
            view = await attend(host, ctx, caller, task_id, seconds=seconds, is_only_way=True)
            if questions := revision_of(ctx).questions_to_return(view):
                # Its client may never come back, and no other client knows the task.
                await _retire(engine, caller, task_id, after_ms=round(config.input_timeout * 1000))
    except TaskNotFoundError:
        raise MCPError(INTERNAL_ERROR, _GIVEN_UP) from None
    record = view.record
    if record.is_terminal:
        await _retire(engine, caller, task_id)
        require_result(record, "job")
        return view.result or {}
    if questions or polling is None:
        return {"resultType": "input_required", "inputRequests": questions, "requestState": _STATE + task_id}
    return await _goes_on(host, polling, record)


def _ttl_ms(polling: Polling | None) -> int | None:
    """The time to live asked for a job's task. Without polling, the client's own timeout bounds its wait."""
    return UNLIMITED_MS if polling is None else None


async def _goes_on(host: TaskHost, polling: Polling, record: TaskRecord) -> CallToolResult:
    return first_answer(record, polling, await host.immediate_response(record.component))


async def _cancel(engine: TaskEngine, caller: Caller, task_id: str) -> None:
    shown = shown_task_id(caller.scope, task_id)
    try:
        await until_taken(lambda: engine.cancel(caller, task_id))
    except TaskNotFoundError:
        return
    except TimeoutError:
        logger.warning("could not cancel task %s, whose caller has left: the store does not answer", shown)
        return
    except McpCeleryError as error:
        logger.warning("could not cancel task %s, whose caller has left: %s", shown, error)
        return
    await _retire(engine, caller, task_id)


async def _retire(engine: TaskEngine, caller: Caller, task_id: str, *, after_ms: int = RETIRED_MS) -> None:
    try:
        await engine.retire(caller, task_id, after_ms=after_ms)
    except McpCeleryError as error:
        shown = shown_task_id(caller.scope, task_id)
        logger.info("could not delete task %s before its time to live is over: %s", shown, error)
