"""Waiting for a task in the place of a request's client, who is told of its progress and asked its questions."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Generator
from contextlib import contextmanager
from typing import Final

import anyio
from mcp.shared.exceptions import MCPError, NoBackChannelError

from mcp_celery.engine import Caller, JSONObject, TaskEngine, TaskRecord, TaskView
from mcp_celery.protocol.caller import RequestContext, connection_of, has_left
from mcp_celery.protocol.core_tasks import REQUEST_CANCELLED
from mcp_celery.protocol.host import TaskHost
from mcp_celery.protocol.relay import OnRequest, Relay, Turns
from mcp_celery.protocol.v2026_07_28 import REVISIONS

logger = logging.getLogger(__name__)

_LOOK_SECONDS: Final = 1.0
"""How often it is looked whether the client is still there."""


async def attend(
    ctx: RequestContext, engine: TaskEngine, caller: Caller, task_id: str, *, seconds: float | None = None
) -> TaskView:
    """Wait for a task's end on behalf of a request's client.

    Meanwhile the client gets ``notifications/progress``, where its request has a token. Up to 2025-11-25 it is asked
    what the task wants to know, on this request; later it has to be answered with the questions.

    Args:
        ctx: The request.
        engine: Of the running event loop.
        caller: Whose task it is.
        task_id: The task.
        seconds: How long to wait; 0: not at all; None: as long as it takes. The time that the client takes to answer
            a question does not count.

    Returns:
        The task as it is now: it has ended, has questions that this request is to be answered with, or goes on.

    Raises:
        TaskNotFoundError: Unknown, another caller's, or expired while waiting.
        ResultUnavailableError: Completed, but the result backend does not give the result.
        StoreUnavailableError: The store did not answer.
    """
    if seconds == 0:
        return await engine.get(caller, task_id)
    progress = _Progress(ctx)
    patience = _Patience(anyio.move_on_after(seconds))
    channel = _OnlyThisRequest(ctx, patience)
    relay = Relay(engine, caller, task_id, turns=Turns(), channel=channel, names_task=False)
    async with relay:
        with patience.scope:
            async with engine.watch(caller, [task_id]) as watch:
                async for view in watch:
                    await progress.tell(view.record)
                    if view.record.is_terminal or questions_for(ctx, view):
                        return view
                    relay.show(view)
    return await engine.get(caller, task_id)


def questions_for(ctx: RequestContext, view: TaskView) -> JSONObject:
    """The questions that a request is to be answered with; its client answers them by sending it again."""
    return dict(view.input_requests) if ctx.protocol_version in REVISIONS else {}


async def attend_while_there(
    host: TaskHost, ctx: RequestContext, caller: Caller, task_id: str, *, seconds: float | None = None
) -> TaskView:
    """As :func:`attend`, for as long as the client has not dropped its HTTP exchange for good.

    Raises:
        MCPError: -32800, which nobody reads: the client has left.
    """
    engine = host.engine()
    if connection_of(ctx).session_id is not None and host.is_resumable():
        return await attend(ctx, engine, caller, task_id, seconds=seconds)  # it may take up its stream again
    with anyio.CancelScope() as presence:
        looking = asyncio.create_task(_end_when_gone(ctx, presence), name=f"mcp-celery-presence-{task_id}")
        looking.add_done_callback(_looked)
        try:
            return await attend(ctx, engine, caller, task_id, seconds=seconds)
        finally:
            looking.cancel()
    raise MCPError(REQUEST_CANCELLED, "The client has left")


async def _end_when_gone(ctx: RequestContext, presence: anyio.CancelScope) -> None:
    while not await has_left(ctx):  # noqa: ASYNC110 - nothing tells it
        await asyncio.sleep(_LOOK_SECONDS)
    presence.cancel()


def _looked(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        logger.error("%s ended: a client that leaves is not noticed", task.get_name(), exc_info=error)


class _Patience:
    """A deadline that stands still while somebody else is waited for.

    Args:
        scope: What ends at the deadline.
    """

    def __init__(self, scope: anyio.CancelScope) -> None:
        self.scope = scope
        self._pauses = 0
        self._left = math.inf

    @contextmanager
    def paused(self) -> Generator[None]:
        """Let no time pass; several may at once."""
        if not self._pauses:
            self._left = self.scope.deadline - anyio.current_time()
            self.scope.deadline = math.inf
        self._pauses += 1
        try:
            yield
        finally:
            self._pauses -= 1
            if not self._pauses:
                self.scope.deadline = anyio.current_time() + self._left


class _OnlyThisRequest(OnRequest):
    """The client of a task of which nobody else knows: what cannot be asked here cannot be asked at all.

    Args:
        ctx: The request.
        patience: Of who waits for the task.
    """

    def __init__(self, ctx: RequestContext, patience: _Patience) -> None:
        super().__init__(ctx)
        self._patience = patience

    async def send(self, method: str, params: JSONObject) -> JSONObject:
        """Ask it. Where it cannot be asked (HTTP without streams) the tool gets the error that it would get here."""
        try:
            with self._patience.paused():
                return await super().send(method, params)
        except NoBackChannelError as error:
            raise MCPError(error.code, error.message) from error


class _Progress:
    """Tells a request's client how far its task is; never backwards.

    Args:
        ctx: The request. Without a progress token nothing is sent.
    """

    def __init__(self, ctx: RequestContext) -> None:
        self._ctx = ctx
        self._told = -math.inf

    async def tell(self, record: TaskRecord) -> None:
        """Send what is new."""
        progress = record.progress
        if progress is None or progress.value <= self._told:
            return
        self._told = progress.value
        # The message of a task that has ended badly tells why.
        message = None if record.is_error or record.status == "failed" else progress.said_in(record.status_message)
        await self._ctx.session.report_progress(progress.value, progress.total, message)
