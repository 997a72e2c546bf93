"""The client's side of the extension ``io.modelcontextprotocol/tasks``, as far as the demo needs it.

A tool call that the server answers with a task is followed by pushes alone: a ``subscriptions/listen`` request names
the task, and each ``notifications/tasks`` carries all of it, the last one with its result. Nothing is ever polled.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal

import anyio
import mcp_types as types
from mcp.client.extension import ClaimContext, ClientExtension, NotificationBinding, ResultClaim
from mcp.client.session import ClientSession
from mcp.shared.exceptions import MCPError
from pydantic import BaseModel

EXTENSION: Final = "io.modelcontextprotocol/tasks"
PROGRESS_META: Final = "mcp-celery/progress"
LAST_WORDS_SECONDS: Final = 2.0
"""Notifications reach their handler through a queue, so the last one may come a moment after the stream's end."""


class Progress(BaseModel):
    """How far a task is: how much is done, and how much there is to do, where the tool knows."""

    progress: float
    total: float | None = None


class TaskCreated(types.Result):
    """What ``tools/call`` answers where the server makes a task of it."""

    result_type: Literal["task"] = "task"
    task_id: str


class TaskUpdate(types.NotificationParams):
    """A task as a notification carries it: always the whole of it."""

    task_id: str
    status: Literal["working", "input_required", "completed", "failed", "cancelled"]
    status_message: str | None = None
    result: dict[str, Any] | None = None
    error: types.ErrorData | None = None

    @property
    def progress(self) -> Progress | None:
        """How far it is, where the tool has said so."""
        found = (self.meta or {}).get(PROGRESS_META)
        return Progress.model_validate(found) if found else None

    @property
    def is_final(self) -> bool:
        """Whether nothing comes after this."""
        return self.status in ("completed", "failed", "cancelled")


class TaskEndedError(Exception):
    """The task has no result: it failed, was cancelled, or the server told nothing more about it."""


@dataclass(slots=True)
class _Followed:
    """A task that is being followed."""

    silence: anyio.CancelScope
    ended: anyio.Event = field(default_factory=anyio.Event)
    final: TaskUpdate | None = None
    refused: MCPError | None = None


class FollowTasks(ClientExtension):
    """Declares the extension, and follows each task that a tool call becomes until its result is there.

    Args:
        on_created: Called with the id of a task.
        on_update: Called with every push about it.
        silence_seconds: How long to wait for the next push before giving up.
    """

    identifier = EXTENSION

    def __init__(
        self, on_created: Callable[[str], None], on_update: Callable[[TaskUpdate], None], *, silence_seconds: float
    ) -> None:
        self._on_created = on_created
        self._on_update = on_update
        self._silence_seconds = silence_seconds
        self._followed: dict[str, _Followed] = {}

    def claims(self) -> Sequence[ResultClaim[Any]]:
        """Finish the calls that are answered with a task."""
        return [ResultClaim(result_type="task", model=TaskCreated, resolve=self._resolve)]

    def notifications(self) -> Sequence[NotificationBinding[Any]]:
        """Receive the pushes."""
        return [NotificationBinding(method="notifications/tasks", params_type=TaskUpdate, handler=self._receive)]

    async def _receive(self, update: TaskUpdate) -> None:
        followed = self._followed.get(update.task_id)
        # Two notifications may overtake each other on their way to here; what is final stays so.
        if followed is None or followed.final is not None:
            return
        followed.silence.deadline = anyio.current_time() + self._silence_seconds
        self._on_update(update)
        if update.is_final:
            followed.final = update
            followed.ended.set()

    async def _resolve(self, created: TaskCreated, context: ClaimContext) -> types.CallToolResult:
        self._on_created(created.task_id)
        silence = anyio.CancelScope(deadline=anyio.current_time() + self._silence_seconds)
        followed = self._followed[created.task_id] = _Followed(silence)
        try:
            with silence:
                async with anyio.create_task_group() as group:
                    group.start_soon(_listen, context.session, created.task_id, followed)
                    await followed.ended.wait()
                    group.cancel_scope.cancel()
        finally:
            del self._followed[created.task_id]
        if followed.final:
            return result_of(followed.final)
        if followed.refused:
            raise followed.refused
        if silence.cancelled_caught:
            raise TaskEndedError(f"nothing was heard of the task for {self._silence_seconds:g} s")
        raise TaskEndedError("the server ended the stream of pushes before the task had ended")


async def _listen(session: ClientSession, task_id: str, followed: _Followed) -> None:
    """Hold the stream of pushes open; it is answered only where the server ends it."""
    names: dict[str, Any] = {"taskIds": [task_id]}
    wanted = types.SubscriptionFilter.model_validate(names)
    request = types.SubscriptionsListenRequest(params=types.SubscriptionsListenRequestParams(notifications=wanted))
    try:
        await session.send_request(request, types.SubscriptionsListenResult)
        await anyio.sleep(LAST_WORDS_SECONDS)
    except MCPError as error:
        followed.refused = error
    followed.ended.set()


def result_of(task: TaskUpdate) -> types.CallToolResult:
    """The result that a finished task brought with it.

    Args:
        task: Its last state.

    Raises:
        MCPError: It failed with a JSON-RPC error.
        TaskEndedError: It has no result.
    """
    if task.status == "completed" and task.result is not None:
        return types.CallToolResult.model_validate(task.result, by_name=False)
    if task.error:
        raise MCPError.from_error_data(task.error)
    raise TaskEndedError(f"the task ended as {task.status}: {task.status_message or 'nobody says why'}")
