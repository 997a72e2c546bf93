"""Answers questions of tasks by the client's callbacks: each question once, and each answer until the server has it."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Iterable
from typing import Final

import anyio
import mcp_types as types
from mcp.shared.exceptions import MCPError
from pydantic import ValidationError

from mcp_celery.client.errors import InvalidTaskError
from mcp_celery.client.retry import LONGEST_BACK_OFF_SECONDS, jittered
from mcp_celery.client.session import TaskChannel, is_closed, is_permanent
from mcp_celery.client.tracked_task import FollowedTask
from mcp_celery.client.wire import JSON

MOST_REMEMBERED: Final = 4096
"""Keys of one task that are remembered, so that no question is put twice."""

logger = logging.getLogger(__name__)


class TaskQuestions:
    """Puts questions to the client's callbacks, all that are open at the same time.

    Args:
        channel: The session's tasks methods.
        recheck: Asks for the state of a task.
        patience_seconds: How long to go on sending an answer to a server that cannot be reached.
    """

    def __init__(
        self, channel: TaskChannel, recheck: Callable[[str], Awaitable[None]], *, patience_seconds: float
    ) -> None:
        self._channel = channel
        self._recheck = recheck
        self._patience_seconds = patience_seconds

    def look(self, task: FollowedTask) -> None:
        """Put what is new to the callbacks, and take back what is not wanted any more."""
        for key, scope in list(task.asked.items()):
            if scope and (task.has_ended or key not in task.state.input_requests):
                # Another client answered it, or it is superseded. If it comes back, it is asked again.
                del task.asked[key]
                scope.cancel()
        if task.has_ended or not task.answering:
            return
        for key, question in task.state.input_requests.items():
            if key not in task.asked:
                scope = anyio.CancelScope()
                _remember(task, key, scope)
                self._channel.start_soon(self._put, task, key, question, scope)

    def take_over(self, task: FollowedTask, keys: Iterable[str]) -> None:
        """Leave questions to code that answers them by hand."""
        for key in keys:
            if scope := task.asked.get(key):
                scope.cancel()
            _remember(task, key, None)
            task.refused.pop(key, None)

    async def _put(self, task: FollowedTask, key: str, question: JSON, scope: anyio.CancelScope) -> None:
        answer: JSON | None = None
        with scope:
            try:
                answered = await self._channel.dispatch(key, question)
            except ValidationError:
                task.refuse(key, "the server sent a question of a kind that this client does not know")
            except Exception as error:
                logger.exception("The callback for question %r of task %s raised", key, task.task_id)
                task.refuse(key, f"the client's callback raised {type(error).__name__}")
            else:
                if isinstance(answered, types.ErrorData):
                    task.refuse(key, answered.message)
                else:
                    answer = answered
        if answer is not None:
            task.asked[key] = None  # from here on it is answered, however long the server goes on to list it
            await self._deliver(task, key, answer)

    async def _deliver(self, task: FollowedTask, key: str, answer: JSON) -> None:
        until = anyio.current_time() + self._patience_seconds
        pause = 0.0
        while not task.has_ended:
            try:
                await self._channel.update(task.task_id, {key: answer})
            except InvalidTaskError as error:
                task.refuse(key, str(error))
                return
            except MCPError as error:
                if is_permanent(error) or is_closed(error) or anyio.current_time() > until:
                    # The task may have ended meanwhile: only an answer to what is open still has been refused.
                    await self._recheck(task.task_id)
                    task.refuse(key, str(error))
                    return
            else:
                return
            pause = max(task.interval_seconds, min(2 * pause, LONGEST_BACK_OFF_SECONDS))
            await anyio.sleep(jittered(pause))  # sent again: a server ignores the second of two


def _remember(task: FollowedTask, key: str, scope: anyio.CancelScope | None) -> None:
    task.asked[key] = scope
    if len(task.asked) > MOST_REMEMBERED:
        del task.asked[next(known for known in task.asked if known not in task.state.input_requests)]
