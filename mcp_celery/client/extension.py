"""``TasksClient``: with it, a tool call that the server turns into a task still returns the tool's result."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Final
from weakref import WeakSet

import anyio
import mcp_types as types
from mcp.client.extension import ClaimContext, ClientExtension, NotificationBinding, ResultClaim
from mcp.client.session import ClientSession
from mcp.shared.exceptions import MCPError

from mcp_celery.client.busy import BUSY_SECONDS
from mcp_celery.client.errors import AnswerError, InvalidTaskError
from mcp_celery.client.revisions import PUSHED
from mcp_celery.client.tracked_task import FollowedTask
from mcp_celery.client.tracker import TaskFollower, logger
from mcp_celery.client.wire import EXTENSION, AnyTask, CreatedTask, parse_task

CANCEL_SECONDS: Final = 2.0
_NOT_FOLLOWED_HERE: Final = types.CallToolResult(content=[], is_error=True)
"""Stands for the result of a call whose task is handed out: the SDK checks no structured content of an error."""


PATIENCE_SECONDS: Final = 300.0
"""How long a server may stay unreachable by default before its tasks are given up."""


class Handover:
    """Takes the task of one tool call, instead of letting the call wait for its result.

    Args:
        answering: Whether the client's callbacks answer the task's questions.
    """

    def __init__(self, *, answering: bool) -> None:
        self.answering = answering
        self.task: FollowedTask | None = None
        # Callbacks that the call runs inherit the variable below, but run elsewhere; their calls are their own.
        self._caller = anyio.get_current_task().id

    @property
    def is_mine(self) -> bool:
        """Whether this is the call itself."""
        return anyio.get_current_task().id == self._caller


_handover: ContextVar[Handover | None] = ContextVar("handover", default=None)


@contextmanager
def handed_over(*, answering: bool) -> Generator[Handover]:
    """In this context a tool call hands its task over and returns at once."""
    handover = Handover(answering=answering)
    token = _handover.set(handover)
    try:
        yield handover
    finally:
        _handover.reset(token)


class TasksClient(ClientExtension):
    """The extension ``io.modelcontextprotocol/tasks`` (SEP-2663) for ``mcp.client.Client``::

        async with Client(url, extensions=[TasksClient()]) as client:
            result = await client.call_tool("build_report", {"year": 2026})

    A call whose task is abandoned, because the call is cancelled or a question of the task cannot be answered, cancels
    the task; a task of ``call_tool_task`` continues. So does one that another call of the client, or a handle, has
    under the same idempotency key.

    Servers of revision 2025-11-25 create a task only if the client asks for one, which the SDK's ``call_tool`` cannot:
    there it runs a tool without a task. Call tools that require a task with ``call_tool_task``.

    Args:
        patience_seconds: How long a server may stay unreachable before its tasks are given up.
        silence_seconds: The longest time without a push, after which the client polls a task: a server does not
            push a large result, and may lose a push. The first pauses of a task are shorter, and jitter lengthens each
            by up to a quarter, so with the default such a result arrives after a few seconds for a young task,
            and after 30 for any. The price is about six requests for a task that is silent for a minute, and two or
            three for each further minute.
        busy_seconds: How long requests that a busy server refuses are sent again, at the times that the server
            names. The SDK's own ``call_tool`` raises the refusal, except over ``resilient_http``.
    """

    identifier = EXTENSION

    def __init__(
        self,
        *,
        patience_seconds: float = PATIENCE_SECONDS,
        silence_seconds: float = 24.0,
        busy_seconds: float = BUSY_SECONDS,
    ) -> None:
        self._patience_seconds = patience_seconds
        self._silence_seconds = silence_seconds
        self._busy_seconds = busy_seconds
        self._followers: WeakSet[TaskFollower] = WeakSet()

    def claims(self) -> Sequence[ResultClaim[Any]]:
        """Finish the calls that are answered with a task."""
        return [ResultClaim(result_type="task", model=CreatedTask, resolve=self._resolve)]

    def notifications(self) -> Sequence[NotificationBinding[Any]]:
        """Receive the pushes of every revision. Each client asks for bindings of its own, when it is made."""
        return [
            NotificationBinding(method=method, params_type=AnyTask, handler=_Receiver(self._followers, method))
            for method in PUSHED
        ]

    def follower(self, session: ClientSession) -> TaskFollower:
        """The tracker of a session's tasks; one client's extension may serve several sessions."""
        for follower in self._followers:
            if follower.channel.session is session:
                return follower
        follower = TaskFollower(
            session,
            patience_seconds=self._patience_seconds,
            silence_seconds=self._silence_seconds,
            busy_seconds=self._busy_seconds,
        )
        self._followers.add(follower)
        return follower

    async def _resolve(self, created: CreatedTask, context: ClaimContext) -> types.CallToolResult:
        follower = self.follower(context.session)
        handover = _handover.get()
        if handover and handover.is_mine:
            handover.task = follower.follow(created.state(), answering=handover.answering)
            handover.task.holders.add(handover)  # until its handle is there
            return _NOT_FOLLOWED_HERE
        task = follower.follow(created.state(), answering=True)
        call = _Call()
        task.holders.add(call)
        try:
            return await task.result()
        except (AnswerError, anyio.get_cancelled_exc_class()):
            task.holders.discard(call)
            if not task.holders:
                await _cancel(follower, task)
            raise
        finally:
            task.holders.discard(call)


class _Call:
    """A call that waits for the result of its task."""


class _Receiver:
    """Takes the pushes of one client's server, which may number its tasks as another server does.

    Args:
        followers: Those of every client of the extension.
        method: The notification.
    """

    def __init__(self, followers: WeakSet[TaskFollower], method: str) -> None:
        self._followers = followers
        self._method = method

    async def __call__(self, sent: AnyTask) -> None:
        """Pass a state on to the client that it was sent to."""
        state = parse_task(sent.model_dump(by_alias=True, mode="json"), model=PUSHED[self._method])
        for follower in list(self._followers):
            if follower.channel.notification == self._method and follower.channel.receives_with(self):
                follower.receive(state)


async def _cancel(follower: TaskFollower, task: FollowedTask) -> None:
    """Cancel a task that no code holds any more; a server that does not get this lets the task expire."""
    with anyio.move_on_after(CANCEL_SECONDS, shield=True):
        try:
            await follower.channel.cancel(task.task_id)
        except (MCPError, InvalidTaskError) as error:
            logger.info("could not cancel task %s: %s", task.task_id, error)
