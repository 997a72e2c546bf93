"""Follows the tasks of one session: takes what is pushed, asks for the rest, and has questions answered."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from typing import Any, Final
from weakref import WeakValueDictionary

import anyio
import mcp_types as types
from mcp.client.session import ClientSession
from mcp.shared.exceptions import MCPError
from pydantic import TypeAdapter

from mcp_celery.client.busy import is_too_large, retry_after_seconds
from mcp_celery.client.errors import (
    AnswerError,
    ClientClosedError,
    InvalidTaskError,
    TaskError,
    TaskGoneError,
    TaskUnreachableError,
)
from mcp_celery.client.push import TaskPush
from mcp_celery.client.revisions import channel_of
from mcp_celery.client.session import is_closed, is_permanent
from mcp_celery.client.tracked_task import TOOL_RESULT, FollowedTask, StatusCallback, is_async
from mcp_celery.client.wire import TaskState

MOST_ASKED_AT_ONCE: Final = 16
MOST_ASKED_AGAIN_AT_ONCE: Final = 4
"""Of the tasks of which the server gave no answer the last time: others do not wait for these."""
LEAST_PAUSE_SECONDS: Final = 0.02

logger = logging.getLogger(__name__)


class TaskFollower:
    """Follows tasks until they end, no code holds them any more, or the client is closed.

    Args:
        session: The client's session.
        patience_seconds: How long the server may be silent before its tasks are given up.
        silence_seconds: The longest time without a push, after which the client polls a pushed task.
        busy_seconds: How long a request is sent again that a busy server refuses.
    """

    def __init__(
        self, session: ClientSession, *, patience_seconds: float, silence_seconds: float, busy_seconds: float
    ) -> None:
        self.channel = channel_of(session, busy_seconds=busy_seconds)
        self._patience_seconds = patience_seconds
        self._silence_seconds = silence_seconds
        self._tasks: WeakValueDictionary[str, FollowedTask] = WeakValueDictionary()
        self._held: set[FollowedTask] = set()
        self._news = anyio.Event()
        self._asking = anyio.CapacityLimiter(MOST_ASKED_AT_ONCE)
        self._asking_again = anyio.CapacityLimiter(MOST_ASKED_AGAIN_AT_ONCE)
        self._questions = self.channel.questions(self._ask_for, patience_seconds)
        self._push = TaskPush(self.channel, self._tasks, self._on_push_change)
        if self.channel.listens:
            self.channel.start_soon(self._push.run)
        self.channel.start_soon(self._ask_for_all)

    def follow(self, state: TaskState, *, answering: bool, result_type: TypeAdapter[Any] = TOOL_RESULT) -> FollowedTask:
        """Follow a task from now on, for as long as the returned object is held.

        Args:
            state: What is known of it.
            answering: Whether the client's callbacks answer its questions.
            result_type: What its result has to be.
        """
        task = self._tasks.get(state.task_id)
        if task is None:
            task = FollowedTask(
                state, answering=answering, is_open=lambda: self.channel.is_open, result_type=result_type
            )
            if state.is_final:
                return task
            self._tasks[state.task_id] = task
            self._push.look()
            self._news.set()
        task.answering = task.answering or answering
        task.take(state)
        self._settle(task)
        return task

    def receive(self, state: TaskState) -> None:
        """Learn a state that was pushed."""
        if state.lacks_result:
            self._hint(state.task_id)
            return
        task = self._tasks.get(state.task_id)
        if task is None:
            return
        self._push.heard(task.task_id)
        if state.is_older_than(task.state) and not state.is_final:
            # Most likely it was overtaken on its way to here. Where a server's clocks disagree it is the newest.
            if not state.says_the_same_as(task.state):
                task.is_doubtful = True
                self._settle(task)
                self._news.set()
            return
        task.is_doubtful = False
        due, revision, is_first = task.due, task.revision, not task.is_current
        self._learn(task, state)
        if task.revision == revision and not is_first:
            task.due = min(task.due, due)  # what a server repeats without end must not put off asking for ever

    def _hint(self, task_id: str) -> None:
        """Ask for a task's state now, since the server says that it has changed; once in an interval of the task."""
        now = anyio.current_time()
        if (task := self._tasks.get(task_id)) and task.hints_from <= now:
            task.hints_from = now + task.interval_seconds
            self.channel.start_soon(self._ask_for, task_id)

    def tell(self, task: FollowedTask, callback: StatusCallback) -> None:
        """Call something with each change of a task, which is followed for that whether or not it is held."""
        if is_async(callback):
            known = None if task.state.is_final else task.revision
            self.channel.start_soon(task.call_for_each, callback, known)
        elif task.state.is_final:
            task.call(callback)
        else:
            task.callbacks.append(callback)
            if not task.has_ended:
                self._held.add(task)

    async def find(self, task_id: str) -> TaskState:
        """Ask for the state of a task that is not followed yet.

        Raises:
            TaskError: The server does not know it, or answers nonsense.
            MCPError: The server refused, or could not be reached.
        """
        try:
            return await self.channel.get(task_id)
        except MCPError as error:
            if failure := self._failure(task_id, error):
                raise failure from error
            raise

    async def refresh(self, task: FollowedTask) -> TaskState:
        """Ask for a task's state now.

        Raises:
            TaskError: The server does not know it, or answers nonsense.
            MCPError: The server refused, or could not be reached.
        """
        revision = task.revision
        try:
            self._take_answer(task, await self.find(task.task_id), revision)
        except TaskError as failure:
            self._fail(task, failure)
            raise
        return task.state

    async def cancel(self, task: FollowedTask) -> None:
        """Ask the server to cancel a task, and for its state then.

        Raises:
            TaskError: The server does not know it.
            MCPError: The server refused, or could not be reached.
        """
        try:
            await self.channel.cancel(task.task_id)
        except MCPError as error:
            if failure := self._failure(task.task_id, error):
                raise failure from error
            raise
        await self.refresh(task)

    async def answer(self, task: FollowedTask, responses: Mapping[str, Any]) -> None:
        """Answer questions of a task; the client's callbacks are not asked for them any more.

        Raises:
            AnswerError: The server refused.
            MCPError: It could not be reached.
        """
        self._questions.take_over(task, responses)
        try:
            await self.channel.update(task.task_id, responses)
        except MCPError as error:
            if is_permanent(error):
                raise AnswerError(task.task_id, f"task {task.task_id} refused an answer: {error}") from error
            raise

    # -- what is learned

    def _take_answer(self, task: FollowedTask, state: TaskState, revision: int) -> None:
        """Learn a state that was asked for when the task had this revision."""
        if task.revision != revision and not state.is_final and not state.says_the_same_as(task.state):
            # Which is newer, the answer or what was pushed since the server was asked? Equal times do not say.
            task.is_doubtful = True
            state = state if task.state.is_older_than(state) else task.state
            self._news.set()
        self._learn(task, state)

    def _learn(self, task: FollowedTask, state: TaskState) -> None:
        task.is_current, task.silent_since = True, None
        if task.failure and not state.is_final and self.channel.is_open:
            self._follow_again(task)
        if not task.take(state):
            task.back_off()
        self._settle(task)

    def _follow_again(self, task: FollowedTask) -> None:
        """Follow a task that was given up; unless it is followed as another object, which its id was found for."""
        if self._tasks.setdefault(task.task_id, task) is task:
            task.revive()
            if task.callbacks:
                self._held.add(task)
            self._push.look()
            self._news.set()

    def _fail(self, task: FollowedTask, failure: TaskError) -> None:
        task.fail(failure)
        self._settle(task)

    def _settle(self, task: FollowedTask) -> None:
        self._questions.look(task)
        if task.has_ended:
            if self._tasks.get(task.task_id) is task:
                del self._tasks[task.task_id]
            self._held.discard(task)
            self._push.look()
            return
        pushed = task.is_current and not task.is_doubtful and task.task_id in self._push.covered
        task.due = anyio.current_time() + task.pause_seconds(self._silence_seconds if pushed else None)

    # -- asking

    def _on_push_change(self, task_ids: Iterable[str]) -> None:
        for task_id in task_ids:
            if task := self._tasks.get(task_id):
                task.is_current = False
                # Not later than it was to be asked: a stream that comes and goes must not put that off for ever.
                task.due = min(task.due, anyio.current_time() + task.pause_seconds(None))
        self._news.set()

    async def _ask_for_all(self) -> None:
        try:
            while True:
                pause = self._ask_for_due()
                self._push.look()
                with anyio.move_on_after(pause):
                    await self._news.wait()
                self._news = anyio.Event()
        finally:
            self._close()

    def _ask_for_due(self) -> float:
        """Ask for each task that is due, and say how long until the next one is, in seconds."""
        now = anyio.current_time()
        waiting = [task for task in self._tasks.values() if not task.is_asking]
        for task in waiting:
            if task.due <= now:
                task.is_asking, task.due = True, now + task.interval_seconds
                self.channel.start_soon(self._ask_for, task.task_id)
        later = (task.due - now for task in waiting if not task.is_asking)
        return max(min(later, default=self._silence_seconds), LEAST_PAUSE_SECONDS)

    async def _ask_for(self, task_id: str) -> None:
        async with self._turn_of(task_id):
            task = self._tasks.get(task_id)
            if task is None:
                return
            revision, task.is_doubtful = task.revision, False
            try:
                state = await self.channel.get(task_id)
            except MCPError as error:
                task.is_doubtful = True
                self._on_silence(task, error)
            except InvalidTaskError as error:
                self._fail(task, error)
            else:
                self._take_answer(task, state, revision)
            finally:
                task.is_asking = False
                self._news.set()

    def _turn_of(self, task_id: str) -> anyio.CapacityLimiter:
        task = self._tasks.get(task_id)  # not held while it waits: a task that its user drops is not asked for
        return self._asking if task is None or task.silent_since is None else self._asking_again

    def _on_silence(self, task: FollowedTask, error: MCPError) -> None:
        now = anyio.current_time()
        task.silent_since = task.silent_since or now
        failure = self._failure(task.task_id, error)
        if failure is None and is_permanent(error):
            failure = TaskError(task.task_id, f"the server refused a request about task {task.task_id}: {error}")
        if failure is None and now - task.silent_since > self._patience_seconds:
            seconds = f"{self._patience_seconds:g} s"
            failure = TaskUnreachableError(task.task_id, f"no answer about task {task.task_id} for {seconds}: {error}")
        if failure:
            self._fail(task, failure)
        else:
            task.back_off()
            self._settle(task)
            if (after := retry_after_seconds(error.error)) is not None:
                task.due = max(task.due, now + min(after, self._patience_seconds))

    def _failure(self, task_id: str, error: MCPError) -> TaskError | None:
        if is_closed(error) or not self.channel.is_open:
            return ClientClosedError(task_id)
        if is_too_large(error.error):
            return TaskError(
                task_id, f"the state of task {task_id} is larger than the client's transport takes: {error}"
            )
        return TaskGoneError(task_id) if error.code == types.INVALID_PARAMS else None

    def _close(self) -> None:
        for task in list(self._tasks.values()):
            task.fail(ClientClosedError(task.task_id))
        self._tasks.clear()
        self._held.clear()
