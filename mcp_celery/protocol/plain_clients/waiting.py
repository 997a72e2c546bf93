"""Waiting for a task on behalf of a request's client, which gets its progress and its questions."""

from __future__ import annotations

import math
from collections.abc import Generator
from contextlib import contextmanager
from typing import Final

import anyio
from mcp.shared.exceptions import MCPError, NoBackChannelError

from mcp_celery.engine import Caller, JSONObject, TaskRecord, TaskView
from mcp_celery.protocol.host import TaskHost
from mcp_celery.protocol.presence import while_there
from mcp_celery.protocol.question_delivery import OnRequest, Relay
from mcp_celery.protocol.revision import RequestContext
from mcp_celery.protocol.revisions import revision_of

_LOOK_SECONDS: Final = 1.0
"""How often it is looked whether the client is still there."""


async def attend(
    host: TaskHost,
    ctx: RequestContext,
    caller: Caller,
    task_id: str,
    *,
    seconds: float | None = None,
    is_only_way: bool = False,
) -> TaskView:
    """Wait for a task's end on behalf of a request's client, until it has dropped its HTTP exchange for good.

    Meanwhile the client gets ``notifications/progress``, where its request has a token. Where the server sends
    questions as requests, it asks the client on this request; else the request has to be answered with the questions.

    Args:
        host: The server it speaks for.
        ctx: The request.
        caller: Whose task it is.
        task_id: The task.
        seconds: How long to wait; 0: not at all; None: as long as it takes. The time that the client takes to answer
            a question does not count.
        is_only_way: Whether no other client knows the task: then what cannot be asked here cannot be asked at all.

    Returns:
        The task as it is now: it has ended, has questions that this request is to be answered with, or goes on.

    Raises:
        TaskNotFoundError: Unknown, another caller's, or expired while waiting.
        ResultUnavailableError: Completed, but the result backend does not give the result.
        StoreUnavailableError: The store did not answer.
        MCPError: -32800, which is never sent: the client has left.
    """
    async with while_there(host, ctx, look_seconds=_LOOK_SECONDS):
        return await _attend(host, ctx, caller, task_id, seconds, is_only_way=is_only_way)


async def _attend(
    host: TaskHost, ctx: RequestContext, caller: Caller, task_id: str, seconds: float | None, *, is_only_way: bool
) -> TaskView:
    engine = host.engine()
    if seconds == 0:
        return await engine.get(caller, task_id)
    progress = _Progress(ctx)
    patience = _Patience(anyio.move_on_after(seconds))
    channel = _OnThisRequest(ctx, patience, is_only_way=is_only_way)
    relay = Relay(engine, caller, task_id, turns=host.turns, channel=channel)
    revision = revision_of(ctx)
    async with relay:
        with patience.scope:
            async with engine.watch(caller, [task_id]) as watch:
                async for view in watch:
                    await progress.tell(view.record)
                    if view.record.is_terminal or revision.questions_to_return(view):
                        return view
                    relay.show(view)
    return await engine.get(caller, task_id)


class _Patience:
    """A deadline that pauses while another party is waited for.

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


class _OnThisRequest(OnRequest):
    """The client that a task is waited for.

    Args:
        ctx: The request.
        patience: Of who waits.
        is_only_way: Whether what cannot be asked here (HTTP without streams) cannot be asked at all; the tool gets the
            error then that it would get in the server's own process.
    """

    def __init__(self, ctx: RequestContext, patience: _Patience, *, is_only_way: bool) -> None:
        super().__init__(ctx)
        self._patience = patience
        self._is_only_way = is_only_way

    async def send(self, method: str, params: JSONObject) -> JSONObject:
        """Ask it."""
        try:
            with self._patience.paused():
                return await super().send(method, params)
        except NoBackChannelError as error:
            if not self._is_only_way:
                raise
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
        # The message of a task that has ended badly gives the reason.
        message = None if record.is_error or record.status == "failed" else progress.said_in(record.status_message)
        await self._ctx.session.report_progress(progress.value, progress.total, message)
